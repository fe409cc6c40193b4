package tracee

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Options say how a session goes about it. The zero value is usable.
type Options struct {
	// StopTimeout bounds the wait for threads to stop, and for each system
	// call inside; 0 is DefaultStopTimeout.
	StopTimeout time.Duration
	// Avoid are address ranges whose code the session must not rely on,
	// because the caller is about to change it.
	Avoid []Range
	// Identity is the auxiliary vector of the program that the session is meant
	// for, as it was when the caller looked at it; nil takes the one that runs
	// now. Another one means that the process became another program by execve.
	Identity procfs.Auxv
	// Interrupted tells of a stopped thread that goes on with a system call that was
	// interrupted before (restart_syscall), and whose code does not tell which, its
	// number, where the caller knows; 0 is not known. nil knows none.
	Interrupted func(tid int) uint64
	// Ordinary leaves the tracing thread at its scheduling policy.
	Ordinary bool
}

// A Range is the addresses from Start up to, not including, End.
type Range struct{ Start, End uint64 }

// DefaultStopTimeout is what a thread gets to stop. One in an uninterruptible
// sleep (state D) does not stop before it has ended.
const DefaultStopTimeout = 2 * time.Second

// A Session is the tracer's view of one process. It is used by the function
// given to Do and on its goroutine only.
type Session struct {
	process *procfs.Process
	memory  *procfs.Memory
	pagemap *procfs.Pagemap
	options Options

	waiter   *kernel.Waiter
	threads  map[int]*thread
	borrowed *borrowed
	lanes    []*lane // of threads that are borrowed together
	held     bool    // StopAll has stopped all threads
	last     *chain  // of the thread that was given back last
	gadgets  Gadgets
	area     *scratch // nil before Prepare
	journal  []undo
	xstate   []byte // room to read one thread's extended state
	ownPID   uint64 // the process's id in its own pid namespace
	execed   bool

	policy  kernel.SchedulingPolicy // of the tracing thread, before the boost
	boosted bool
	times   Times
}

// An undo takes back one change to the process.
type undo struct {
	what string
	back func() error
}

// Times tell how long the program was held up.
type Times struct {
	Pause  time.Duration // every thread stopped: first interrupt to last resume
	Borrow time.Duration // one thread borrowed: its interrupt to its resume

	stopStart, borrowStart time.Time
}

// Do runs f with a session of the process and ends the session, whatever f
// does: after Do the process runs untraced, as it did before. When f fails, what
// the session's journal holds is undone first.
//
// It returns f's error joined with any of the session's own. Refusals
// (api.Refusal) come before any thread was stopped or registers were touched; a
// process that is gone wraps procfs.ErrGone.
func Do(ctx context.Context, process *procfs.Process, options Options, f func(*Session) error) (Times, error) {
	var times Times
	var err error
	kernel.OnOwnThread(func() { times, err = session(ctx, process, options, f) })
	var left *unfinished
	if errors.As(err, &left) {
		if err = settle(ctx, process, options, left); err == nil {
			kernel.OnOwnThread(func() { times, err = session(ctx, process, options, f) })
		}
	}
	if err != nil && !errors.Is(err, procfs.ErrGone) && ends(process, err) {
		err = fmt.Errorf("%w: %w", procfs.ErrGone, err)
	}
	return times, err
}

// settle brings a process in order that a session has left by its death.
func settle(ctx context.Context, process *procfs.Process, options Options, left *unfinished) (err error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		kernel.OnOwnThread(func() {
			_, err = session(ctx, process, options, func(s *Session) error { return s.settle(left) })
		})
		if !errors.Is(err, errOnItsWay) {
			return err
		}
		if time.Now().After(end) {
			return noScratchRefusal(process.PID(), err.Error())
		}
	}
}

// ends reports whether a failed session's process has ended. Where the error is
// that a thread is gone, all of them may just be going.
func ends(process *procfs.Process, err error) bool {
	const going = 100
	for n := 0; ; n++ {
		stat, statErr := process.Stat()
		if statErr != nil || stat.Zombie() && stat.Threads <= 1 {
			return true
		}
		if n == going || !gone(err) && !errors.Is(err, errDeadThread) && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
}

func session(ctx context.Context, process *procfs.Process, options Options, f func(*Session) error) (times Times, err error) {
	if options.StopTimeout == 0 {
		options.StopTimeout = DefaultStopTimeout
	}
	if err := ctx.Err(); err != nil {
		return Times{}, err
	}
	status, err := Check(process)
	if err != nil {
		return Times{}, err
	}
	if options.Identity == nil {
		if options.Identity, err = process.Auxv(); err != nil {
			return Times{}, err
		}
	}
	s := &Session{process: process, options: options, threads: make(map[int]*thread), xstate: make([]byte, maxXState), ownPID: uint64(process.PID())}
	if n := len(status.NSPIDs); n > 0 {
		s.ownPID = uint64(status.NSPIDs[n-1])
	}
	if s.memory, err = process.OpenMemoryForWriting(); err != nil {
		return Times{}, err
	}
	defer func() { err = errors.Join(err, s.memory.Close()) }()
	if s.pagemap, err = process.OpenPagemap(); err != nil {
		return Times{}, err
	}
	defer func() { err = errors.Join(err, s.pagemap.Close()) }()
	if s.waiter, err = kernel.NewWaiter(); err != nil {
		return Times{}, err
	}
	defer func() { err = errors.Join(err, s.waiter.Close()) }()
	if err = s.waiter.Tick(options.StopTimeout / 8); err != nil {
		return Times{}, err
	}
	if s.gadgets, err = findGadgets(process, s.memory, options.Avoid); err != nil {
		return Times{}, err
	}
	defer RestCollector()()

	err = s.guard(f)
	if err != nil {
		err = errors.Join(err, s.undo())
	}
	err = errors.Join(err, s.release())
	return s.times, err
}

// guard runs f and turns a panic into an error, so that nothing skips the undo.
func (s *Session) guard(f func(*Session) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a session of process %d: %v\n%s", s.process.PID(), p, debug.Stack())
		}
	}()
	return f(s)
}

// undo takes back what the journal holds, the last change first.
func (s *Session) undo() error {
	var errs []error
	for i := len(s.journal) - 1; i >= 0; i-- {
		if err := s.journal[i].back(); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.journal[i].what, err))
		}
	}
	s.journal = nil
	return errors.Join(errs...)
}

// release brings the borrowed thread home and lets every thread run on,
// untraced.
func (s *Session) release() error {
	var errs []error
	if s.borrowed != nil {
		if err := s.bringHome(); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	if len(s.lanes) > 0 {
		if err := s.leaveLanes(); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	for tid, t := range s.threads {
		// A thread that does not stop is let go by the end of this OS thread.
		if t.stopped {
			if err := kernel.Detach(tid, 0); err != nil && !gone(err) {
				errs = append(errs, err)
			}
		}
	}
	now := time.Now()
	if !s.times.stopStart.IsZero() {
		s.times.Pause = now.Sub(s.times.stopStart)
	}
	if !s.times.borrowStart.IsZero() {
		s.times.Borrow = now.Sub(s.times.borrowStart)
	}
	clear(s.threads)
	if s.boosted {
		errs = append(errs, kernel.SetThreadScheduling(s.policy))
	}
	return errors.Join(errs...)
}

// boost lets the tracing thread run before every ordinary thread: where all
// processors are busy, that makes a pause a hundred times shorter. Without the
// right to it the session is slower, and nothing else.
func (s *Session) boost() {
	if s.boosted || s.options.Ordinary {
		return
	}
	policy, err := kernel.ThreadScheduling()
	if err != nil {
		return
	}
	if kernel.SetThreadScheduling(kernel.FirstInFirstOut) == nil {
		s.policy, s.boosted = policy, true
	}
}

// readWords reads little-endian words of 8 bytes.
func (s *Session) readWords(address uint64, words []uint64) error {
	buf := make([]byte, 8*len(words))
	if _, err := s.memory.ReadAt(buf, int64(address)); err != nil {
		return err
	}
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(buf[8*i:])
	}
	return nil
}

// Memory is the process's memory by address, for reading.
func (s *Session) Memory() *procfs.Memory { return s.memory }

// Write changes memory of the process, write-protected or not, and notes in the
// journal what was there. An aligned write of 8 bytes is seen whole by running
// threads.
func (s *Session) Write(address uint64, data []byte) error {
	before := make([]byte, len(data))
	if _, err := s.memory.ReadAt(before, int64(address)); err != nil {
		return fmt.Errorf("write %d bytes at %#x of process %d: %w", len(data), address, s.process.PID(), err)
	}
	return s.WriteOver(address, before, data)
}

// WriteOver is Write for who knows what was there: as many bytes.
func (s *Session) WriteOver(address uint64, before, data []byte) error {
	if _, err := s.memory.WriteAt(data, int64(address)); err != nil {
		return fmt.Errorf("write %d bytes at %#x of process %d: %w", len(data), address, s.process.PID(), err)
	}
	s.journal = append(s.journal, undo{
		what: fmt.Sprintf("write of %d bytes at %#x", len(data), address),
		back: func() error {
			_, err := s.memory.WriteAt(before, int64(address))
			return err
		},
	})
	return nil
}

// gone reports whether an error says that a thread or the process is no more.
func gone(err error) bool {
	return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ECHILD) || errors.Is(err, procfs.ErrGone)
}
