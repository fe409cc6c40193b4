package kernel

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// EnterNamespaces lets the calling OS thread, and the processes that it starts, be in
// other namespaces; in one of pids only the processes are. The thread must be one of
// OnOwnThread: it can't go back. User and time namespaces are not entered so.
func EnterNamespaces(files []*os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("have a root directory apart from other threads: %w", err)
	}
	for _, f := range files {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("enter the namespace %s: %w", f.Name(), err)
		}
	}
	return nil
}
