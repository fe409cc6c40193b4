package procfs

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

const nobody = 65534

// The main thread stays with TestMain: it can't be thrown away, and /proc/PID
// is about its ids.
func init() { runtime.LockOSThread() }

// asUser runs f on a thread with the ids of nobody and no capabilities. The
// thread is thrown away.
func asUser(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
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

// startAsUser makes a command run with the ids of nobody.
func startAsUser(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// publicDirectory is a temporary directory that every user may enter.
func publicDirectory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "procfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
