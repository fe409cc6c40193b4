// Package launch starts programs that are looked after from their first instruction.
//
// A program is held when its loader has mapped and bound all libraries, and before any
// code of them or of the program has run: then every address that it will ever take of
// a function can be another one. It is a child of this process, as a shell's would be,
// and is stopped by SIGSTOP while it is held, so that other parts of vOS can work on it
// as on any process.
//
// Should vOS die while the loader works, the program dies too: it has not begun. While
// it is held, it goes on by itself (PR_SET_PDEATHSIG with SIGCONT, which [Program.Resume]
// takes back by the function that it is given).
package launch

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Program is one that was started.
type Program struct {
	PID int

	// Early tells that the loader was waited for. A program without one, or with one
	// that has no place to wait at, is held before its loader's first instruction.
	Early bool

	resume chan struct{}
	ended  chan struct{}
	status syscall.WaitStatus
	err    error
}

// Start starts the program at path and holds it. files are its standard descriptors.
// It fails as execve does, before anything runs, or when the program ends in its loader:
// Ended then wraps the status.
func Start(path string, argv, env []string, files []*os.File) (*Program, error) {
	p := &Program{resume: make(chan struct{}), ended: make(chan struct{})}
	held := make(chan error)
	go func() {
		// The tracer, and the parent whose death counts, is an OS thread.
		runtime.LockOSThread()
		err := p.start(path, argv, env, files)
		held <- err
		if err != nil {
			return
		}
		<-p.resume
		p.status, p.err = wait(p.PID, 0)
		close(p.ended)
	}()
	return p, <-held
}

// An Ended is a program that ended before it could be held.
type Ended struct{ Status syscall.WaitStatus }

func (e *Ended) Error() string {
	if e.Status.Signaled() {
		return fmt.Sprintf("the program was killed by %v before it began", e.Status.Signal())
	}
	return fmt.Sprintf("the program ended with exit code %d before it began", e.Status.ExitStatus())
}

func (p *Program) start(path string, argv, env []string, files []*os.File) (err error) {
	attr := &syscall.ProcAttr{Env: env, Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGCONT}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if p.PID, err = syscall.ForkExec(path, argv, attr); err != nil {
		return &os.PathError{Op: "start", Path: path, Err: err}
	}
	defer func() {
		var ended *Ended
		if err != nil && !errors.As(err, &ended) {
			err = errors.Join(err, syscall.Kill(p.PID, syscall.SIGKILL))
			_, waitErr := wait(p.PID, 0)
			err = errors.Join(err, waitErr)
		}
	}()
	if _, err := p.stopped(); err != nil { // by the execve
		return err
	}
	if err := kernel.SetOptions(p.PID, kernel.ExitKill); err != nil {
		return err
	}
	if p.Early, err = p.awaitLoader(); err != nil {
		return err
	}
	// Without ExitKill from here on: what the program is stopped by is a signal.
	if err := kernel.SetOptions(p.PID, 0); err != nil {
		return err
	}
	if err := kernel.Detach(p.PID, int(syscall.SIGSTOP)); err != nil {
		return err
	}
	status, err := wait(p.PID, syscall.WUNTRACED)
	if err == nil && !status.Stopped() {
		err = &Ended{status}
	}
	return err
}

// awaitLoader lets the loader run until all libraries are bound.
func (p *Program) awaitLoader() (early bool, err error) {
	loader, err := findLoader(p.PID)
	if err != nil || loader == nil {
		return false, err
	}
	if err := kernel.SetBreakpoint(p.PID, loader.notify); err != nil {
		return false, err
	}
	for signal := 0; ; {
		if err := kernel.Continue(p.PID, signal); err != nil {
			return false, err
		}
		status, err := p.stopped()
		if err != nil {
			return false, err
		}
		signal = int(status.StopSignal())
		var regs kernel.Registers
		if err := kernel.GetRegisters(p.PID, &regs); err != nil {
			return false, err
		}
		if status.StopSignal() != syscall.SIGTRAP || regs.RIP != loader.notify {
			continue // a signal for the program
		}
		signal = 0
		consistent, err := loader.consistent(p.PID)
		if err != nil {
			return false, err
		}
		if consistent {
			return true, kernel.SetBreakpoint(p.PID, 0)
		}
	}
}

// stopped waits for the traced program to stop.
func (p *Program) stopped() (syscall.WaitStatus, error) {
	status, err := wait(p.PID, 0)
	if err == nil && !status.Stopped() {
		err = &Ended{status}
	}
	return status, err
}

func wait(pid, options int) (status syscall.WaitStatus, err error) {
	for {
		_, err = syscall.Wait4(pid, &status, options, nil)
		if !errors.Is(err, syscall.EINTR) {
			return status, os.NewSyscallError("wait4", err)
		}
	}
}

// A loader is where the dynamic loader tells that its list of modules changes.
type loader struct {
	notify uint64 // a function that it calls before and behind a change
	debug  uint64 // struct r_debug
}

// Of struct r_debug, <link.h>.
const (
	debugMapAt   = 8
	debugStateAt = 24
)

// findLoader finds the loader of a program that has not begun; nil where it has none,
// or one that tells nothing.
func findLoader(pid int) (_ *loader, err error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, process.Close()) }()
	auxv, err := process.Auxv()
	if err != nil {
		return nil, err
	}
	base := auxv[procfs.AuxBase]
	if base == 0 {
		return nil, nil // linked statically
	}
	maps, err := process.Maps()
	if err != nil {
		return nil, err
	}
	for _, m := range maps {
		if m.Start != base {
			continue
		}
		file, err := process.OpenMapped(m)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		o, err := dso.ReadFile(file, info.Size())
		if err != nil {
			return nil, fmt.Errorf("read the loader %s: %w", m.Path, err)
		}
		notify, ok, err := defined(o, "_dl_debug_state")
		if err != nil || !ok {
			return nil, err
		}
		debug, ok, err := defined(o, "_r_debug")
		if err != nil || !ok {
			return nil, err
		}
		return &loader{notify: base + notify, debug: base + debug}, nil
	}
	return nil, nil
}

func defined(o *dso.Object, name string) (uint64, bool, error) {
	symbols, err := o.DynamicSymbols()
	if err != nil {
		return 0, false, err
	}
	for s := range symbols.All() {
		if s.Name == name && s.Section != elf.SHN_UNDEF {
			return s.Value, true, nil
		}
	}
	return 0, false, nil
}

// consistent reports whether the loader has a list of modules, and it is whole.
func (l *loader) consistent(pid int) (_ bool, err error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, process.Close()) }()
	memory, err := process.OpenMemory()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	var b [debugStateAt + 4]byte
	if _, err := memory.ReadAt(b[:], int64(l.debug)); err != nil {
		return false, fmt.Errorf("read the loader's state: %w", err)
	}
	list, state := b[debugMapAt:debugMapAt+8], b[debugStateAt:]
	return [8]byte(list) != [8]byte{} && [4]byte(state) == [4]byte{}, nil
}

// Resume lets the program begin. Before it, prctl(PR_SET_PDEATHSIG, 0) is to be called
// in it, as otherwise it gets a SIGCONT when this process ends.
func (p *Program) Resume() error {
	close(p.resume)
	return syscall.Kill(p.PID, syscall.SIGCONT)
}

// Kill ends a program that is held: it never begins.
func (p *Program) Kill() error {
	err := syscall.Kill(p.PID, syscall.SIGKILL)
	close(p.resume)
	<-p.ended
	return errors.Join(err, p.err)
}

// Wait waits for the end of a program that was resumed.
func (p *Program) Wait() (syscall.WaitStatus, error) {
	<-p.ended
	return p.status, p.err
}
