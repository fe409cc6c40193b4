package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/crit"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// CRIU measures vos beside CRIU, where a criu that works is on the path: both as
// commands, one after the other, on two processes of the same program.
func CRIU(ctx context.Context, runs int) (figures []Figure, err error) {
	criu, err := exec.LookPath("criu")
	if err != nil {
		return nil, notMeasured(err.Error())
	}
	if said, err := exec.CommandContext(ctx, criu, "check").CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		return nil, notMeasured(fmt.Sprintf("%s check: %v: %s", criu, err, lines[len(lines)-1]))
	}
	if err := testbed.Subreaper(); err != nil {
		return nil, err
	}
	program, err := testbed.Compile(ctx, testbed.Build{Name: "holding", Source: holdingSource, Flags: []string{"-pthread"}})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name                  string
		threads, memory, runs int
	}{
		{"loop", 1, 0, runs}, {"64 threads", 64, 0, runs}, {"100 MiB", 1, 100, max(3, runs/4)}, {"1 GiB", 1, 1024, max(3, runs/10)},
	} {
		all := []Figure{{Name: c.name + ": stopped, goes on"}, {Name: c.name + ": checkpoint, goes on, in all"},
			{Name: c.name + ": checkpoint and end, in all"}, {Name: c.name + ": restore, in all"}}
		err := besideRuns(ctx, c.runs, criu, program, c.threads, c.memory, all)
		figures = append(figures, all...)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return figures, nil
}

func besideRuns(ctx context.Context, runs int, criu, program string, threads, memory int, to []Figure) (err error) {
	folder, err := os.MkdirTemp("/dev/shm", "vos-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	// Each has one of its own: CRIU leaves them in time namespaces.
	var pids [2]int
	for i := range pids {
		if pids[i], err = hold(ctx, program, threads, memory); err != nil {
			return err
		}
		defer func() { _ = syscall.Kill(pids[i], syscall.SIGKILL); _ = reap(pids[i]) }()
	}
	for range runs {
		ours, theirs := make([]time.Duration, len(to)), make([]time.Duration, len(to))
		if err := byVOS(ctx, pids[0], filepath.Join(folder, "vos"), ours); err != nil {
			return err
		}
		if err := byCRIU(ctx, criu, pids[1], filepath.Join(folder, "criu"), theirs); err != nil {
			return err
		}
		for i := range to {
			sample(&to[i], ours[i], theirs[i])
		}
	}
	return nil
}

// byVOS lets vos checkpoint a process, end it, and restore it, in a folder that is there
// meanwhile.
func byVOS(ctx context.Context, pid int, folder string, took []time.Duration) (err error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	image := filepath.Join(folder, "image")
	var out []byte
	if took[1], out, err = timed(ctx, Binary, "checkpoint", strconv.Itoa(pid), "-D", image, "--leave-running", "--json"); err != nil {
		return err
	}
	var s api.Snapshot
	if err := json.Unmarshal(out, &s); err != nil {
		return fmt.Errorf("read %q: %w", out, err)
	}
	took[0] = time.Duration(s.FreezeUS) * time.Microsecond
	if err := os.RemoveAll(image); err != nil {
		return err
	}
	if took[2], _, err = timed(ctx, Binary, "checkpoint", strconv.Itoa(pid), "-D", image); err != nil {
		return err
	}
	if err := reap(pid); err != nil {
		return err
	}
	took[3], _, err = timed(ctx, Binary, "restore", "-D", image)
	return err
}

// byCRIU lets CRIU do the same.
func byCRIU(ctx context.Context, criu string, pid int, folder string, took []time.Duration) (err error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	if took[1], _, err = timed(ctx, criu, "dump", "-t", strconv.Itoa(pid), "-D", folder, "--leave-running", "-o", "log"); err != nil {
		return err
	}
	stats, err := crit.GetDumpStats(folder)
	if err != nil {
		return err
	}
	took[0] = time.Duration(stats.GetFrozenTime()) * time.Microsecond
	if err := errors.Join(os.RemoveAll(folder), os.Mkdir(folder, 0o700)); err != nil {
		return err
	}
	if took[2], _, err = timed(ctx, criu, "dump", "-t", strconv.Itoa(pid), "-D", folder, "-o", "log"); err != nil {
		return err
	}
	if err := reap(pid); err != nil {
		return err
	}
	took[3], _, err = timed(ctx, criu, "restore", "-D", folder, "-d", "-o", "log")
	return err
}

// timed runs a command and returns how long it took, and what it printed.
func timed(ctx context.Context, name string, args ...string) (time.Duration, []byte, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %v: %w\n%s", name, args, err, said.Bytes())
	}
	return took, out.Bytes(), nil
}
