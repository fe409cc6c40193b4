package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SiginfoSize is the bytes of a siginfo_t.
const SiginfoSize = 128

const (
	ptracePeekSiginfo       = 0x4209 // linux/ptrace.h
	ptracePeekSiginfoShared = 1
)

// PendingSignals returns the signals that wait for a stopped thread, or with shared for
// its process, each as the kernel's siginfo_t: PTRACE_PEEKSIGINFO.
func PendingSignals(tid int, shared bool) ([][SiginfoSize]byte, error) {
	const batch = 32
	var all [][SiginfoSize]byte
	for {
		args := struct {
			offset uint64
			flags  uint32
			number int32
		}{offset: uint64(len(all)), number: batch}
		if shared {
			args.flags = ptracePeekSiginfoShared
		}
		var some [batch][SiginfoSize]byte
		n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptracePeekSiginfo, uintptr(tid), uintptr(unsafe.Pointer(&args)),
			uintptr(unsafe.Pointer(&some)), 0, 0)
		if errno != 0 {
			return nil, ptraceError("read pending signals of", tid, errno)
		}
		all = append(all, some[:n]...)
		if n < batch {
			return all, nil
		}
	}
}

// RobustList returns where a thread's list of robust futexes begins, and the bytes of
// its head: get_robust_list(2).
func RobustList(tid int) (head, length uint64, err error) {
	if _, _, errno := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid), uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&length))); errno != 0 {
		return 0, 0, ptraceError("read robust list of", tid, errno)
	}
	return head, length, nil
}

// Affinity returns the processors on which a thread may run, a bit each:
// sched_getaffinity(2).
func Affinity(tid int) ([]uint64, error) {
	var mask [128]uint64
	n, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	if errno != 0 {
		return nil, ptraceError("read affinity of", tid, errno)
	}
	words := mask[:n/8]
	for len(words) > 1 && words[len(words)-1] == 0 {
		words = words[:len(words)-1]
	}
	return append([]uint64(nil), words...), nil
}

// SchedulingAttributes are those of sched_setattr(2), struct sched_attr.
type SchedulingAttributes struct {
	size             uint32
	Policy           uint32
	Flags            uint64
	Nice             int32
	Priority         uint32
	Runtime          uint64 // nanoseconds, as the next two
	Deadline         uint64
	Period           uint64
	UtilMin, UtilMax uint32
}

// ThreadAttributes returns how a thread is scheduled: sched_getattr(2).
func ThreadAttributes(tid int) (a SchedulingAttributes, err error) {
	a.size = uint32(unsafe.Sizeof(a))
	if _, _, errno := unix.RawSyscall6(unix.SYS_SCHED_GETATTR, uintptr(tid), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a), 0, 0, 0); errno != 0 {
		return a, ptraceError("read scheduling of", tid, errno)
	}
	return a, nil
}

// SinceBoot returns CLOCK_MONOTONIC and CLOCK_BOOTTIME, nanoseconds.
func SinceBoot() (monotonic, boot int64, err error) {
	var m, b unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &m); err != nil {
		return 0, 0, fmt.Errorf("read clock: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &b); err != nil {
		return 0, 0, fmt.Errorf("read clock: %w", err)
	}
	return m.Nano(), b.Nano(), nil
}
