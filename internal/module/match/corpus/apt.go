package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// libraryPackage is a package of shared libraries with the versions that the
// mirror serves, oldest first.
type libraryPackage struct {
	name     string
	versions []string
}

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

// withVersions asks apt once for all packages, and keeps those of which it
// serves two versions or more.
func withVersions(ctx context.Context, names []string) ([]libraryPackage, error) {
	out, err := output(ctx, "", "apt-cache", append([]string{"madison"}, names...)...)
	if err != nil {
		return nil, err
	}
	var all []libraryPackage
	at := map[string]int{}
	scan := bufio.NewScanner(strings.NewReader(out))
	for scan.Scan() {
		f := strings.Split(scan.Text(), "|")
		if len(f) != 3 || strings.Contains(f[2], "Sources") {
			continue
		}
		name, version := strings.TrimSpace(f[0]), strings.TrimSpace(f[1])
		i, ok := at[name]
		if !ok {
			i = len(all)
			at[name] = i
			all = append(all, libraryPackage{name: name})
		}
		if !slices.Contains(all[i].versions, version) {
			all[i].versions = append(all[i].versions, version)
		}
	}
	all = slices.DeleteFunc(all, func(p libraryPackage) bool { return len(p.versions) < 2 })
	for i := range all {
		slices.SortFunc(all[i].versions, func(a, b string) int {
			if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "lt", b).Run() == nil {
				return -1
			}
			return 1
		})
	}
	return all, nil
}

// store is the cache of unpacked packages.
type store struct {
	folder  string
	offline bool
}

func openStore(offline bool) (*store, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(cache, "vos", "corpus")
	return &store{folder, offline}, os.MkdirAll(folder, 0o755)
}

// unpacked returns the folder of a package's files, after downloading it where
// it isn't there.
func (s *store) unpacked(ctx context.Context, name, version string) (string, error) {
	folder := filepath.Join(s.folder, name+"_"+version)
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	if s.offline {
		return "", fmt.Errorf("unpack %s %s: not in the cache", name, version)
	}
	work, err := os.MkdirTemp(s.folder, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o777); err != nil { // apt downloads as another user
		return "", err
	}
	if _, err := output(ctx, work, "apt-get", "download", "-q", name+"="+version); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("download %s %s: %d files", name, version, len(files))
	}
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, work, "dpkg-deb", "-x", files[0], tree); err != nil {
		return "", err
	}
	return folder, os.Rename(tree, folder)
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
