package kernel

import (
	"os"

	"golang.org/x/sys/unix"
)

// RenameNew renames a file or directory to a name that nothing has yet
// (RENAME_NOREPLACE of renameat2(2)). File systems that can't promise that rename as
// rename(2) does, which replaces empty directories.
func RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS {
		err = unix.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
