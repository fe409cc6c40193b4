package descriptor

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
)

// lock takes a lock of fcntl(2).
func (h *held) lock(fd, command, kind int, start, length int64) error {
	h.t.Helper()
	b := make([]byte, structLock)
	binary.NativeEndian.PutUint16(b, uint16(kind))
	binary.NativeEndian.PutUint64(b[8:], uint64(start))
	binary.NativeEndian.PutUint64(b[16:], uint64(length))
	_, err := h.try(sysFcntl, fd, command, b)
	return err
}

func TestLocksAreKept(t *testing.T) {
	folder := t.TempDir()
	a, b, c, d := filepath.Join(folder, "a"), filepath.Join(folder, "b"), filepath.Join(folder, "c"), filepath.Join(folder, "d")
	for _, path := range []string{a, b, c, d} {
		writeFile(t, path, "content")
	}
	h := newHeld(t)
	h.at(10, a, os.O_RDWR)
	h.call(syscall.SYS_FLOCK, 10, syscall.LOCK_EX)
	h.call(sysDup3, 10, 20, 0)
	h.at(11, b, os.O_RDONLY)
	h.call(syscall.SYS_FLOCK, 11, syscall.LOCK_SH)
	h.at(12, c, os.O_RDONLY) // only 13 can have the lock for writing
	h.at(13, c, os.O_RDWR)
	h.at(14, d, os.O_RDWR)
	for _, err := range []error{
		h.lock(13, fcntlLock, lockWrite, 5, 10), h.lock(13, fcntlLock, lockRead, 100, 0),
		h.lock(14, fcntlLockOFD, lockWrite, 0, 1), h.lock(14, fcntlLockOFD, lockRead, 7, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}

	h = roundTrip(t, h)

	other := newHeld(t)
	for i, path := range []string{a, b, c, d} {
		other.at(10+i, path, os.O_RDWR)
	}
	busy := func(name string, err error, want bool) {
		t.Helper()
		if errors.Is(err, syscall.EAGAIN) != want || !want && err != nil {
			t.Errorf("%s: error %v, want it to be taken: %v", name, err, want)
		}
	}
	flock := func(fd, how int) error {
		_, err := other.try(syscall.SYS_FLOCK, fd, how|syscall.LOCK_NB)
		return err
	}
	busy("flock exclusive", flock(10, syscall.LOCK_SH), true)
	busy("flock shared", flock(11, syscall.LOCK_EX), true)
	busy("flock shared, too", flock(11, syscall.LOCK_SH), false)
	busy("posix", other.lock(12, fcntlLock, lockRead, 14, 1), true)
	busy("behind posix", other.lock(12, fcntlLock, lockWrite, 15, 1), false)
	busy("posix to the end", other.lock(12, fcntlLock, lockWrite, 1<<40, 1), true)
	busy("posix to the end, reading", other.lock(12, fcntlLock, lockRead, 1<<40, 1), false)
	busy("ofd", other.lock(13, fcntlLockOFD, lockRead, 0, 1), true)
	busy("behind ofd", other.lock(13, fcntlLockOFD, lockWrite, 3, 1), false)
	h.call(sysClose, 12) // which gives back the process's locks on the file
	busy("posix given back", other.lock(12, fcntlLock, lockWrite, 0, 0), false)
	h.call(sysClose, 10)
	busy("flock of a copy", flock(10, syscall.LOCK_SH), true)
	h.call(sysClose, 20)
	busy("flock given back", flock(10, syscall.LOCK_EX), false)
}

func TestLocksThatOthersTook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	writeFile(t, path, "content")
	for name, take := range map[string]func(h *held) error{
		"flock": func(h *held) error { _, err := h.try(syscall.SYS_FLOCK, 10, syscall.LOCK_EX); return err },
		"posix": func(h *held) error { return h.lock(10, fcntlLock, lockWrite, 0, 0) },
		"ofd":   func(h *held) error { return h.lock(10, fcntlLockOFD, lockWrite, 0, 0) },
	} {
		h := newHeld(t)
		h.at(10, path, os.O_RDWR)
		if err := take(h); err != nil {
			t.Fatal(err)
		}
		im := keep(t, h)
		h.kill()
		other := newHeld(t)
		other.at(10, path, os.O_RDWR)
		if err := take(other); err != nil {
			t.Fatal(err)
		}
		o, err := Open(im, Restoring{})
		if err == nil {
			err = o.Give(newHeld(t), &im.Processes[0])
			o.Close()
		}
		if got := codes(api.Refusals(err)); !cmp.Equal(got, []api.Code{codeLocked}) {
			t.Errorf("%s: %v", name, err)
		}
		other.kill()
	}
}

func TestDeletedFilesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone")
	long := strings.Repeat("0123456789abcdef", 150_000)
	writeFile(t, path, "<"+long+">")
	h := newHeld(t)
	h.at(10, path, os.O_RDONLY)
	h.at(11, path, os.O_RDWR|os.O_APPEND)
	h.call(sysDup3, 11, 20, 0)
	h.at(12, path+"2", os.O_RDWR|os.O_CREATE)
	h.call(syscall.SYS_FTRUNCATE, 12, 10<<20+3)
	h.call(syscall.SYS_PWRITE64, 12, []byte("far"), 3, 9<<20+1)
	h.at(13, path+"3", os.O_WRONLY|os.O_CREATE)
	h.write(13, "write only")
	for _, p := range []string{path, path + "2", path + "3"} {
		if err := os.Chmod(p, 0o604); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(p, 12, 34); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	h.call(syscall.SYS_LSEEK, 10, len(long)-3, 0)
	before := seen(t, h)
	im := keep(t, h)
	h.kill()
	if held := len(pagesOf[im].all); held > 3<<20 {
		t.Errorf("%d bytes are held: holes are not left out", held)
	}
	h = again(t, im, Restoring{})
	after := seen(t, h)
	for i := range after {
		if !after[i].Deleted || after[i].Flags != before[i].Flags || after[i].Size != before[i].Size || after[i].Offset != before[i].Offset {
			t.Errorf("%+v, was %+v", after[i], before[i])
		}
	}
	if after[0].Inode != after[1].Inode || after[0].Inode == after[2].Inode {
		t.Error("descriptions are not of the files that they were of")
	}
	h.wants(10, "cdef>")
	h.write(11, "more")
	h.wants(10, "more")
	h.shares(11, 20, true)
	stat := make([]byte, 144)
	h.call(syscall.SYS_FSTAT, 13, stat)
	if mode, uid, gid := binary.NativeEndian.Uint32(stat[24:]), binary.NativeEndian.Uint32(stat[28:]), binary.NativeEndian.Uint32(stat[32:]); mode&0o7777 != 0o604 || uid != 12 || gid != 34 {
		t.Errorf("mode %o, owner %d:%d", mode, uid, gid)
	}
	h.at(30, "/proc/self/fd/13", os.O_RDONLY)
	h.wants(30, "write only")
	b := make([]byte, 8)
	h.call(syscall.SYS_PREAD64, 12, b, 8, 9<<20)
	if string(b) != "\x00far\x00\x00\x00\x00" {
		t.Errorf("read %q", b)
	}
}

// TestDeletedFilesOfTwoFileSystems has files whose inodes have the same number.
func TestDeletedFilesOfTwoFileSystems(t *testing.T) {
	h := newHeld(t)
	for i, number := range []int{10, 11} {
		folder := t.TempDir()
		if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=64k,inode32"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(folder, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		path := filepath.Join(folder, "gone")
		writeFile(t, path, []string{"first", "second"}[i])
		h.at(number, path, os.O_RDONLY)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if now := seen(t, h); now[0].Inode != now[1].Inode || now[0].Device == now[1].Device {
		t.Skipf("the kernel gave them the inodes %d and %d", now[0].Inode, now[1].Inode)
	}
	im := keep(t, h)
	h.kill()
	h = again(t, im, Restoring{})
	h.wants(10, "first")
	h.wants(11, "second")
}

func TestDeletedFilesOfOthersAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone")
	writeFile(t, path, "content")
	h, other := newHeld(t), newHeld(t)
	h.at(10, path, os.O_WRONLY|os.O_APPEND)
	other.at(10, path, os.O_RDONLY)
	os.Remove(path)
	refused(t, h, codeShared)
	other.call(sysClose, 10)
	refused(t, h)
	im := keep(t, h)
	os.RemoveAll(filepath.Dir(path))
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeMissing}) {
		t.Errorf("without its folder: %v, error %v", refusals, err)
	}
}

func TestSignalOwnersAreKept(t *testing.T) {
	h := newHeld(t)
	h.pipe(10, 11, nonBlock)
	blocked := make([]byte, 8)
	binary.NativeEndian.PutUint64(blocked, 1<<(syscall.SIGUSR1-1))
	h.call(sysFcntl, 10, syscall.F_SETOWN, h.pid)
	h.call(sysFcntl, 10, fcntlSetSignal, int(syscall.SIGUSR1))
	h.call(sysFcntl, 10, syscall.F_SETFL, syscall.O_ASYNC|nonBlock)

	h = roundTrip(t, h)

	h.call(syscall.SYS_RT_SIGPROCMASK, 0, blocked, 0, 8)
	h.write(11, "x")
	siginfo := make([]byte, 128)
	if got := h.call(syscall.SYS_RT_SIGTIMEDWAIT, blocked, siginfo, make([]byte, 16), 8); got != int(syscall.SIGUSR1) {
		t.Errorf("signal %d", got)
	}
	if fd := binary.NativeEndian.Uint32(siginfo[24:]); fd != 10 {
		t.Errorf("the signal is of descriptor %d", fd)
	}

	h.call(sysFcntl, 10, syscall.F_SETOWN, os.Getpid())
	refusedNow(t, h, codeSignal)
}
