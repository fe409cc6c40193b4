package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// threadCases are the programs whose threads are stopped.
var threadCases = [][2]string{
	{"1", "blocked"}, {"1", "busy"}, {"16", "blocked"}, {"16", "busy"},
	{"64", "blocked"}, {"64", "busy"}, {"256", "blocked"}, {"256", "busy"},
}

// Stop measures how long all threads of a program are stopped, against the
// floor: the bare system calls of it.
func Stop(ctx context.Context, runs int) ([]Figure, error) {
	var figures []Figure
	for _, c := range threadCases {
		f := Figure{Name: fmt.Sprintf("stop and resume, %s threads, %s", c[0], c[1])}
		if c[0] == "64" && c[1] == "busy" {
			f.Aim = "1 ms, 1.3"
		}
		err := withThreads(ctx, c[0], c[1], func(p *procfs.Process) error {
			for range runs {
				floor, err := bareStop(p)
				if err != nil {
					return err
				}
				times, err := tracee.Do(ctx, p, tracee.Options{}, (*tracee.Session).StopAll)
				if err != nil {
					return err
				}
				f.Samples, f.Floor = append(f.Samples, times.Pause), append(f.Floor, floor)
			}
			return nil
		})
		if err != nil {
			return figures, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// withThreads calls work with the threads fixture.
func withThreads(ctx context.Context, threads, mode string, work func(*procfs.Process) error) (err error) {
	build, err := testbed.Source("threads")
	if err != nil {
		return err
	}
	path, err := testbed.Compile(ctx, build)
	if err != nil {
		return err
	}
	fixture, err := testbed.StartFixture(ctx, path, threads, mode)
	if err != nil {
		return err
	}
	defer fixture.Kill()
	p, err := procfs.Open(fixture.Pid())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return work(p)
}

// bareStop seizes all threads of a process, stops them, waits for them, lets
// them go, and returns how long they were held up. It repairs nothing and looks
// at nothing: what it takes, the kernel takes.
func bareStop(p *procfs.Process) (pause time.Duration, err error) {
	kernel.OnOwnThread(func() { pause, err = bareStopHere(p) })
	return pause, err
}

func bareStopHere(p *procfs.Process) (time.Duration, error) {
	waiter, err := kernel.NewWaiter()
	if err != nil {
		return 0, err
	}
	defer waiter.Close()
	if err := waiter.Tick(time.Second); err != nil {
		return 0, err
	}
	tids, err := p.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if err := kernel.Seize(tid, 0); err != nil {
			return 0, err
		}
	}
	policy, err := kernel.ThreadScheduling()
	if err != nil {
		return 0, err
	}
	if err := kernel.SetThreadScheduling(kernel.FirstInFirstOut); err != nil {
		return 0, err
	}
	begin := time.Now()
	for _, tid := range tids {
		if err := kernel.Interrupt(tid); err != nil {
			return 0, err
		}
	}
	for range tids {
		if _, _, err := waiter.Wait(begin.Add(10 * time.Second)); err != nil {
			return 0, err
		}
	}
	for _, tid := range tids {
		if err := kernel.Detach(tid, 0); err != nil {
			return 0, err
		}
	}
	pause := time.Since(begin)
	return pause, kernel.SetThreadScheduling(policy)
}
