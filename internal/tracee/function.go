package tracee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Function is a call of a C function of the program, by the System V calling
// convention, with integers and pointers.
type Function struct {
	Address uint64
	Args    [6]uint64
	// Data is copied into the program for the length of the call. An argument
	// whose Pointers is set counts from its first byte, and becomes an address.
	Data     []byte
	Pointers [6]bool
	// Calls are the system calls that the function may make; where the thread's
	// seccomp filters forbid one, the call is refused.
	Calls []uint64
}

// ErrStillRunning is that a function has not returned within the StopTimeout.
// It can't be broken off, as it may hold locks: its thread is let go in the
// middle of it, and goes home by itself when it has returned.
var ErrStillRunning = errors.New("the function has not returned yet; its thread will go on where it was when it has")

const (
	callStack       = 512 << 10 // of a function, the guard included
	callGuard       = 2 * pageSize
	maxFunctionData = 64 << 10

	// Faults are not blocked while a function runs: of one that is blocked the
	// kernel takes the program's handler away.
	faultSignals = 1<<(syscall.SIGSEGV-1) | 1<<(syscall.SIGBUS-1) | 1<<(syscall.SIGFPE-1) |
		1<<(syscall.SIGILL-1) | 1<<(syscall.SIGTRAP-1) | 1<<(syscall.SIGSYS-1)

	// A pending call is marked by this with the thread's id.
	pendingMagic = 0x76_4f_53_f1 << 32
)

// CallFunction calls a function on the thread that BorrowForCall has borrowed and
// returns what it left in rax. The other threads run on, so locks that they hold
// will be given back.
//
// The function has a stack of its own, mapped for it. What stands on it leads on
// to its munmap and home, whether anybody traces the thread or not:
//
//	data
//	frame     munmap of this stack, with the stack pointer at the last words in
//	          scratch memory: store, (rbx), home tail, home frame
//	sigreturn at its entry a living tracer stops the thread
//	(rbx)
//	store     of the result; where the function returns to
//
// The word that munmap's result goes to holds, until then, a mark that the call is
// pending: no other session may write a way home to the same memory.
func (s *Session) CallFunction(f Function) (uint64, error) {
	b := s.borrowed
	switch {
	case b == nil:
		return 0, errThreadLost
	case !b.callable:
		return 0, fmt.Errorf("call a function in thread %d: it was not borrowed for that", b.thread.tid)
	case len(f.Data) > maxFunctionData:
		return 0, fmt.Errorf("call a function in thread %d: %d bytes of data are too many", b.thread.tid, len(f.Data))
	}
	for _, number := range slices.Concat(f.Calls, []uint64{syscall.SYS_MMAP, syscall.SYS_MPROTECT, syscall.SYS_MUNMAP}) {
		if err := s.checkSeccomp(b, Call{Number: number}); err != nil {
			return 0, err
		}
	}
	if err := s.awaitConsistent(b.place.State); err != nil {
		return 0, err
	}
	result, err := s.keepErrno(func() (uint64, error) { return s.callOnNewStack(f) })
	if err != nil && !errors.Is(err, ErrStillRunning) {
		err = fmt.Errorf("call function %#x of process %d: %w", f.Address, s.process.PID(), err)
	}
	return result, err
}

// keepErrno lets call leave the thread's errno as it is: the program may be about
// to read it.
func (s *Session) keepErrno(call func() (uint64, error)) (uint64, error) {
	b := s.borrowed
	if b.place.Errno == 0 {
		return call()
	}
	if b.errnoAt == 0 {
		at, err := s.callOnNewStack(Function{Address: b.place.Errno})
		if err != nil {
			return 0, err
		}
		b.errnoAt = at
	}
	before, after := make([]byte, 4), make([]byte, 4)
	if _, err := s.memory.ReadAt(before, int64(b.errnoAt)); err != nil {
		return 0, err
	}
	result, err := call()
	if s.borrowed == nil {
		return result, err
	}
	_, readErr := s.memory.ReadAt(after, int64(b.errnoAt))
	if readErr == nil && !bytes.Equal(before, after) {
		_, readErr = s.memory.WriteAt(before, int64(b.errnoAt))
	}
	return result, errors.Join(err, readErr)
}

// awaitConsistent returns when no thread is changing the loader's list. Others
// do it in their time; the borrowed thread is none that does.
func (s *Session) awaitConsistent(state uint64) error {
	for end := time.Now().Add(safePatience); ; time.Sleep(safePause) {
		consistent, err := s.loaderConsistent(state)
		if err != nil || consistent {
			return err
		}
		if time.Now().After(end) {
			return noSafePointRefusal(s.process.PID(), "its loader is loading or unloading a module")
		}
	}
}

func (s *Session) callOnNewStack(f Function) (result uint64, err error) {
	b := s.borrowed
	if err := b.chain.writeStore(s.memory); err != nil {
		return 0, err
	}
	mapped := Call{Number: syscall.SYS_MMAP, Args: [6]uint64{0, callStack, 0, // PROT_NONE
		syscall.MAP_PRIVATE | syscall.MAP_ANONYMOUS | syscall.MAP_NORESERVE | syscall.MAP_STACK, ^uint64(0), 0}}
	base, err := s.callStored(mapped)
	if err != nil {
		return 0, err
	}
	unmap := Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{base, callStack}}
	_, err = s.callStored(Call{Number: syscall.SYS_MPROTECT,
		Args: [6]uint64{base + callGuard, callStack - callGuard, syscall.PROT_READ | syscall.PROT_WRITE}})
	var last kernel.Registers
	if err == nil {
		last = b.chain.storing(unmap, &b.regs, s.gadgets.Syscall)
		result, err = s.callBetween(f, base, &last)
	}
	if s.borrowed == nil {
		return 0, err
	}
	return result, errors.Join(err,
		// By its frames the thread would load it itself, but it does not go home
		// by them as long as the tracer lives.
		kernel.SetXState(b.thread.tid, b.xstate),
		s.unmapStack(unmap, &last, err == nil),
		b.chain.clearPending(s.memory))
}

// callStored makes one system call, after which the thread would go home by way
// of the store that clears the mark of a pending call.
func (s *Session) callStored(c Call) (uint64, error) {
	b := s.borrowed
	regs := b.chain.storing(c, &b.regs, s.gadgets.Syscall)
	result, err := s.makeCall(&regs)
	if err != nil {
		return 0, err
	}
	return result, c.Err(result)
}

// callBetween lets the thread run the function up to its rt_sigreturn, which it
// does not enter.
func (s *Session) callBetween(f Function, base uint64, last *kernel.Registers) (uint64, error) {
	b := s.borrowed
	image, at := s.callImage(f, base+callStack, last)
	if _, err := s.memory.WriteAt(image, int64(at)); err != nil {
		return 0, err
	}
	if err := b.chain.setPending(s.memory, b.tid); err != nil {
		return 0, err
	}
	frameAt := at + 16 + uint64(len(s.gadgets.tail()))
	regs := f.registers(&b.regs, at, frameAt+ucontextBytes)
	regs.RBX = b.chain.results - uint64(int64(s.gadgets.StoreAt))
	if err := kernel.SetXState(b.thread.tid, freshXState(b.xstate)); err != nil {
		return 0, err
	}
	if err := s.leave(&regs, everySignal&^faultSignals); err != nil {
		return 0, err
	}
	for {
		err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop)
		if s.borrowed != nil && !b.thread.stopped {
			// Not to be touched any more. The end of this OS thread lets it go.
			s.borrowed = nil
			delete(s.threads, b.thread.tid)
			return 0, fmt.Errorf("call function %#x in thread %d of process %d: %w (%w)",
				f.Address, b.thread.tid, s.process.PID(), ErrStillRunning, err)
		}
		if err != nil {
			return 0, err
		}
		if err := kernel.GetRegisters(b.thread.tid, &regs); err != nil {
			return 0, err
		}
		if regs.RSP == frameAt {
			break
		}
	}
	var result [1]uint64
	err := s.readWords(b.chain.results, result[:])
	return result[0], err
}

// callImage returns what stands at the top end of a function's stack, and where:
// from the word that it returns to.
func (s *Session) callImage(f Function, top uint64, last *kernel.Registers) (image []byte, at uint64) {
	tail := s.gadgets.tail()
	image = binary.LittleEndian.AppendUint64(nil, s.gadgets.Store)
	image = binary.LittleEndian.AppendUint64(image, 0)
	image = append(image, tail...)
	frame := encodeContext(last, everySignal, s.borrowed.chain.xstate)
	image = append(append(image, frame[:]...), f.Data...)
	// As after a call instruction: 8 beyond a multiple of 16.
	return image, (top-uint64(len(image))-16)&^15 - 8
}

// unmapStack removes a function's stack. A thread that stands at the entry of its
// rt_sigreturn makes that the munmap, with the registers that it would have had;
// any other is sent there.
func (s *Session) unmapStack(unmap Call, last *kernel.Registers, atEntry bool) error {
	b := s.borrowed
	if !atEntry {
		_, err := s.callStored(unmap)
		return err
	}
	regs := *last
	regs.RIP += syscallInstrLen
	regs.OrigRAX, regs.RAX = unmap.Number, negative(int64(syscall.ENOSYS))
	if err := s.leave(&regs, everySignal); err != nil {
		return err
	}
	if err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
		return err
	}
	if err := kernel.GetRegisters(b.thread.tid, &regs); err != nil {
		return err
	}
	return unmap.Err(regs.RAX)
}

// registers returns base changed so that the thread enters the function, which
// returns by the word at stack.
func (f Function) registers(base *kernel.Registers, stack, data uint64) kernel.Registers {
	args := f.Args
	for i := range args {
		if f.Pointers[i] {
			args[i] += data
		}
	}
	regs := *base
	regs.RIP, regs.RSP, regs.RBP = f.Address, stack, 0
	regs.RAX, regs.OrigRAX = 0, outsideSyscall
	regs.RDI, regs.RSI, regs.RDX, regs.RCX, regs.R8, regs.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	regs.Flags &^= flagsToClear
	return regs
}

// pendingCall refuses scratch memory at which a thread's way home stands that is
// still within a function.
func (s *Session) pendingCall(start uint64) error {
	var word [1]uint64
	if err := s.readWords(start+8, word[:]); err != nil || word[0]&^0xffffffff != pendingMagic {
		return err
	}
	tids, err := s.process.Threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		status, err := s.process.ThreadStatus(tid)
		// In a child that was forked meanwhile there is no such thread.
		if err == nil && len(status.NSPIDs) > 0 && uint64(status.NSPIDs[len(status.NSPIDs)-1]) == word[0]&0xffffffff {
			return api.Refusal{Code: codePendingCall, Subject: fmt.Sprintf("thread %d of process %d", tid, s.process.PID()),
				Detail: "it is still in a function that vos has called in it",
				Remedy: "try again when the function has returned"}
		}
	}
	return nil
}
