package menu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

const (
	sysMemfdCreate = 319
	mfdCloexec     = 0x1
	mfdExec        = 0x10 // Linux 6.3: wanted where vm.memfd_noexec is 1
)

// stage maps the planned image into the process. It takes one thread twice, for
// some microseconds; nothing leads to what is mapped.
func (a *Plan) stage(ctx context.Context, p *target) error {
	undo, err := clearing(p, a.leftover)
	if err != nil {
		return err
	}
	var fd uint64
	err = p.Session(ctx, func(s *tracee.Session) (err error) {
		if err := s.Borrow(); err != nil {
			return err
		}
		if err := s.Permits(append(a.mapCalls(0, 0), undo...)); err != nil {
			return err
		}
		if _, err := s.Run(undo); err != nil {
			return err
		}
		name, err := s.Data(append([]byte(module.MenuName), 0))
		if err != nil {
			return err
		}
		fd, err = s.Call(sysMemfdCreate, name, mfdCloexec|mfdExec)
		if errors.Is(err, syscall.EINVAL) { // older than the flag
			fd, err = s.Call(sysMemfdCreate, name, mfdCloexec)
		}
		return err
	})
	if err == nil {
		err = a.fill(p, int(fd))
	}
	if err == nil {
		err = p.Session(ctx, func(s *tracee.Session) error {
			if link, err := p.Descriptor(int(fd)); err != nil || !isMemfd(link) {
				return errors.Join(errReused, err)
			}
			if err := s.Borrow(); err != nil {
				return err
			}
			base, err := s.Call(syscall.SYS_MMAP, a.mapCalls(0, fd)[0].Args[:]...)
			if err != nil {
				return err
			}
			calls := a.mapCalls(base, fd)[1:]
			results, err := s.Run(calls)
			if err != nil {
				return err
			}
			for i, c := range calls {
				err = errors.Join(err, c.Err(results[i]))
			}
			return err
		})
	}
	if err == nil || errors.Is(err, procfs.ErrGone) {
		return err
	}
	if len(api.Refusals(err)) == 0 {
		err = errors.Join(api.Refusal{Code: codeMenuStaging, Subject: fmt.Sprintf("process %d", p.PID()),
			Detail: fmt.Sprintf("the menu can't be mapped: %v", err), Remedy: noRemedy}, err)
	}
	return errors.Join(err, unstage(context.WithoutCancel(ctx), p))
}

// mapCalls are the calls that map the image at base, and close its descriptor.
func (a *Plan) mapCalls(base, fd uint64) []tracee.Call {
	size, state := uint64(len(a.image)), uint64(len(a.image)-procfs.PageSize)
	return []tracee.Call{
		{Number: syscall.SYS_MMAP, Args: [6]uint64{0, size, syscall.PROT_READ | syscall.PROT_EXEC, syscall.MAP_PRIVATE, fd, 0}},
		{Number: syscall.SYS_MMAP, Args: [6]uint64{base + state, procfs.PageSize, syscall.PROT_READ | syscall.PROT_WRITE, syscall.MAP_PRIVATE | syscall.MAP_FIXED, fd, state}},
		{Number: syscall.SYS_CLOSE, Args: [6]uint64{fd}},
	}
}

// unstage takes out what came into the process of a menu that could not be mapped.
func unstage(ctx context.Context, p *target) error {
	m, leftover, err := find(p.Process)
	if err != nil {
		return err
	}
	if m != nil { // nothing was queued yet
		leftover = append(leftover, procfs.PageRange{Start: m.base, End: m.base + m.size})
	}
	undo, err := clearing(p, leftover)
	if err != nil || len(undo) == 0 {
		return err
	}
	return p.insist(ctx, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		_, err := s.Run(undo)
		return err
	})
}

// clearing are the calls that take out ranges to which nothing leads, and what is
// left open.
func clearing(p *target, leftover []procfs.PageRange) (calls []tracee.Call, err error) {
	open, err := leftOpen(p.Process)
	for _, r := range leftover {
		calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{r.Start, r.End - r.Start}})
	}
	for _, fd := range open {
		calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
	}
	return calls, err
}

var errReused = errors.New("the program has closed its descriptor meanwhile")

func isMemfd(link string) bool { return strings.TrimSuffix(link, " (deleted)") == memfd }

// fill writes the memfd from outside, while the program runs.
func (a *Plan) fill(p *target, fd int) (err error) {
	file, err := p.OpenDescriptor(fd, syscall.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd())); err != nil || !isMemfd(link) {
		return errors.Join(errReused, err)
	}
	_, err = file.WriteAt(a.image, 0)
	return err
}
