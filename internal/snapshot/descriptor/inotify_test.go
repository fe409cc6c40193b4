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

func TestWatchesAreKept(t *testing.T) {
	folder := t.TempDir()
	file, inner, link := filepath.Join(folder, "a file"), filepath.Join(folder, "inner"), filepath.Join(folder, "link")
	writeFile(t, file, "content")
	if err := errors.Join(os.Mkdir(inner, 0o755), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	h := newHeld(t)
	fd := h.call(syscall.SYS_INOTIFY_INIT1, nonBlock)
	h.call(sysDup3, fd, 10, 0)
	h.call(sysDup3, fd, 11, 0)
	h.call(sysClose, fd)
	for _, path := range []string{file, folder, inner} {
		h.call(syscall.SYS_INOTIFY_ADD_WATCH, 10, path, syscall.IN_MODIFY|syscall.IN_CREATE)
	}
	h.call(syscall.SYS_INOTIFY_RM_WATCH, 10, 2)
	h.call(syscall.SYS_INOTIFY_ADD_WATCH, 10, link, syscall.IN_ATTRIB|syscall.IN_DONT_FOLLOW|syscall.IN_ONESHOT)
	refusedNow(t, h, codeWaiting)
	h.wants(11, string(watchEvent(2, syscall.IN_IGNORED, "")))
	fd = h.call(syscall.SYS_INOTIFY_INIT1, 0)
	h.call(sysDup3, fd, 12, syscall.O_CLOEXEC) // watches nothing
	h.call(sysClose, fd)

	h = roundTrip(t, h)

	h.shares(10, 11, true)
	if _, err := h.read(10, 1000); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("there is an event: %v", err)
	}
	writeFile(t, filepath.Join(inner, "new"), "")
	h.wants(10, string(watchEvent(3, syscall.IN_CREATE, "new")))
	h.at(20, file, os.O_WRONLY)
	h.write(20, "x")
	h.wants(10, string(watchEvent(1, syscall.IN_MODIFY, "")))
	if err := os.Lchown(link, 12, 34); err != nil {
		t.Fatal(err)
	}
	h.wants(10, string(watchEvent(4, syscall.IN_ATTRIB, ""))+string(watchEvent(4, syscall.IN_IGNORED, "")))
}

func watchEvent(number, mask uint32, name string) []byte {
	size := 0
	if name != "" {
		size = (len(name) + 16) &^ 15
	}
	b := make([]byte, 16+size)
	binary.NativeEndian.PutUint32(b, number)
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(size))
	copy(b[16:], name)
	return b
}

func TestWatchesThatAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watched")
	writeFile(t, path, "content")
	h := newHeld(t)
	h.at(5, path, os.O_RDONLY)
	h.call(syscall.SYS_INOTIFY_INIT1, 0)
	h.call(syscall.SYS_INOTIFY_ADD_WATCH, 0, path, syscall.IN_MODIFY)
	im := keep(t, h)
	os.Rename(path, path+"~")
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeMissing, codeMissing}) {
		t.Errorf("gone: %v, error %v", refusals, err)
	}
	writeFile(t, path, "content")
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeChanged, codeChanged}) {
		t.Errorf("another: %v, error %v", refusals, err)
	}
	os.Remove(path + "~")
	refused(t, h, codeHidden)
}

func TestFIFOsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	h, other := newHeld(t), newHeld(t)
	h.at(10, path, os.O_RDONLY|nonBlock)
	h.at(11, path, os.O_WRONLY)
	h.call(sysFcntl, 10, syscall.F_SETFL, 0)
	h.at(12, path, os.O_RDWR|nonBlock)
	h.write(11, "content")
	other.at(10, path, os.O_RDONLY|nonBlock)
	refused(t, h, codeOutside, codeOutside)
	other.call(sysClose, 10)

	h = roundTrip(t, h)

	h.wants(10, "content")
	h.write(12, "more")
	h.wants(10, "more")
	other.at(10, path, os.O_WRONLY|nonBlock)
	other.write(10, "from outside")
	h.wants(12, "from outside")
	other.call(sysClose, 10)
	for _, fd := range []int{11, 12} {
		h.call(sysClose, fd)
	}
	h.wants(10, "")

	im := keep(t, h)
	os.Remove(path)
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeMissing}) {
		t.Errorf("gone: %v, error %v", refusals, err)
	}
	writeFile(t, path, "no FIFO")
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeChanged}) {
		t.Errorf("another: %v, error %v", refusals, err)
	}
	refused(t, h, codeDeleted)
}

const (
	sysPidfdSendSignal = 424
)

func TestPidfdsOfItselfAreKept(t *testing.T) {
	h := newHeld(t)
	fd := h.call(sysPidfdOpen, h.pid, nonBlock)
	h.call(sysDup3, fd, 10, 0)
	h.call(sysDup3, fd, 11, 0)
	h.call(sysClose, fd)
	h.newEpoll(20)
	h.watch(20, 10, epollIn, 10)
	before := seen(t, h)
	im := keep(t, h)
	im.Processes[0].PID = h.pid
	h.kill()
	h = again(t, im, Restoring{})
	after := seen(t, h)
	for i := range after {
		if after[i].Flags != before[i].Flags || after[i].Kind != before[i].Kind {
			t.Errorf("%+v, was %+v", after[i], before[i])
		}
	}
	if got := after[0].Process.PID; got != h.pid {
		t.Errorf("it leads to process %d, not %d", got, h.pid)
	}
	h.shares(10, 11, true)
	h.fires(20)
	h.call(sysPidfdSendSignal, 11, 0, 0, 0)

	other := newHeld(t)
	other.call(sysPidfdOpen, os.Getpid(), 0)
	refused(t, other, codeKind)
}
