package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxRemoteRanges is how many ranges WriteMemory and ReadMemory take: IOV_MAX.
const MaxRemoteRanges = 1024

// A RemoteRange is memory of another process. Its layout is that of struct iovec.
type RemoteRange struct {
	Address uint64
	Length  uint64 // bytes
}

// WriteMemory copies b to ranges of process pid, one after the other, by
// process_vm_writev(2): pages must be writable there. It fails where not all could be
// written.
func WriteMemory(pid int, b []byte, to []RemoteRange) error {
	return copyMemory(unix.SYS_PROCESS_VM_WRITEV, "write", pid, b, to)
}

// ReadMemory is the opposite, by process_vm_readv(2).
func ReadMemory(pid int, b []byte, from []RemoteRange) error {
	return copyMemory(unix.SYS_PROCESS_VM_READV, "read", pid, b, from)
}

func copyMemory(call uintptr, verb string, pid int, b []byte, remote []RemoteRange) error {
	if len(remote) == 0 {
		return nil
	}
	local := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	n, _, errno := unix.Syscall6(call, uintptr(pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(unsafe.SliceData(remote))), uintptr(len(remote)), 0)
	switch {
	case errno != 0:
		return fmt.Errorf("%s memory of process %d at %#x: %w", verb, pid, remote[0].Address, errno)
	case n < uintptr(len(b)):
		at := uint64(n)
		for _, r := range remote {
			if at < r.Length {
				return fmt.Errorf("%s memory of process %d at %#x: %w", verb, pid, r.Address+at, unix.EFAULT)
			}
			at -= r.Length
		}
	}
	return nil
}
