package tracee

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

const seizeOptions = kernel.TraceSysGood | kernel.TraceClone | kernel.TraceExec

// StopAll stops every thread of the process, those being born included. They
// run on when the session ends.
func (s *Session) StopAll() error {
	if err := s.seizeAll(); err != nil {
		return err
	}
	if err := s.checkIdentity(); err != nil {
		return err
	}
	if err := s.awaitTransfers(slices.Collect(maps.Keys(s.threads))); err != nil {
		return err
	}
	s.boost()
	s.times.stopStart = time.Now()
	for {
		for tid, t := range s.threads {
			if t.stopped {
				continue
			}
			if err := kernel.Interrupt(tid); err != nil && !gone(err) {
				return err
			}
		}
		if err := s.await("stop its threads", s.allStopped); err != nil {
			return err
		}
		// Every thread that a seized one starts is seized by the kernel, so a
		// second look finds something only where a thread was missed.
		count, err := s.process.ThreadCount()
		if err != nil {
			return err
		}
		if count == len(s.threads) {
			s.held = true
			return nil
		}
		fresh, err := s.seizeNew()
		if err != nil {
			return err
		}
		if fresh == 0 {
			s.held = true // the rest are zombies
			return nil
		}
	}
}

func (s *Session) allStopped() bool {
	for _, t := range s.threads {
		if !t.stopped {
			return false
		}
	}
	return true
}

// seizeAll seizes every thread of the process without stopping any.
func (s *Session) seizeAll() error {
	for {
		fresh, err := s.seizeNew()
		if err != nil {
			return err
		}
		if fresh == 0 {
			if len(s.threads) == 0 {
				return fmt.Errorf("seize process %d: %w", s.process.PID(), procfs.ErrGone)
			}
			return nil
		}
	}
}

// checkIdentity makes sure, once threads are seized, that the process still runs
// the program whose memory and code were looked at. An execve after that is an
// event that a seized thread stops for, or takes it away.
func (s *Session) checkIdentity() error {
	now, err := s.process.Auxv()
	if err != nil {
		return err
	}
	if !maps.Equal(now, s.options.Identity) {
		return fmt.Errorf("trace process %d: it has become another program: %w", s.process.PID(), procfs.ErrGone)
	}
	return nil
}

// seizeNew seizes the threads that are not seized yet and returns how many.
func (s *Session) seizeNew() (fresh int, err error) {
	tids, err := s.process.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if s.threads[tid] != nil {
			continue
		}
		switch err := s.seize(tid); {
		case err == nil:
			fresh++
		case gone(err), errors.Is(err, errDeadThread):
		default:
			return fresh, err
		}
	}
	return fresh, nil
}

var errDeadThread = errors.New("the thread has ended")

// seize makes this OS thread the tracer of one thread, and of those it starts.
func (s *Session) seize(tid int) error { return s.seizeWith(tid, seizeOptions) }

func (s *Session) seizeWith(tid, options int) error {
	switch err := kernel.Seize(tid, options); {
	case errors.Is(err, syscall.EPERM):
		if err := s.explainEPERM(tid, err); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	s.threads[tid] = &thread{tid: tid}
	// The number may have passed to a thread of another process between the
	// look at the task folder and the seizing. Ending this OS thread, which
	// the error leads to, lets it go; it was never stopped.
	if !s.process.HasThread(tid) {
		return fmt.Errorf("seize thread %d of process %d: %w", tid, s.process.PID(), procfs.ErrGone)
	}
	return nil
}

// explainEPERM finds out why a thread could not be seized; nil means that it is
// seized already, as a thread that a seized one has just started.
func (s *Session) explainEPERM(tid int, err error) error {
	status, statusErr := s.process.ThreadStatus(tid)
	switch {
	case errors.Is(statusErr, fs.ErrNotExist):
		return errDeadThread
	case statusErr != nil:
		return statusErr
	case status.State == 'Z' || status.State == 'X':
		return errDeadThread
	case status.TracerPID == kernel.ThreadID():
		return nil
	case status.TracerPID != 0:
		return tracedRefusal(s.process.PID(), status.TracerPID)
	}
	return fmt.Errorf("trace process %d: %w", s.process.PID(), errors.Join(api.ErrNotPermitted, err))
}

// await handles what the tracees do until done, or until the stop timeout has
// passed.
func (s *Session) await(what string, done func() bool) error {
	if done() {
		return nil
	}
	deadline := time.Now().Add(s.options.StopTimeout)
	for !done() {
		tid, status, err := s.waiter.Wait(deadline)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return s.unstoppable(what)
		case errors.Is(err, syscall.ECHILD):
			return fmt.Errorf("%s: process %d: %w", what, s.process.PID(), procfs.ErrGone)
		case err != nil:
			return err
		}
		if err := s.handle(tid, status); err != nil && !gone(err) {
			return err
		}
		if s.execed {
			return fmt.Errorf("%s: process %d became another program: %w", what, s.process.PID(), procfs.ErrGone)
		}
	}
	return nil
}

// handle takes note of one thing that a tracee did.
func (s *Session) handle(tid int, status kernel.WaitStatus) error {
	t := s.threads[tid]
	if status.Exited() {
		delete(s.threads, tid)
		if s.borrowed != nil && s.borrowed.thread.tid == tid {
			s.borrowed = nil
		}
		if t != nil && t.lane != nil {
			t.lane.lost = true
		}
		return nil
	}
	if t == nil {
		// Born of a seized thread, and seen before its parent's event. What
		// clone makes need not be a thread of this process.
		if !s.process.HasThread(tid) {
			return kernel.Detach(tid, 0)
		}
		t = &thread{tid: tid}
		s.threads[tid] = t
	}
	t.status = status
	switch {
	case status.SyscallStop():
		t.stopped = true
		return nil
	case status.Event() == kernel.EventStop:
		t.stopped = true
		return s.noteStop(t)
	case status.Event() == kernel.EventExec:
		// The memory that the session knows is no more. The thread is let go
		// with the others.
		t.stopped = true
		s.execed = true
		return nil
	case s.away(t):
		// All its signals are blocked: this is the one that the caller asked
		// for, or a fault.
		t.stopped = true
		return nil
	case status.Event() != 0:
		return s.passOn(t, 0)
	}
	return s.passOn(t, status.Signal())
}

// away reports whether the thread's registers are not the program's.
func (s *Session) away(t *thread) bool {
	return s.borrowed != nil && s.borrowed.thread == t && s.borrowed.away || t.lane != nil && t.lane.away
}

// noteStop reads the registers of a thread that has stopped, and mends at once
// what the stop did to a system call.
func (s *Session) noteStop(t *thread) error {
	if s.away(t) {
		return nil
	}
	if err := kernel.GetRegisters(t.tid, &t.regs); err != nil {
		return err
	}
	if repairInterrupt(&t.regs) {
		return kernel.SetRegisters(t.tid, &t.regs)
	}
	return nil
}

// passOn lets a thread go on from a stop that nobody asked for, with the signal
// that it is about to receive, and asks for its stop again: any stop clears the
// request. Of a signal that the program ignores, which wakes a traced thread
// alone, nothing must show.
func (s *Session) passOn(t *thread, signal int) error {
	if err := s.noteStop(t); err != nil {
		return err
	}
	if err := kernel.Interrupt(t.tid); err != nil {
		return err
	}
	return kernel.Continue(t.tid, signal)
}

// unstoppable says which threads did not stop in time, and why.
func (s *Session) unstoppable(what string) error {
	missing := "none is missing"
	for tid, t := range s.threads {
		if t.stopped {
			continue
		}
		status, err := s.process.ThreadStatus(tid)
		if err != nil {
			continue
		}
		if status.State == 'D' {
			return uninterruptible(s.process.PID(), tid)
		}
		missing = fmt.Sprintf("thread %d is in state %c", tid, status.State)
		if call, err := s.process.Syscall(tid); err == nil {
			missing += fmt.Sprintf(", %+v", call)
		}
	}
	return fmt.Errorf("%s: process %d: %s after %v: %w", what, s.process.PID(), missing, s.options.StopTimeout, os.ErrDeadlineExceeded)
}
