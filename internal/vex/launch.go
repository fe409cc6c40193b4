package vex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/launch"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Launch implements api.Launcher.
func (m Machine) Launch(ctx context.Context, r api.LaunchRequest, held func(api.Interception) error) (exitCode int, err error) {
	p, err := launch.Start(r.Path, r.Args, os.Environ(), []*os.File{os.Stdin, os.Stdout, os.Stderr})
	var early *launch.Ended
	if errors.As(err, &early) {
		return codeOf(early.Status), nil // its loader has told why
	}
	if err != nil {
		return 0, err
	}
	if err = m.hold(ctx, r, p, held); err == nil {
		err = forgetParent(ctx, p.PID)
	}
	if err != nil {
		return 0, errors.Join(err, p.Kill())
	}
	if err := p.Resume(); err != nil {
		return 0, err
	}
	status, err := p.Wait()
	return codeOf(status), err
}

// hold counts the calls of a program that has not begun.
func (m Machine) hold(ctx context.Context, r api.LaunchRequest, p *launch.Program, held func(api.Interception) error) error {
	target, err := api.ParseTarget(fmt.Sprint(p.PID))
	if err != nil {
		return err
	}
	var errs []error
	err = m.Attach(ctx, api.AttachRequest{Target: target, Memory: r.Memory, Pointers: r.Pointers}, func(i api.Interception) error {
		for _, refusal := range i.Refusals {
			errs = append(errs, refusal)
		}
		if i.Error != "" {
			errs = append(errs, errors.New(i.Error))
		}
		if !p.Early {
			i.Residual = append(i.Residual, "its loader has no place to wait at: what libraries call before the program begins was not counted")
		}
		if len(errs) > 0 {
			return nil
		}
		return held(i)
	})
	return errors.Join(append(errs, err)...)
}

func codeOf(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// forgetParent takes back that a program is told when vos dies.
func forgetParent(ctx context.Context, pid int) (err error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, process.Close()) }()
	_, err = tracee.Do(ctx, process, tracee.Options{}, func(s *tracee.Session) error {
		const setParentDeathSignal = 1 // PR_SET_PDEATHSIG
		if err := s.Borrow(); err != nil {
			return err
		}
		_, err := s.Call(syscall.SYS_PRCTL, setParentDeathSignal, 0)
		return err
	})
	return err
}
