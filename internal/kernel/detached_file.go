package kernel

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// DetachedFile returns an empty file in memory, open for reading and writing, that /proc
// shows as a file of that absolute path which was deleted: the name that it had in a file
// system of its own, which is mounted nowhere and goes with the last who uses it.
func DetachedFile(name string, permissions uint32) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a deleted file %s: %w", name, err)
		}
	}()
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return nil, unix.EINVAL
	}
	at, err := detachedRoot()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(at)) }()
	names := strings.Split(name[1:], "/")
	for _, folder := range names[:len(names)-1] {
		if err := unix.Mkdirat(at, folder, 0o755); err != nil {
			return nil, err
		}
		inner, err := unix.Openat(at, folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.Close(at); err != nil {
			return nil, errors.Join(err, unix.Close(inner))
		}
		at = inner
	}
	last := names[len(names)-1]
	fd, err := unix.Openat(at, last, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, permissions)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	err = unix.Unlinkat(at, last, 0)
	if err == nil {
		err = unix.Fchmod(fd, permissions) // whatever the umask is
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// detachedRoot mounts a tmpfs nowhere, and returns a descriptor of its root.
func detachedRoot() (root int, err error) {
	system, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, unix.Close(system)) }()
	if err := unix.FsconfigSetString(system, "mode", "0755"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigSetString(system, "size", "0"); err != nil { // as large as it must be
		return -1, err
	}
	if err := unix.FsconfigCreate(system); err != nil {
		return -1, err
	}
	return unix.Fsmount(system, unix.FSMOUNT_CLOEXEC, 0)
}
