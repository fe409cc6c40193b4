package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Registers are the general registers of an x86-64 thread: struct
// user_regs_struct of the kernel's asm/user_64.h, in its order.
type Registers struct {
	R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8 uint64
	RAX, RCX, RDX, RSI, RDI                        uint64
	OrigRAX                                        uint64 // number of the system call, or -1 outside of one
	RIP, CS, Flags, RSP, SS                        uint64
	FSBase, GSBase, DS, ES, FS, GS                 uint64
}

// Ptrace options, ptrace(2).
const (
	TraceSysGood = unix.PTRACE_O_TRACESYSGOOD
	TraceClone   = unix.PTRACE_O_TRACECLONE
	TraceExec    = unix.PTRACE_O_TRACEEXEC
	ExitKill     = unix.PTRACE_O_EXITKILL // the tracee dies with its tracer
)

// Events of a ptrace stop, ptrace(2).
const (
	EventClone = unix.PTRACE_EVENT_CLONE
	EventExec  = unix.PTRACE_EVENT_EXEC
	EventStop  = unix.PTRACE_EVENT_STOP
)

const (
	ntX86XState                  = 0x202  // elf.h NT_X86_XSTATE
	ptraceGetSigMask             = 0x420a // linux/ptrace.h
	ptraceSetSigMask             = 0x420b
	ptraceSeccompGetFilter       = 0x420c
	ptraceGetRseqConfiguration   = 0x420f
	ptraceGetSyscallUserDispatch = 0x4211
	sigMaskBytes                 = 8
	sizeofRseqConfiguration      = 24
	sizeofSyscallDispatchConfig  = 32
	maxSeccompFilterInstructions = 4096 // BPF_MAXINSNS
)

func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptraceError(what string, tid int, err error) error {
	return fmt.Errorf("%s thread %d: %w", what, tid, err)
}

// Seize makes the calling OS thread the tracer of tid without stopping it.
func Seize(tid, options int) error {
	if err := ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(options)); err != nil {
		return ptraceError("seize", tid, err)
	}
	return nil
}

// Interrupt asks a seized thread to stop with EventStop. It returns at once.
func Interrupt(tid int) error {
	if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
		return ptraceError("interrupt", tid, err)
	}
	return nil
}

// Continue resumes a stopped thread. A signal other than 0 is delivered where
// the thread stopped to receive one.
func Continue(tid, signal int) error {
	if err := ptrace(unix.PTRACE_CONT, tid, 0, uintptr(signal)); err != nil {
		return ptraceError("continue", tid, err)
	}
	return nil
}

// ContinueToSyscall resumes a stopped thread until it next enters or leaves a
// system call. Unlike a single step, what it arms ends with the tracer.
func ContinueToSyscall(tid, signal int) error {
	if err := ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(signal)); err != nil {
		return ptraceError("continue to system call of", tid, err)
	}
	return nil
}

// Detach resumes a stopped thread and ends its being traced.
func Detach(tid, signal int) error {
	if err := ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(signal)); err != nil {
		return ptraceError("detach", tid, err)
	}
	return nil
}

// EventMessage returns the number that belongs to the event the thread stopped
// for: of EventClone the new thread's id.
func EventMessage(tid int) (uint64, error) {
	var message uint64
	if err := ptrace(unix.PTRACE_GETEVENTMSG, tid, 0, uintptr(unsafe.Pointer(&message))); err != nil {
		return 0, ptraceError("read event of", tid, err)
	}
	return message, nil
}

// GetRegisters reads the general registers of a stopped thread.
func GetRegisters(tid int, regs *Registers) error {
	if err := ptrace(unix.PTRACE_GETREGS, tid, 0, uintptr(unsafe.Pointer(regs))); err != nil {
		return ptraceError("read registers of", tid, err)
	}
	return nil
}

// SetRegisters writes the general registers of a stopped thread, all at once.
func SetRegisters(tid int, regs *Registers) error {
	if err := ptrace(unix.PTRACE_SETREGS, tid, 0, uintptr(unsafe.Pointer(regs))); err != nil {
		return ptraceError("write registers of", tid, err)
	}
	return nil
}

// GetXState reads the extended state (x87, SSE, AVX, …) of a stopped thread in
// the XSAVE standard format into buf and returns its length in bytes.
func GetXState(tid int, buf []byte) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(buf), Len: uint64(len(buf))}
	if err := ptrace(unix.PTRACE_GETREGSET, tid, ntX86XState, uintptr(unsafe.Pointer(&iov))); err != nil {
		return 0, ptraceError("read extended state of", tid, err)
	}
	return int(iov.Len), nil
}

// SetXState writes the extended state of a stopped thread: all that GetXState has
// read, in the same format.
func SetXState(tid int, state []byte) error {
	iov := unix.Iovec{Base: unsafe.SliceData(state), Len: uint64(len(state))}
	if err := ptrace(unix.PTRACE_SETREGSET, tid, ntX86XState, uintptr(unsafe.Pointer(&iov))); err != nil {
		return ptraceError("write extended state of", tid, err)
	}
	return nil
}

// GetSignalMask reads the signals that a stopped thread blocks; in a call such
// as ppoll it is the mask that the thread will have again after the call.
func GetSignalMask(tid int) (uint64, error) {
	var mask uint64
	if err := ptrace(ptraceGetSigMask, tid, sigMaskBytes, uintptr(unsafe.Pointer(&mask))); err != nil {
		return 0, ptraceError("read signal mask of", tid, err)
	}
	return mask, nil
}

// SetSignalMask writes the signals that a stopped thread blocks.
func SetSignalMask(tid int, mask uint64) error {
	if err := ptrace(ptraceSetSigMask, tid, sigMaskBytes, uintptr(unsafe.Pointer(&mask))); err != nil {
		return ptraceError("write signal mask of", tid, err)
	}
	return nil
}

// An RseqConfiguration says where a thread registered its restartable
// sequences area, rseq(2). Pointer 0 means that it has none.
type RseqConfiguration struct {
	Pointer   uint64
	Size      uint32
	Signature uint32
	Flags     uint32
	_         uint32
}

// GetRseqConfiguration reads a stopped thread's rseq registration (Linux 5.13).
func GetRseqConfiguration(tid int) (RseqConfiguration, error) {
	var c RseqConfiguration
	if err := ptrace(ptraceGetRseqConfiguration, tid, sizeofRseqConfiguration, uintptr(unsafe.Pointer(&c))); err != nil {
		return RseqConfiguration{}, ptraceError("read rseq configuration of", tid, err)
	}
	return c, nil
}

// SyscallUserDispatch reports whether a stopped thread's system calls are
// turned into SIGSYS by PR_SET_SYSCALL_USER_DISPATCH (readable since Linux
// 6.4; the error of an older kernel is EIO).
func SyscallUserDispatch(tid int) (bool, error) {
	var c [sizeofSyscallDispatchConfig / 8]uint64
	if err := ptrace(ptraceGetSyscallUserDispatch, tid, sizeofSyscallDispatchConfig, uintptr(unsafe.Pointer(&c))); err != nil {
		return false, ptraceError("read system call dispatch of", tid, err)
	}
	return c[0] != 0, nil
}

// A FilterInstruction is one instruction of classic BPF: struct sock_filter.
type FilterInstruction struct {
	Code   uint16
	JT, JF uint8
	K      uint32
}

// SeccompFilter reads the index-th seccomp filter of a stopped thread, the
// newest first. It needs CAP_SYS_ADMIN and a kernel with
// CONFIG_CHECKPOINT_RESTORE; past the last filter the error is ENOENT.
func SeccompFilter(tid, index int) ([]FilterInstruction, error) {
	var buf [maxSeccompFilterInstructions]FilterInstruction
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptraceSeccompGetFilter, uintptr(tid),
		uintptr(index), uintptr(unsafe.Pointer(&buf)), 0, 0)
	if errno != 0 {
		return nil, ptraceError("read seccomp filter of", tid, errno)
	}
	if int(n) > len(buf) {
		return nil, fmt.Errorf("read seccomp filter of thread %d: %d instructions, more than the kernel allows", tid, n)
	}
	return append([]FilterInstruction(nil), buf[:n]...), nil
}

// HasSeccompFilter reports whether a stopped thread has a seccomp filter, as far
// as the caller may know.
func HasSeccompFilter(tid int) bool {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptraceSeccompGetFilter, uintptr(tid), 0, 0, 0, 0)
	return errno == 0
}

// SetOptions sets the ptrace options of a stopped thread.
func SetOptions(tid, options int) error {
	if err := ptrace(unix.PTRACE_SETOPTIONS, tid, 0, uintptr(options)); err != nil {
		return ptraceError("set options of", tid, err)
	}
	return nil
}

// Offsets in struct user of the kernel's asm/user_64.h.
const (
	userDebugAddress = 848       // u_debugreg[0]: where a breakpoint is
	userDebugControl = 848 + 7*8 // u_debugreg[7]: which there are
)

// SetBreakpoint lets a stopped thread stop with SIGTRAP before it executes the
// instruction at an address: by a register of the processor, no code is changed. 0
// takes it out.
func SetBreakpoint(tid int, address uint64) error {
	const enableFirst = 1 // DR7: L0; R/W0 and LEN0 of 0 are execution
	poke := func(at, value uintptr) error {
		if err := ptrace(unix.PTRACE_POKEUSR, tid, at, value); err != nil {
			return ptraceError("set a breakpoint of", tid, err)
		}
		return nil
	}
	if address == 0 {
		return poke(userDebugControl, 0)
	}
	if err := poke(userDebugAddress, uintptr(address)); err != nil {
		return err
	}
	return poke(userDebugControl, enableFirst)
}
