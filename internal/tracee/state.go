package tracee

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A ThreadState is a stopped thread as it would go on, so that it can also go on
// elsewhere.
type ThreadState struct {
	TID int
	// Registers are those of user mode: a system call that the stop has interrupted is
	// to be made again, by its instruction, and a restartable sequence was left by its
	// abort handler.
	Registers kernel.Registers
	Mask      uint64 // blocked signals
	XState    []byte // as NT_X86_XSTATE
	Rseq      kernel.RseqConfiguration
	// Timed tells that the call to be made again has a limit of time, of which the kernel
	// knows what is left (restart_syscall). Resumed tells that the call was interrupted
	// before, and has gone on with the rest of its time.
	Timed, Resumed bool
}

// ThreadStates returns the states of all threads, which StopAll has stopped, the main
// thread first.
func (s *Session) ThreadStates() ([]ThreadState, error) {
	states := make([]ThreadState, 0, len(s.threads))
	for tid, t := range s.threads {
		if !t.stopped {
			return nil, fmt.Errorf("read state of thread %d: it is not stopped", tid)
		}
		if t.regs.CS != userCodeSegment {
			return nil, not64BitRefusal(s.process.PID())
		}
		state := ThreadState{TID: tid, Timed: restartBlocked(&t.regs)}
		state.Resumed = state.Timed && t.regs.OrigRAX == sysRestartSyscall
		b := &borrowed{thread: t, regs: t.regs}
		way := home{regs: homeRegisters(t.regs)}
		if err := s.abortRestartableSequence(b, &way); err != nil {
			return nil, err
		}
		state.Registers = way.regs
		state.Registers.OrigRAX = outsideSyscall
		if err := s.nameRestarted(t, &state.Registers); err != nil {
			return nil, err
		}
		var err error
		if state.Mask, err = kernel.GetSignalMask(tid); err != nil {
			return nil, err
		}
		n, err := kernel.GetXState(tid, s.xstate)
		if err != nil {
			return nil, err
		}
		state.XState = slices.Clone(s.xstate[:n])
		if state.Rseq, err = kernel.GetRseqConfiguration(tid); err != nil && !errors.Is(err, syscall.EIO) {
			return nil, err
		}
		states = append(states, state)
	}
	main := s.process.PID()
	slices.SortFunc(states, func(a, b ThreadState) int {
		if (a.TID == main) != (b.TID == main) {
			return cmp.Compare(btoi(b.TID == main), btoi(a.TID == main))
		}
		return cmp.Compare(a.TID, b.TID)
	})
	for _, state := range states {
		s.threads[state.TID].state = &state
	}
	return states, nil
}

// wayHome returns the registers that rt_sigreturn must load so that a stopped thread goes
// on. The kernel has forgotten what restart_syscall would go on with by then, and would
// answer EINTR: the call is made anew, where the code tells which it was.
func (s *Session) wayHome(t *thread) kernel.Registers {
	regs := homeRegisters(t.regs)
	if err := s.nameRestarted(t, &regs); err != nil {
		return homeRegisters(t.regs)
	}
	return regs
}

// nameRestarted gives a thread that is to go on with a system call by restart_syscall,
// as it was interrupted more than once, that call to make: what restart_syscall would go
// on with only this thread's kernel knows. Its number stands in the instruction before
// the one that called it (mov $number, %eax; syscall), or else Options.Interrupted may
// know it.
func (s *Session) nameRestarted(t *thread, regs *kernel.Registers) error {
	if regs.RAX != sysRestartSyscall || regs.RIP == t.regs.RIP {
		return nil // it makes no call again, or another
	}
	const movEAX, movLength = 0xb8, 5
	var code [movLength]byte
	if _, err := s.memory.ReadAt(code[:], int64(regs.RIP-movLength)); err == nil && code[0] == movEAX {
		switch number := binary.LittleEndian.Uint32(code[1:]); number {
		case syscall.SYS_NANOSLEEP, syscall.SYS_CLOCK_NANOSLEEP, syscall.SYS_POLL, syscall.SYS_FUTEX:
			regs.RAX = uint64(number)
			return nil
		}
	}
	if s.options.Interrupted != nil {
		if number := s.options.Interrupted(t.tid); number != 0 {
			regs.RAX = number
			return nil
		}
	}
	return api.Refusal{Code: codeRestarted, Subject: fmt.Sprintf("thread %d of process %d", t.tid, s.process.PID()),
		Detail: "it goes on with a system call that was interrupted before, and its code does not tell which",
		Remedy: "try again when that wait has ended"}
}

// Resumed reports whether a session was refused since a thread goes on with a system call
// that was interrupted before: of one that waits by then it can be known which it is.
func Resumed(err error) bool {
	return slices.ContainsFunc(api.Refusals(err), func(r api.Refusal) bool { return r.Code == codeRestarted })
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// BorrowThread is Borrow of a certain thread, which StopAll has stopped and whose status
// the caller has read since. Only one is borrowed at a time: GiveBack comes before the
// next. AskEach is faster for many.
func (s *Session) BorrowThread(status *procfs.Status) error {
	tid := status.PID
	if s.borrowed != nil {
		return fmt.Errorf("borrow thread %d: another one is borrowed", tid)
	}
	t := s.threads[tid]
	if t == nil || !t.stopped {
		return fmt.Errorf("borrow thread %d: it is not stopped", tid)
	}
	if err := s.Prepare(); err != nil {
		return err
	}
	b := s.described(status)
	b.thread = t
	return s.prepare(b, *s.area)
}

// GiveBack brings the borrowed thread home: it has its own registers and signal mask
// again, and stays stopped.
func (s *Session) GiveBack() error {
	if s.borrowed == nil {
		return errThreadLost
	}
	return s.bringHome()
}
