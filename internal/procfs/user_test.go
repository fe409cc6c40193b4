package procfs

import (
	"runtime"
	"syscall"
	"testing"
)

// asUser runs f on a thread with the ids of nobody and no capabilities. The
// thread is thrown away.
func asUser(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		const nobody = 65534
		// The raw calls change this thread only; syscall.Setresuid would
		// change all of them.
		for _, call := range []uintptr{syscall.SYS_SETRESGID, syscall.SYS_SETRESUID} {
			if _, _, errno := syscall.RawSyscall(call, nobody, nobody, nobody); errno != 0 {
				done <- errno
				return
			}
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
