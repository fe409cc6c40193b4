package bench

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

//go:embed programs/holding.c
var holdingSource string

// Snapshot measures how long a program is stopped while its state is written to files in
// memory, how long all of that takes, and how long it takes to build it again.
func Snapshot(ctx context.Context, runs int) (figures []Figure, err error) {
	// What is built again becomes a child of this process, which waits for its end.
	if err := testbed.Subreaper(); err != nil {
		return nil, err
	}
	program, err := testbed.Compile(ctx, testbed.Build{Name: "holding", Source: holdingSource, Flags: []string{"-pthread"}})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name                 string
		threads, memory      int // MiB
		runs                 int
		stopped, kept, built string // aims
	}{
		{"loop", 1, 0, runs, "", "5 ms", "4 ms"},
		{"64 threads", 64, 0, runs, "", "8 ms", "10 ms"},
		{"100 MiB", 1, 100, max(3, runs/4), "", "", ""},
		{"1 GiB", 1, 1024, max(3, runs/10), "10 ms", "0.35 s", "0.54 s"},
	} {
		all := []Figure{
			{Name: c.name + ": stopped, goes on", Aim: c.stopped},
			{Name: c.name + ": checkpoint, goes on, in all"},
			{Name: c.name + ": checkpoint of what has not changed"},
			{Name: c.name + ": checkpoint and end, in all", Aim: c.kept},
			{Name: c.name + ": restore, in all", Aim: c.built},
			{Name: c.name + ": fresh memory in place, longest stop"},
			{Name: c.name + ": fresh memory in place, in all"},
		}
		err := snapshotRuns(ctx, c.runs, program, c.threads, c.memory, all)
		figures = append(figures, all...)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return figures, nil
}

func snapshotRuns(ctx context.Context, runs int, program string, threads, memory int, to []Figure) (err error) {
	// Files in memory: what a disk takes is not vOS's.
	folder, err := os.MkdirTemp("/dev/shm", "vos-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	pid, err := hold(ctx, program, threads, memory)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL); _ = reap(pid) }()
	machine, err := vex.New()
	if err != nil {
		return err
	}
	for range runs {
		one, two := filepath.Join(folder, "one"), filepath.Join(folder, "two")
		p, err := procfs.Open(pid)
		if err != nil {
			return err
		}
		floor, err := bareStop(p)
		if err := errors.Join(err, p.Close()); err != nil {
			return err
		}
		s, took, err := taken(ctx, machine, api.CheckpointRequest{Directory: one, LeaveRunning: true}, pid)
		if err != nil {
			return err
		}
		sample(&to[0], time.Duration(s.FreezeUS)*time.Microsecond, floor)
		copied, err := copyWithin(one, folder)
		if err != nil {
			return err
		}
		sample(&to[1], took, copied)
		if _, took, err = taken(ctx, machine, api.CheckpointRequest{Directory: two, LeaveRunning: true, Parent: one}, pid); err != nil {
			return err
		}
		sample(&to[2], took, copied)
		if err := errors.Join(os.RemoveAll(two), os.RemoveAll(one)); err != nil {
			return err
		}
		if _, took, err = taken(ctx, machine, api.CheckpointRequest{Directory: one}, pid); err != nil {
			return err
		}
		sample(&to[3], took, copied)
		if err := reap(pid); err != nil {
			return err
		}
		begin := time.Now()
		err = machine.Restore(ctx, api.RestoreRequest{Directory: one}, func(s api.Snapshot) error { return as(s, api.Restored) })
		if err != nil {
			return err
		}
		sample(&to[4], time.Since(begin), copied)
		begin = time.Now()
		var fresh api.Restart
		err = machine.Restart(ctx, api.RestartRequest{Target: api.Target{Program: strconv.Itoa(pid)}}, func(r api.Restart) error {
			if fresh = r; r.Outcome != api.Restarted {
				return fmt.Errorf("it is %s: %v %s", r.Outcome, r.Refusals, r.Error)
			}
			return nil
		})
		if err != nil {
			return err
		}
		sample(&to[5], time.Duration(fresh.FreezeUS)*time.Microsecond, floor)
		sample(&to[6], time.Since(begin), copied)
		if err := os.RemoveAll(one); err != nil {
			return err
		}
	}
	return nil
}

// hold starts a program with so many threads and MiB. It is to be killed and reaped.
func hold(ctx context.Context, program string, threads, memory int) (pid int, err error) {
	cmd := exec.CommandContext(ctx, program, strconv.Itoa(threads), strconv.Itoa(memory))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid = cmd.Process.Pid
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return 0, errors.Join(err, reap(pid))
	}
	return pid, out.Close()
}

func sample(f *Figure, took, floor time.Duration) {
	f.Samples, f.Floor = append(f.Samples, took), append(f.Floor, floor)
}

func taken(ctx context.Context, machine api.Executive, r api.CheckpointRequest, pid int) (s api.Snapshot, took time.Duration, err error) {
	r.Target, r.Compression = api.Target{Program: strconv.Itoa(pid)}, "none"
	begin := time.Now()
	err = machine.Checkpoint(ctx, r, func(got api.Snapshot) error {
		s = got
		return as(got, api.Checkpointed)
	})
	return s, time.Since(begin), err
}

func as(s api.Snapshot, want api.Outcome) error {
	if s.Outcome != want {
		return fmt.Errorf("%s: %v %s", s.Outcome, s.Refusals, s.Error)
	}
	return nil
}

func reap(pid int) error {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(pid, &status, 0, nil)
	return err
}

// copyWithin copies an image's pages beside it, and returns how long that took: what the
// file system takes for as many bytes.
func copyWithin(image, folder string) (_ time.Duration, err error) {
	from, err := os.Open(filepath.Join(image, "pages"))
	if err != nil {
		return 0, err
	}
	defer from.Close()
	begin := time.Now()
	to, err := os.Create(filepath.Join(folder, "copy"))
	if err != nil {
		return 0, err
	}
	// By reads and writes: the kernel's own copy would only share pages on some.
	_, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 1<<20))
	took := time.Since(begin)
	return took, errors.Join(err, to.Close(), os.Remove(to.Name()))
}
