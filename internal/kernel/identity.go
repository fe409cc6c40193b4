package kernel

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Identity is by whose rights files are opened and sockets connected.
type Identity struct {
	UID, GID int
	Groups   []int
}

// As runs f on an OS thread of its own that has another identity, where one is
// given, and is in another network namespace, likewise. The thread is thrown away.
// Its real and saved ids stay, so nobody gets hold of it by the other identity.
// What f opens is everybody's.
func As(identity *Identity, network *os.File, f func() error) (err error) {
	OnOwnThread(func() {
		if network != nil {
			if err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
				err = fmt.Errorf("enter a network namespace: %w", err)
				return
			}
		}
		if identity != nil {
			if err = become(identity); err != nil {
				return
			}
		}
		err = f()
	})
	return err
}

// become changes the calling OS thread alone, by raw calls: those of package
// syscall change all threads.
func become(i *Identity) error {
	if os.Geteuid() != 0 {
		return nil // it has no other rights to give up, and may not take any
	}
	groups := make([]uint32, max(1, len(i.Groups)))
	for n, g := range i.Groups {
		groups[n] = uint32(g)
	}
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(i.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
		return fmt.Errorf("take the groups of a program: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(i.GID), keep); errno != 0 {
		return fmt.Errorf("take group %d: %w", i.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(i.UID), keep); errno != 0 {
		return fmt.Errorf("take user %d: %w", i.UID, errno)
	}
	return nil
}
