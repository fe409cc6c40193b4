package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A SchedulingPolicy is how the kernel schedules one thread, sched(7).
type SchedulingPolicy struct {
	policy   uintptr
	priority int32
}

// FirstInFirstOut is SCHED_FIFO at a low real-time priority: before every
// ordinary thread, behind those that a system runs in real time. Children of
// the thread do not inherit it.
var FirstInFirstOut = SchedulingPolicy{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: 2}

// ThreadScheduling returns the policy of the calling OS thread.
func ThreadScheduling() (SchedulingPolicy, error) {
	policy, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	if errno != 0 {
		return SchedulingPolicy{}, fmt.Errorf("read scheduling policy: %w", errno)
	}
	p := SchedulingPolicy{policy: policy}
	if _, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETPARAM, 0, uintptr(unsafe.Pointer(&p.priority)), 0); errno != 0 {
		return SchedulingPolicy{}, fmt.Errorf("read scheduling priority: %w", errno)
	}
	return p, nil
}

// SetThreadScheduling sets the policy of the calling OS thread. Real-time
// policies need CAP_SYS_NICE and, with CONFIG_RT_GROUP_SCHED, a share of
// real-time run time in the thread's control group.
func SetThreadScheduling(p SchedulingPolicy) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, p.policy,
		uintptr(unsafe.Pointer(&p.priority))); errno != 0 {
		return fmt.Errorf("set scheduling policy: %w", errno)
	}
	return nil
}
