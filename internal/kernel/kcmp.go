package kernel

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Types of kcmp(2), linux/kcmp.h.
const (
	kcmpFile     = 0
	kcmpVM       = 1
	kcmpFiles    = 2
	kcmpEpollTFD = 7
)

// CompareFiles tells whether descriptor a of process p and descriptor b of process
// q are one open file description: 0 if they are, otherwise -1 or 1, an order that
// holds until the machine is started anew. It is kcmp(2) with KCMP_FILE, and needs
// the right to trace both. A descriptor that is not open is EBADF.
func CompareFiles(p, a, q, b int) (int, error) {
	return compared(p, q, func() (uintptr, syscall.Errno) {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p), uintptr(q), kcmpFile, uintptr(a), uintptr(b), 0)
		return r, errno
	})
}

// CompareTables compares the descriptor tables of two threads, likewise.
func CompareTables(t, u int) (int, error) {
	return compared(t, u, func() (uintptr, syscall.Errno) {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(t), uintptr(u), kcmpFiles, 0, 0, 0)
		return r, errno
	})
}

// CompareMemory compares the address spaces of two processes, likewise: 0 is of one
// that both have, as a parent and its child in vfork.
func CompareMemory(p, q int) (int, error) {
	return compared(p, q, func() (uintptr, syscall.Errno) {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p), uintptr(q), kcmpVM, 0, 0, 0)
		return r, errno
	})
}

// CompareRegistered compares descriptor fd of process p with the open file
// description that epoll descriptor epoll of process q has registered under the
// number target; of those that were registered under one number it is the nth.
// There is none such: ENOENT.
func CompareRegistered(p, fd, q, epoll, target, nth int) (int, error) {
	slot := struct{ epoll, target, nth uint32 }{uint32(epoll), uint32(target), uint32(nth)}
	return compared(p, q, func() (uintptr, syscall.Errno) {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p), uintptr(q), kcmpEpollTFD, uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
		return r, errno
	})
}

func compared(p, q int, call func() (uintptr, syscall.Errno)) (int, error) {
	for {
		r, errno := call()
		switch {
		case errno == unix.EINTR:
		case errno == unix.ENOSYS:
			return 0, notSupported("kcmp", "tells which descriptors are one open file", Version{Major: 3, Minor: 5})
		case errno != 0:
			return 0, fmt.Errorf("kcmp of processes %d and %d: %w", p, q, errno)
		case r == 0:
			return 0, nil
		case r == 1:
			return -1, nil
		default: // 2 is greater; 3, different without an order, no kernel returns
			return 1, nil
		}
	}
}

// IsEpoll reports whether a descriptor of process p is an epoll, by asking what is
// registered with it; own is any open descriptor of this process. Where it can't be
// told it may be one.
func IsEpoll(p, fd, own int) bool {
	slot := struct{ epoll, target, nth uint32 }{epoll: uint32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(unix.Getpid()), uintptr(p), kcmpEpollTFD, uintptr(own), uintptr(unsafe.Pointer(&slot)), 0)
	return errno != unix.EINVAL && errno != unix.EBADF
}
