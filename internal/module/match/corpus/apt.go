package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// installedPackages returns the installed packages of the library section that
// have a shared library in a folder of the loader.
func installedPackages(ctx context.Context) ([]string, error) {
	out, err := output(ctx, "", "dpkg-query", "-W", "-f", "${Package} ${Section} ${Architecture} ${db:Status-Abbrev}\n")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 4 && (f[1] == "libs" || strings.HasSuffix(f[1], "/libs")) && f[2] == "amd64" && f[3] == "ii" && !slices.Contains(all, f[0]) {
			all = append(all, f[0])
		}
	}
	slices.Sort(all)
	return all, nil
}

func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(problem.String()))
	}
	return string(out), nil
}
