package kernel

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A WaitStatus tells what a tracee did: wait(2), ptrace(2).
type WaitStatus uint32

const continued WaitStatus = 0xffff

// Exited reports whether the thread is gone, by exit or by a signal.
func (s WaitStatus) Exited() bool { return !s.Stopped() && s != continued }

// Stopped reports whether the thread is in a ptrace stop.
func (s WaitStatus) Stopped() bool { return s&0xff == 0x7f }

// Signal is the signal of a stop, without the 0x80 of a system call stop.
func (s WaitStatus) Signal() int { return int(s>>8) & 0x7f }

// SyscallStop reports whether the thread stopped entering or leaving a system
// call (with TraceSysGood).
func (s WaitStatus) SyscallStop() bool {
	return s.Stopped() && int(s>>8)&0xff == int(unix.SIGTRAP)|0x80
}

// Event is the ptrace event of a stop, 0 for a signal or system call stop.
func (s WaitStatus) Event() int { return int(s >> 16) }

// ErrTimeout is returned where a deadline passed before anything happened.
var ErrTimeout = fmt.Errorf("timed out: %w", os.ErrDeadlineExceeded)

// wakeSignal ends a blocking wait4 when its deadline passes. The Go runtime
// leaves it alone, and no program sends it.
const wakeSignal = unix.Signal(61)

// kernelSigaction is struct kernel_sigaction of the kernel on x86-64.
type kernelSigaction struct {
	Handler, Flags, Restorer, Mask uint64
}

const (
	saNoCldStop = 0x1
	saRestart   = 0x10000000
)

// prepareWaiting makes wakeSignal interrupt wait4 (the runtime's handlers all
// restart it), and saves a SIGCHLD for every stop of a tracee: the wait itself
// is woken without it.
var prepareWaiting = sync.OnceValue(func() error {
	signal.Notify(make(chan os.Signal, 1), syscall.Signal(wakeSignal))
	if err := changeFlags(wakeSignal, func(flags uint64) uint64 { return flags &^ saRestart }); err != nil {
		return err
	}
	return changeFlags(unix.SIGCHLD, func(flags uint64) uint64 { return flags | saNoCldStop })
})

func changeFlags(sig unix.Signal, change func(uint64) uint64) error {
	var action kernelSigaction
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0,
		uintptr(unsafe.Pointer(&action)), sigMaskBytes, 0, 0); errno != 0 {
		return fmt.Errorf("read action of signal %d: %w", sig, errno)
	}
	action.Flags = change(action.Flags)
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(&action)), 0, sigMaskBytes, 0, 0); errno != 0 {
		return fmt.Errorf("set action of signal %d: %w", sig, errno)
	}
	return nil
}

// A Waiter waits for the tracees of one OS thread, with a deadline.
// It must be made, used and closed on that thread.
type Waiter struct {
	timer int32
}

type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [44]byte
}

const sigevThreadID = 4

// NewWaiter prepares waiting on the calling OS thread, which must be locked to
// its goroutine.
func NewWaiter() (*Waiter, error) {
	if err := prepareWaiting(); err != nil {
		return nil, err
	}
	w := &Waiter{}
	event := sigevent{signo: int32(wakeSignal), notify: sigevThreadID, tid: int32(unix.Gettid())}
	if _, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC,
		uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&w.timer))); errno != 0 {
		return nil, fmt.Errorf("create timer: %w", errno)
	}
	return w, nil
}

// Tick makes every Wait look at its deadline once in d, from now on; 0 ends it.
func (w *Waiter) Tick(d time.Duration) error {
	interval := unix.NsecToTimespec(int64(d))
	spec := unix.ItimerSpec{Value: interval, Interval: interval}
	if _, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(w.timer), 0,
		uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("set timer: %w", errno)
	}
	return nil
}

// Wait blocks until one of this thread's tracees stops or exits, or until the
// first tick behind the deadline (ErrTimeout). Without a tracee the error is
// ECHILD.
//
// It never waits for one thread id: that hangs on a group leader whose other
// threads are dying.
func (w *Waiter) Wait(deadline time.Time) (tid int, status WaitStatus, err error) {
	return w.wait(deadline, false)
}

// WaitYielding is Wait that lets other goroutines have the processor meanwhile: for
// tracees that work for long, and that nobody waits for.
func (w *Waiter) WaitYielding(deadline time.Time) (tid int, status WaitStatus, err error) {
	return w.wait(deadline, true)
}

func (w *Waiter) wait(deadline time.Time, yield bool) (tid int, status WaitStatus, err error) {
	for {
		var n uintptr
		var errno syscall.Errno
		if yield {
			n, _, errno = unix.Syscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)),
				unix.WALL|unix.WNOTHREAD, 0, 0, 0)
		} else {
			n, _, errno = unix.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)),
				unix.WALL|unix.WNOTHREAD, 0, 0, 0)
		}
		switch errno {
		case 0:
			return int(n), status, nil
		case unix.EINTR:
			if !time.Now().Before(deadline) {
				return 0, 0, ErrTimeout
			}
		default:
			return 0, 0, fmt.Errorf("wait for tracees: %w", errno)
		}
	}
}

// Close deletes the timer.
func (w *Waiter) Close() error {
	if _, _, errno := unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(w.timer), 0, 0); errno != 0 {
		return fmt.Errorf("delete timer: %w", errno)
	}
	return nil
}
