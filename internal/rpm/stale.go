package rpm

import (
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// copies are the names of the folders for copies of a database.
const copies = "vos-rpm-*"

// stale is the age at which a copy can no longer be in use.
const stale = time.Hour

// removeStale removes the copies that a vos left that was killed over them.
// What can't be removed stays: it is in nobody's way.
func removeStale() {
	user := os.Geteuid()
	if asNobody() {
		user = nobody
	}
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), copies)) // a pattern that is none finds none
	for _, folder := range found {
		info, err := os.Lstat(folder)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < stale {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) == user {
			_ = os.RemoveAll(folder)
		}
	}
}
