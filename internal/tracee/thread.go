package tracee

import (
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A thread is one thread of the process, as the tracer knows it.
type thread struct {
	tid     int
	stopped bool
	status  kernel.WaitStatus // why it stopped
	regs    kernel.Registers  // the program's, as of the stop
	lane    *lane             // that it is in, or nil
	state   *ThreadState      // as ThreadStates has read it, since it stopped; nil before
}

// Results by which the kernel marks a system call for its restart:
// include/linux/errno.h. They are never seen by a program.
const (
	restartSys      = 512
	restartNoIntr   = 513
	restartNoHand   = 514
	restartBlock    = 516
	outsideSyscall  = ^uint64(0)
	syscallInstrLen = 2
)

// leaksInterrupt tells the system calls that answer a ptrace stop with a bare
// EINTR: signal(7), "Interruption of system calls and library functions by
// stop signals", the waits of io_getevents and io_uring_enter, and the socket
// calls, which do so where SO_RCVTIMEO or SO_SNDTIMEO is set (sock_intr_errno
// in include/net/sock.h). All of them have done nothing when they return it.
func leaksInterrupt(nr uint64) bool {
	switch nr {
	case syscall.SYS_EPOLL_WAIT, syscall.SYS_EPOLL_PWAIT, sysEpollPwait2,
		syscall.SYS_SEMOP, syscall.SYS_SEMTIMEDOP,
		syscall.SYS_RT_SIGTIMEDWAIT,
		syscall.SYS_MSGRCV, syscall.SYS_MSGSND,
		syscall.SYS_IO_GETEVENTS, sysIOPgetevents, sysIOUringEnter,
		syscall.SYS_READ, syscall.SYS_READV, syscall.SYS_WRITE, syscall.SYS_WRITEV,
		syscall.SYS_RECVFROM, syscall.SYS_RECVMSG, syscall.SYS_RECVMMSG,
		syscall.SYS_SENDTO, syscall.SYS_SENDMSG, sysSendmmsg,
		syscall.SYS_ACCEPT, syscall.SYS_ACCEPT4, syscall.SYS_CONNECT:
		return true
	}
	return false
}

const (
	sysSendmmsg     = 307
	sysIOPgetevents = 333
	sysIOUringEnter = 426
	sysEpollPwait2  = 441
)

// repairInterrupt changes the registers of a thread that stopped out of a
// system call so that the stop does not show, and reports whether it did.
func repairInterrupt(regs *kernel.Registers) bool {
	if int64(regs.OrigRAX) < 0 || int64(regs.RAX) != -int64(syscall.EINTR) || !leaksInterrupt(regs.OrigRAX) {
		return false
	}
	regs.RAX = negative(restartNoHand)
	return true
}

// homeRegisters returns the registers that rt_sigreturn must load so that a
// thread stopped with regs goes on. The kernel does not look at -ERESTART*
// after rt_sigreturn, so an interrupted call is repeated by its instruction;
// one with a relative timeout then waits for its whole time again.
func homeRegisters(regs kernel.Registers) kernel.Registers {
	if int64(regs.OrigRAX) < 0 {
		return regs
	}
	switch -int64(regs.RAX) {
	case restartSys, restartNoIntr, restartNoHand, restartBlock:
		regs.RAX = regs.OrigRAX
		regs.RIP -= syscallInstrLen
	}
	regs.OrigRAX = outsideSyscall
	return regs
}

func negative(errno int64) uint64 { return uint64(-errno) }
