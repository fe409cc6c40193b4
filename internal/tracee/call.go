package tracee

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Call is one system call to be made inside the process.
type Call struct {
	Number uint64
	Args   [6]uint64
}

// Call makes one system call on the borrowed thread and returns what it
// returned. The error is its errno, wrapped.
func (s *Session) Call(number uint64, args ...uint64) (uint64, error) {
	c := Call{Number: number}
	copy(c.Args[:], args)
	results, err := s.Run([]Call{c})
	if err != nil {
		return 0, err
	}
	return results[0], c.Err(results[0])
}

// Err returns the error that a result of the call stands for.
func (c Call) Err(result uint64) error {
	if errno := -int64(result); errno > 0 && errno < 4096 {
		return fmt.Errorf("system call %d inside the process: %w", c.Number, syscall.Errno(errno))
	}
	return nil
}

var errThreadLost = fmt.Errorf("the borrowed thread has ended: %w", procfs.ErrGone)

// Run makes system calls on the borrowed thread, in order and whatever they
// return, and returns their results (see Call.Err). Up to maxChain of them cost
// one resume and one stop.
func (s *Session) Run(calls []Call) ([]uint64, error) {
	b := s.borrowed
	if b == nil {
		return nil, errThreadLost
	}
	for _, c := range calls {
		if err := s.checkSeccomp(b, c); err != nil {
			return nil, err
		}
	}
	chained := s.chained()
	results := make([]uint64, 0, len(calls))
	for len(calls) > 0 {
		n := min(len(calls), maxChain)
		run := s.runChained
		if !chained {
			n, run = 1, s.runStepped
		}
		part, err := run(calls[:n])
		if err != nil {
			return results, err
		}
		results, calls = append(results, part...), calls[n:]
	}
	return results, nil
}

// RunAtOnce is Run for calls that are all made, whatever becomes of the tracer:
// up to MaxAtOnce of them, in a thread that needs no stop between two. Where there
// is none it returns ErrNotAtOnce, and has made no call.
func (s *Session) RunAtOnce(calls []Call) ([]uint64, error) {
	if s.borrowed == nil {
		return nil, errThreadLost
	}
	if len(calls) > 1 && (len(calls) > MaxAtOnce || s.AtOnce() != nil) {
		return nil, ErrNotAtOnce
	}
	if len(calls) <= 1 || s.chained() {
		return s.Run(calls)
	}
	for _, c := range calls {
		if err := s.checkSeccomp(s.borrowed, c); err != nil {
			return nil, err
		}
	}
	return s.runWatched(calls)
}

// AtOnce returns ErrNotAtOnce where RunAtOnce would.
func (s *Session) AtOnce() error {
	if s.borrowed == nil {
		return errThreadLost
	}
	if s.borrowed.restartBlocked() {
		return ErrNotAtOnce
	}
	return nil
}

// MaxAtOnce is how many calls RunAtOnce makes.
const MaxAtOnce = maxChain

// ErrNotAtOnce is that a thread can't make several calls by itself: it is to go on
// with a call that knows the time that is left (nanosleep, poll), and no other
// thread is stopped.
var ErrNotAtOnce = errors.New("no thread can make several system calls at once")

// chained reports whether the borrowed thread makes several calls by itself.
func (s *Session) chained() bool {
	b := s.borrowed
	return s.gadgets.Complete() && b.signal != 0 && !b.restartBlocked() && s.checkSeccomp(b, b.done()) == nil
}

// restartBlocked reports whether the thread is to go on with a system call by
// restart_syscall, which knows the time that is left. An rt_sigreturn makes the
// kernel forget it, so there may be none as long as the tracer lives.
func (b *borrowed) restartBlocked() bool { return restartBlocked(&b.regs) }

func restartBlocked(regs *kernel.Registers) bool {
	return int64(regs.OrigRAX) >= 0 && -int64(regs.RAX) == restartBlock
}

// done is the call by which the thread tells the tracer that it is done.
func (b *borrowed) done() Call {
	return Call{Number: syscall.SYS_TGKILL, Args: [6]uint64{b.tgid, b.tid, uint64(b.signal)}}
}

// runChained lets the thread make all the calls, store their results and send
// itself the signal at whose delivery it stops. Without a tracer the signal is
// ignored, and the thread goes home.
func (s *Session) runChained(calls []Call) ([]uint64, error) {
	b := s.borrowed
	mask := everySignal &^ (1 << (b.signal - 1))
	regs, err := b.chain.write(s.memory, append(calls[:len(calls):len(calls)], b.done()), &b.regs, mask)
	if err != nil {
		return nil, err
	}
	if err := s.runToSignal(&regs, mask); err != nil {
		return nil, err
	}
	results := make([]uint64, len(calls))
	return results, b.chain.readResults(s.memory, results)
}

// runToSignal lets the thread run from these registers until it has sent itself the
// signal, and stands at its way home.
func (s *Session) runToSignal(regs *kernel.Registers, mask uint64) error {
	if err := s.leave(regs, mask); err != nil {
		return err
	}
	return s.runTo(regs, s.borrowed.chain.homeTail)
}

// runTo lets the thread run on until it has sent itself the signal and its stack pointer
// is at an address.
func (s *Session) runTo(regs *kernel.Registers, stack uint64) error {
	b := s.borrowed
	arrived := func(status kernel.WaitStatus) bool { return status.Event() == 0 && status.Signal() == b.signal }
	for {
		if err := s.resumeUntil(kernel.Continue, arrived); err != nil {
			return err
		}
		// Somebody else may send the same signal meanwhile; it is one that the
		// program ignores.
		if err := kernel.GetRegisters(b.thread.tid, regs); err != nil {
			return err
		}
		if regs.RSP == stack {
			return nil
		}
	}
}

// Around lets the borrowed thread make a system call, runs f while the thread is held
// behind it, and lets it make a second one, which it makes whatever becomes of the tracer
// or of f. Where there is no thread that can, it returns ErrNotAtOnce, and has made none.
func (s *Session) Around(first Call, f func() error, second Call) error {
	if err := s.AtOnce(); err != nil {
		return err
	}
	calls := []Call{first, second}
	if err := s.Permits(calls); err != nil {
		return err
	}
	results, err := s.watch(calls, func(i int, result uint64) error {
		if i > 0 {
			return nil
		}
		if err := first.Err(result); err != nil {
			return err
		}
		return s.guard(func(*Session) error { return f() })
	})
	if err != nil {
		return err
	}
	return second.Err(results[1])
}

// runWatched lets the thread make all the calls as runChained does, but stops it at
// the begin and the end of each: so it can be told where it is, and what the calls
// returned, in a program that listens to all signals, or whose code has nothing that
// stores a result. Without a tracer there are no stops, and the thread goes home.
func (s *Session) runWatched(calls []Call) ([]uint64, error) {
	return s.watch(calls, func(int, uint64) error { return nil })
}

// watch is runWatched that tells each what each call has returned. Its first error is
// returned when all calls are made.
func (s *Session) watch(calls []Call, each func(i int, result uint64) error) ([]uint64, error) {
	b := s.borrowed
	regs, err := b.chain.writeOnly(s.memory, calls, &b.regs, everySignal)
	if err != nil {
		return nil, err
	}
	if err := s.leave(&regs, everySignal); err != nil {
		return nil, err
	}
	results := make([]uint64, len(calls))
	var told error
	for i := range calls {
		// Its begin and its end; before it, those of the rt_sigreturn that leads to it.
		stops := 4
		if i == 0 {
			stops = 2
		}
		for range stops {
			if err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
				return nil, err
			}
		}
		if err := kernel.GetRegisters(b.thread.tid, &regs); err != nil {
			return nil, err
		}
		results[i] = regs.RAX
		if told == nil {
			told = each(i, regs.RAX)
		}
	}
	if regs.RSP != b.chain.homeTail {
		return nil, fmt.Errorf("thread %d is not where its calls end", b.thread.tid)
	}
	return results, told
}

// runStepped makes one call with a stop at its entry and one at its exit.
func (s *Session) runStepped(calls []Call) ([]uint64, error) {
	regs := calls[0].registers(&s.borrowed.regs, s.gadgets.Syscall, s.borrowed.chain.homeTail)
	result, err := s.makeCall(&regs)
	if err != nil {
		return nil, err
	}
	return []uint64{result}, nil
}

// makeCall makes the system call that the registers are set for.
func (s *Session) makeCall(regs *kernel.Registers) (uint64, error) {
	if err := s.leave(regs, everySignal); err != nil {
		return 0, err
	}
	for range 2 {
		if err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
			return 0, err
		}
	}
	if err := kernel.GetRegisters(s.borrowed.thread.tid, regs); err != nil {
		return 0, err
	}
	return regs.RAX, nil
}

// leave gives the borrowed thread registers that are not the program's. The
// order matters: from these registers the thread comes home by itself and gets
// its signal mask back on the way.
func (s *Session) leave(regs *kernel.Registers, mask uint64) error {
	b := s.borrowed
	if err := kernel.SetRegisters(b.thread.tid, regs); err != nil {
		return err
	}
	b.away = true
	return kernel.SetSignalMask(b.thread.tid, mask)
}

// resumeUntil lets the borrowed thread run until it makes the stop that is
// wanted. Job-control stops that fall between are passed over: the kernel takes
// them up at the detach.
func (s *Session) resumeUntil(resume func(tid, signal int) error, wanted func(kernel.WaitStatus) bool) error {
	b := s.borrowed
	for {
		b.thread.stopped = false
		if err := resume(b.thread.tid, 0); err != nil {
			return err
		}
		if err := s.await("make a system call inside", func() bool { return b.thread.stopped || s.borrowed == nil }); err != nil {
			return err
		}
		switch status := b.thread.status; {
		case s.borrowed == nil:
			return errThreadLost
		case wanted(status):
			return nil
		case status.Event() != kernel.EventStop:
			return fmt.Errorf("run a system call in thread %d: it stopped with signal %d", b.thread.tid, status.Signal())
		}
	}
}
