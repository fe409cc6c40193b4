package kernel

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownerEx is struct f_owner_ex of fcntl(2).
type ownerEx struct{ kind, pid int32 }

func fcntlOwner(file *os.File, command int, owner *ownerEx) error {
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, file.Fd(), uintptr(command), uintptr(unsafe.Pointer(owner)))
	if errno != 0 {
		return errno
	}
	return nil
}
