package tracee

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A borrowed thread runs system calls for the session, with its way home
// prepared.
type borrowed struct {
	thread *thread
	regs   kernel.Registers // the program's, to be put back
	mask   uint64           // likewise
	chain  uint64           // stack pointer of a call: the words of Gadgets.tail, then the frame
	away   bool             // the registers are not the program's
}

const (
	userCodeSegment = 0x33 // __USER_CS: 64-bit code
	flagsToClear    = 0x100 | 0x400 | 0x40000
	everySignal     = ^uint64(0)
)

// Borrow stops the main thread, if StopAll has not, and prepares its way home.
// Its registers are not touched before the first Call. The others run on.
func (s *Session) Borrow() error {
	if s.borrowed != nil {
		return nil
	}
	area, err := findScratch(s.process)
	if err != nil {
		return err
	}
	t, err := s.stopLender()
	if err != nil {
		return err
	}
	return s.prepare(t, area)
}

// stopLender stops the thread to borrow: the main thread, as the scratch memory
// is the far end of its stack, or any other where that one has ended.
func (s *Session) stopLender() (*thread, error) {
	tid, err := s.lender()
	if err != nil {
		return nil, err
	}
	t := s.threads[tid]
	if t == nil {
		if err := s.seize(tid); err != nil {
			return nil, err
		}
		t = s.threads[tid]
	}
	s.boost()
	s.times.borrowStart = time.Now()
	if t.stopped {
		return t, nil
	}
	if err := kernel.Interrupt(tid); err != nil {
		return nil, err
	}
	if err := s.await("stop a thread", func() bool { return t.stopped || s.threads[tid] == nil }); err != nil {
		return nil, err
	}
	if s.threads[tid] == nil {
		return nil, fmt.Errorf("stop thread %d: %w", tid, procfs.ErrGone)
	}
	return t, nil
}

// lender returns the id of the thread to borrow.
func (s *Session) lender() (int, error) {
	status, err := s.process.ThreadStatus(s.process.PID)
	if err != nil {
		return 0, err
	}
	switch status.State {
	case 'D':
		return 0, uninterruptible(s.process.PID, s.process.PID)
	case 'Z', 'X':
	default:
		return s.process.PID, nil
	}
	tids, err := s.process.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if tid != s.process.PID {
			return tid, nil
		}
	}
	return 0, zombieRefusal(s.process.PID)
}

// prepare checks that the stopped thread can be borrowed and writes its way
// home to scratch memory.
func (s *Session) prepare(t *thread, area scratch) error {
	if t.regs.CS != userCodeSegment {
		return not64BitRefusal(s.process.PID)
	}
	if on, err := kernel.SyscallUserDispatch(t.tid); err == nil && on {
		return api.Refusal{Code: codeDispatch, Subject: fmt.Sprintf("thread %d", t.tid),
			Detail: "its system calls are turned into signals (PR_SET_SYSCALL_USER_DISPATCH)",
			Remedy: "restart the program instead"}
	} else if err != nil && !errors.Is(err, syscall.EIO) {
		return err
	}
	if err := s.checkSeccomp(t); err != nil {
		return err
	}
	b := &borrowed{thread: t, regs: t.regs}
	home := homecoming{regs: homeRegisters(t.regs)}
	var err error
	if home.mask, err = kernel.GetSignalMask(t.tid); err != nil {
		return err
	}
	b.mask = home.mask
	if err := s.abortRestartableSequence(t, b, &home); err != nil {
		return err
	}
	var xstate [maxXState]byte
	n, err := kernel.GetXState(t.tid, xstate[:])
	if err != nil {
		return err
	}
	home.xstate = xstate[:n]

	tail := s.gadgets.tail()
	if b.chain, err = area.place(s.process, t, len(tail)+home.frameBytes()); err != nil {
		return err
	}
	frame, err := home.encode(b.chain + uint64(len(tail)))
	if err != nil {
		return err
	}
	if _, err := s.memory.WriteAt(append(tail, frame...), int64(b.chain)); err != nil {
		return fmt.Errorf("write the way home of thread %d at %#x: %w", t.tid, b.chain, err)
	}
	s.borrowed = b
	return nil
}

// maxXState is more than any CPU's extended state: AMX ends at 11,008 bytes.
const maxXState = 16 << 10

// abortRestartableSequence does to a thread within an rseq critical section
// what the kernel does when it preempts one: it goes on at the abort handler.
// The kernel would not do it later, as it finds the thread elsewhere.
func (s *Session) abortRestartableSequence(t *thread, b *borrowed, home *homecoming) error {
	c, err := kernel.GetRseqConfiguration(t.tid)
	if errors.Is(err, syscall.EIO) { // older than Linux 5.13
		return nil
	}
	if err != nil {
		return err
	}
	if c.Pointer == 0 {
		return nil
	}
	section, err := s.memory.Uint64(c.Pointer + rseqSectionOffset)
	if err != nil || section == 0 {
		return err
	}
	start, err := s.memory.Uint64(section + 8)
	if err != nil {
		return err
	}
	length, err := s.memory.Uint64(section + 16)
	if err != nil {
		return err
	}
	abort, err := s.memory.Uint64(section + 24)
	if err != nil {
		return err
	}
	if t.regs.RIP-start < length {
		b.regs.RIP, home.regs.RIP = abort, abort
	}
	return nil
}

// rseqSectionOffset is where struct rseq holds the pointer to the struct
// rseq_cs of the section that the thread is in: linux/rseq.h.
const rseqSectionOffset = 8

// A Call is one system call to be made inside the process.
type Call struct {
	Number uintptr
	Args   [6]uint64
}

// Call makes one system call on the borrowed thread and returns what it
// returned. The error is its errno, wrapped.
func (s *Session) Call(number uintptr, args ...uint64) (uint64, error) {
	c := Call{Number: number}
	copy(c.Args[:], args)
	result, err := s.call(c)
	if err != nil {
		return 0, err
	}
	return result, errnoOf(result, c)
}

func errnoOf(result uint64, c Call) error {
	if errno := -int64(result); errno > 0 && errno < 4096 {
		return fmt.Errorf("system call %d inside the process: %w", c.Number, syscall.Errno(errno))
	}
	return nil
}

var errThreadLost = errors.New("the borrowed thread has ended")

func (s *Session) call(c Call) (uint64, error) {
	b := s.borrowed
	if b == nil {
		return 0, errThreadLost
	}
	if err := s.checkSeccompCall(c); err != nil {
		return 0, err
	}
	regs := b.regs
	regs.RIP, regs.RSP = s.gadgets.Syscall, b.chain
	regs.RAX, regs.OrigRAX = uint64(c.Number), outsideSyscall
	regs.RDI, regs.RSI, regs.RDX = c.Args[0], c.Args[1], c.Args[2]
	regs.R10, regs.R8, regs.R9 = c.Args[3], c.Args[4], c.Args[5]
	regs.Flags &^= flagsToClear
	if err := s.leave(&regs, everySignal); err != nil {
		return 0, err
	}
	// Two stops: entering the system call, and leaving it.
	for range 2 {
		if err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
			return 0, err
		}
	}
	if err := kernel.GetRegisters(b.thread.tid, &regs); err != nil {
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

// bringHome gives the borrowed thread its own registers and signal mask back,
// in a stop in which the kernel looks at an interrupted system call again: it
// does not when a thread leaves a system call.
func (s *Session) bringHome() error {
	b := s.borrowed
	defer func() { s.borrowed = nil }()
	if !b.away {
		if b.regs != b.thread.regs { // out of a restartable sequence
			return kernel.SetRegisters(b.thread.tid, &b.regs)
		}
		return nil
	}
	if !b.thread.stopped || b.thread.status.SyscallStop() {
		if err := kernel.Interrupt(b.thread.tid); err != nil {
			return err
		}
		if b.thread.stopped {
			b.thread.stopped = false
			if err := kernel.Continue(b.thread.tid, 0); err != nil {
				return err
			}
		}
		if err := s.await("bring its thread home", func() bool { return b.thread.stopped || s.borrowed == nil }); err != nil {
			return err
		}
		if s.borrowed == nil {
			return errThreadLost
		}
	}
	if err := kernel.SetSignalMask(b.thread.tid, b.mask); err != nil {
		return err
	}
	return kernel.SetRegisters(b.thread.tid, &b.regs)
}
