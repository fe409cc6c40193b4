package restore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A guard makes one instant of the many at which the processes of a tree are let go: up
// to its end all of them end with vOS, also those that were let go. It is a process that
// waits for the end of vOS, by a pipe, and then kills them; itself it is ended by one
// system call of vOS.
type guard struct {
	pid  int
	pipe *os.File // that vOS has open
}

// keepGuard starts the guard of the processes.
func (t *tracer) keepGuard(built []*process) (_ *guard, err error) {
	waits, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	g := &guard{pipe: pipe}
	defer func() {
		if err = errors.Join(err, waits.Close()); err != nil {
			err = errors.Join(err, t.dismiss(g))
		}
	}()
	k, err := t.startWith(waits)
	if k != nil {
		g.pid = k.tid
	}
	if err != nil {
		return nil, err
	}
	calls := []tracee.Call{{Number: syscall.SYS_READ, Args: [6]uint64{0, k.arena.data, 1}}}
	for _, p := range built {
		calls = append(calls, tracee.Call{Number: syscall.SYS_KILL, Args: [6]uint64{uint64(p.pid), uint64(syscall.SIGKILL)}})
	}
	calls = append(calls, tracee.Call{Number: syscall.SYS_EXIT_GROUP})
	b := (&process{tracer: t, pid: k.tid, main: k}).batch()
	table := encodeCalls(nil, calls)
	b.add("outlive the one that has started it", syscall.SYS_PRCTL, prctlDeathSignal, 0)
	b.try(syscall.SYS_MMAP, 0, uint64(len(table)), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS, noFile, 0)
	results, err := b.run()
	if err != nil {
		return nil, err
	}
	at := results[1]
	if errno := errnoOf(at); errno != 0 {
		return nil, &StepError{PID: k.tid, TID: k.tid, What: "map memory for the guard", Errno: errno}
	}
	if err := kernel.WriteMemory(k.tid, table, []kernel.RemoteRange{{Address: at, Length: uint64(len(table))}}); err != nil {
		return nil, err
	}
	if err := t.settle([]*task{k}); err != nil {
		return nil, err
	}
	regs := k.base
	regs.RIP, regs.RBX, regs.R12 = k.arena.interpreter, at, at+uint64(len(table))
	if err := kernel.SetRegisters(k.tid, &regs); err != nil {
		return nil, err
	}
	if err := kernel.SetOptions(k.tid, 0); err != nil {
		return nil, err
	}
	k.stopped = false
	if err := kernel.Detach(k.tid, 0); err != nil {
		return nil, fmt.Errorf("let the guard go: %w", err)
	}
	return g, nil
}

// dismiss ends the guard; of nil it does nothing.
func (t *tracer) dismiss(g *guard) error {
	if g == nil {
		return nil
	}
	var err error
	if g.pid != 0 {
		err = t.kill(g.pid)
		g.pid = 0
	}
	if g.pipe != nil {
		err = errors.Join(err, g.pipe.Close())
		g.pipe = nil
	}
	return err
}
