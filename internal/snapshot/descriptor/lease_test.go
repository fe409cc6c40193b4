package descriptor

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestLeasesAreKept has leases of both types; who opens a file then waits, and the program
// is told by the signal that it has asked for.
func TestLeasesAreKept(t *testing.T) {
	folder := t.TempDir()
	read, write := filepath.Join(folder, "read"), filepath.Join(folder, "write")
	writeFile(t, read, "content")
	writeFile(t, write, "content")
	h := newHeld(t)
	h.at(10, read, os.O_RDONLY)
	h.at(11, write, os.O_RDWR)
	h.call(sysFcntl, 10, fcntlLease, lockRead)
	h.call(sysFcntl, 11, fcntlLease, lockWrite)
	h.call(sysFcntl, 11, fcntlSetSignal, int(syscall.SIGUSR1))

	h = roundTrip(t, h)

	for fd, want := range map[int]int{10: lockRead, 11: lockWrite} {
		if got := h.call(sysFcntl, fd, syscall.F_GETLEASE); got != want {
			t.Errorf("descriptor %d has the lease %d, want %d", fd, got, want)
		}
	}
	set := make([]byte, 8)
	binary.NativeEndian.PutUint64(set, 1<<(syscall.SIGUSR1-1)|1<<(syscall.SIGIO-1))
	h.call(syscall.SYS_RT_SIGPROCMASK, 0, set, 0, 8)
	for _, test := range []struct {
		path      string
		flags, fd int
		signal    syscall.Signal
	}{{read, os.O_WRONLY, 10, syscall.SIGIO}, {write, os.O_RDONLY, 11, syscall.SIGUSR1}} {
		if _, err := syscall.Open(test.path, test.flags|nonBlock, 0); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("%s was opened, error %v", test.path, err)
		}
		if got := h.call(syscall.SYS_RT_SIGTIMEDWAIT, set, make([]byte, 128), make([]byte, 16), 8); got != int(test.signal) {
			t.Errorf("%s: signal %d, want %d", test.path, got, test.signal)
		}
		refused(t, h, codeLocks) // somebody waits for its end
		h.call(sysFcntl, test.fd, fcntlLease, syscall.F_UNLCK)
	}
}

func TestLeasesOfOpenFilesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	writeFile(t, path, "content")
	h := newHeld(t)
	h.at(10, path, os.O_RDWR)
	h.call(sysFcntl, 10, fcntlLease, lockWrite)
	im := keep(t, h)
	h.kill()
	other := newHeld(t)
	other.at(10, path, os.O_RDONLY)
	o, err := Open(im, Restoring{})
	if err == nil {
		err = o.Give(newHeld(t), &im.Processes[0])
		o.Close()
	}
	if got := codes(api.Refusals(err)); !cmp.Equal(got, []api.Code{codeLocked}) {
		t.Error(err)
	}
}
