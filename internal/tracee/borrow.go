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
	xstate []byte           // the program's, which functions change
	chain  chain            // its way home
	away   bool             // the registers are not the program's

	callable bool // functions may be called in it
	place    CallPlace
	errnoAt  uint64 // address of its errno, once it is known

	tgid, tid   uint64 // its ids in its own pid namespace
	signal      int    // by which it tells that it is done; 0 where the program listens to all
	seccompMode int
	seccomp     seccompState
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
	if err := s.Prepare(); err != nil {
		return err
	}
	tid, err := s.lender()
	if err != nil {
		return err
	}
	b, err := s.describe(tid)
	if err != nil {
		return err
	}
	if s.threads[tid] == nil || !s.threads[tid].stopped {
		if err := s.awaitTransfers([]int{tid}); err != nil {
			return err
		}
	}
	if b.thread, err = s.stopLender(tid); err != nil {
		return err
	}
	return s.prepare(b, *s.area)
}

// Prepare finds out what Borrow has to know and takes time: called before StopAll,
// it is not the program's.
func (s *Session) Prepare() error {
	if s.area != nil {
		return nil
	}
	area, err := findScratch(s.process)
	if err == nil {
		s.area = &area
	}
	return err
}

// stopLender stops the thread to borrow.
func (s *Session) stopLender(tid int) (*thread, error) {
	t := s.threads[tid]
	if t == nil {
		if err := s.seize(tid); err != nil {
			return nil, err
		}
		t = s.threads[tid]
	}
	if err := s.checkIdentity(); err != nil {
		return nil, err
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

// lender returns the id of the thread to borrow: the main thread, as the scratch
// memory is the far end of its stack, or any other where that one has ended. Where
// all are stopped, another one where the main thread can't make several calls by
// itself.
func (s *Session) lender() (int, error) {
	state, err := s.settledState(s.process.PID())
	if err != nil {
		return 0, err
	}
	switch state {
	case 'D':
		return 0, uninterruptible(s.process.PID(), s.process.PID())
	case 'Z', 'X':
	default:
		if main := s.threads[s.process.PID()]; main != nil && main.stopped && restartBlocked(&main.regs) {
			for tid, t := range s.threads {
				if t.stopped && !restartBlocked(&t.regs) && t.regs.CS == userCodeSegment {
					return tid, nil
				}
			}
		}
		return s.process.PID(), nil
	}
	tids, err := s.process.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if tid != s.process.PID() {
			return tid, nil
		}
	}
	return 0, zombieRefusal(s.process.PID())
}

// settledState returns a thread's state. Uninterruptible sleep (D) is often a
// matter of microseconds, a page that is read or a lock, and in vfork of as long as
// the child takes to its execve, so it is looked at for a while.
func (s *Session) settledState(tid int) (byte, error) {
	for end := time.Now().Add(settling); ; time.Sleep(time.Millisecond) {
		status, err := s.process.ThreadStatus(tid)
		if err != nil {
			return 0, err
		}
		if status.State != 'D' || time.Now().After(end) {
			return status.State, nil
		}
	}
}

const settling = time.Second

// describe finds out, before the thread is stopped, what the kernel will let it
// do and how it can tell that it is done.
func (s *Session) describe(tid int) (*borrowed, error) {
	status, err := s.process.ThreadStatus(tid)
	if err != nil {
		return nil, err
	}
	return s.described(&status), nil
}

func (s *Session) described(status *procfs.Status) *borrowed {
	b := &borrowed{tgid: s.ownPID, signal: ignoredSignal(*status), seccompMode: status.Seccomp}
	if len(status.NSPIDs) > 0 {
		b.tid = uint64(status.NSPIDs[len(status.NSPIDs)-1])
	}
	return b
}

// ready checks that a stopped thread can be borrowed, and returns what brings it home. The
// extended state is good until the next one is read.
func (s *Session) ready(b *borrowed) (way home, err error) {
	t := b.thread
	if t.regs.CS != userCodeSegment {
		return way, not64BitRefusal(s.process.PID())
	}
	if on, err := kernel.SyscallUserDispatch(t.tid); err == nil && on {
		return way, api.Refusal{Code: codeDispatch, Subject: fmt.Sprintf("thread %d", t.tid),
			Detail: "its system calls are turned into signals (PR_SET_SYSCALL_USER_DISPATCH)",
			Remedy: "restart the program instead"}
	} else if err != nil && !errors.Is(err, syscall.EIO) {
		return way, err
	}
	b.regs = t.regs
	way.regs = s.wayHome(t)
	if b.seccomp, err = readSeccomp(t.tid, b.seccompMode); err != nil {
		return way, err
	}
	if err := s.checkSeccomp(b, Call{Number: sysRTSigreturn}); err != nil {
		return way, err
	}
	if known := t.state; known != nil && known.Registers.RIP == way.regs.RIP {
		b.mask, way.mask, way.xstate = known.Mask, known.Mask, known.XState
		return way, nil
	}
	if way.mask, err = kernel.GetSignalMask(t.tid); err != nil {
		return way, err
	}
	b.mask = way.mask
	if err := s.abortRestartableSequence(b, &way); err != nil {
		return way, err
	}
	n, err := kernel.GetXState(t.tid, s.xstate)
	way.xstate = s.xstate[:n]
	return way, err
}

// prepare checks that the stopped thread can be borrowed and writes its way
// home to scratch memory.
func (s *Session) prepare(b *borrowed, area scratch) error {
	t := b.thread
	way, err := s.ready(b)
	if err != nil {
		return err
	}
	n := len(way.xstate)
	b.xstate = way.xstate
	if s.held && s.last != nil && chainBytes(n) == s.last.seal+sealBytes-s.last.results {
		b.chain = *s.last
		err = b.chain.again(s.memory, &way)
	} else {
		var start uint64
		if start, err = s.place(area, t, chainBytes(n)); err != nil {
			return err
		}
		b.chain, err = prepareChain(s.memory, s.gadgets, start, &way)
	}
	if err != nil {
		return fmt.Errorf("prepare the way home of thread %d: %w", t.tid, err)
	}
	s.borrowed = b
	return nil
}

// ignoredSignal returns a signal that does nothing to the program when nobody
// traces it, or 0: by it the borrowed thread tells the tracer that it is done.
func ignoredSignal(status procfs.Status) int {
	for _, signal := range []syscall.Signal{syscall.SIGURG, syscall.SIGWINCH, syscall.SIGCHLD} {
		if !status.Caught.Has(int(signal)) {
			return int(signal)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2} {
		if status.Ignored.Has(int(signal)) {
			return int(signal)
		}
	}
	return 0
}

// maxXState is more than any CPU's extended state: AMX ends at 11,008 bytes.
const maxXState = 16 << 10

// abortRestartableSequence does to a thread within an rseq critical section
// what the kernel does when it preempts one: it goes on at the abort handler.
// The kernel would not do it later, as it finds the thread elsewhere.
func (s *Session) abortRestartableSequence(b *borrowed, way *home) error {
	c, err := kernel.GetRseqConfiguration(b.thread.tid)
	if errors.Is(err, syscall.EIO) { // older than Linux 5.13
		return nil
	}
	if err != nil {
		return err
	}
	if c.Pointer == 0 {
		return nil
	}
	var section [1]uint64
	if err := s.readWords(c.Pointer+rseqSectionOffset, section[:]); err != nil || section[0] == 0 {
		return err
	}
	var descriptor [4]uint64 // struct rseq_cs: version and flags, start_ip, post_commit_offset, abort_ip
	if err := s.readWords(section[0], descriptor[:]); err != nil {
		return err
	}
	if start, length, abort := descriptor[1], descriptor[2], descriptor[3]; b.regs.RIP-start < length {
		b.regs.RIP, way.regs.RIP = abort, abort
	}
	return nil
}

// rseqSectionOffset is where struct rseq holds the pointer to the struct
// rseq_cs of the section that the thread is in: linux/rseq.h.
const rseqSectionOffset = 8

// bringHome gives the borrowed thread its own registers and signal mask back,
// in a stop in which the kernel looks at an interrupted system call again: it
// does not when a thread leaves a system call.
func (s *Session) bringHome() error {
	b := s.borrowed
	defer func() { s.borrowed, s.last = nil, &b.chain }()
	if !b.away {
		if b.regs != b.thread.regs { // out of a restartable sequence
			if err := kernel.SetRegisters(b.thread.tid, &b.regs); err != nil {
				return err
			}
			b.thread.regs = b.regs
		}
		return b.chain.finish(s.memory)
	}
	if err := s.takeHome(b, func() bool { return s.borrowed == nil }); err != nil {
		return err
	}
	return b.chain.finish(s.memory)
}

// takeHome does that with a thread whose registers are not the program's; lost tells
// whether it has ended.
func (s *Session) takeHome(b *borrowed, lost func() bool) error {
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
		if err := s.await("bring its thread home", func() bool { return b.thread.stopped || lost() }); err != nil {
			return err
		}
		if lost() {
			return errThreadLost
		}
	}
	if err := kernel.SetSignalMask(b.thread.tid, b.mask); err != nil {
		return err
	}
	b.thread.regs = b.regs
	return kernel.SetRegisters(b.thread.tid, &b.regs)
}
