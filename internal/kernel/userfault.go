package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What userfaultfd(2) is called with to be told, by PAGEMAP_SCAN, of writes to a
// process's memory: no fault is ever waited for, so nothing happens to the process when
// the last descriptor is closed, and its threads never wait for anybody.
const (
	SysUserfault   = unix.SYS_USERFAULTFD
	UserfaultFlags = unix.O_CLOEXEC | unix.O_NONBLOCK | userModeOnly
)

// From linux/userfaultfd.h.
const (
	userModeOnly         = 1
	userfaultAPI         = 0xaa
	userfaultAPIIoctl    = 0xc018aa3f
	userfaultRegister    = 0xc020aa00
	registerWriteProtect = 1 << 1
	userfaultProtect     = 0xc018aa06
	featureWrites        = 1 << 0  // UFFD_FEATURE_PAGEFAULT_FLAG_WP
	featureUnpopulated   = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED
	featureAsync         = 1 << 15 // UFFD_FEATURE_WP_ASYNC
)

// TrackWrites begins to use a userfaultfd for noting writes: those that come behind a
// ScanPages with ScanProtectMatching. Linux 6.7.
func TrackWrites(userfault Raw) error {
	arg := struct{ api, features, ioctls uint64 }{api: userfaultAPI, features: featureWrites | featureUnpopulated | featureAsync}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(userfault), userfaultAPIIoctl, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("note writes by userfaultfd: %w", errno)
	}
	return nil
}

// TrackRange adds whole mappings, of the process whose userfaultfd it is.
func TrackRange(userfault Raw, start, end uint64) error {
	arg := struct{ start, length, mode, ioctls uint64 }{start: start, length: end - start, mode: registerWriteProtect}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(userfault), userfaultRegister, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("note writes to %#x-%#x: %w", start, end, errno)
	}
	return nil
}

// Untrack lets pages of a range that is tracked be written without a note again. The
// process's page faults go on meanwhile, as they do not while the last descriptor of the
// userfaultfd is closed: that takes less when there is nothing left to undo.
func Untrack(userfault Raw, start, end uint64) error {
	arg := struct{ start, length, mode uint64 }{start: start, length: end - start}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(userfault), userfaultProtect, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("note no more writes to %#x-%#x: %w", start, end, errno)
	}
	return nil
}
