package descriptor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

func TestFilesAreKept(t *testing.T) {
	folder := t.TempDir()
	data, log := filepath.Join(folder, "data"), filepath.Join(folder, "log (deleted)")
	writeFile(t, data, "0123456789")
	writeFile(t, log, "first\n")
	h := newHeld(t)
	h.at(0, "/dev/null", os.O_RDWR)
	h.at(3, data, os.O_RDWR|syscall.O_CLOEXEC)
	h.at(4, data, os.O_RDONLY|syscall.O_NONBLOCK)
	h.at(7, log, os.O_WRONLY|os.O_APPEND)
	h.at(9, folder, os.O_RDONLY|syscall.O_DIRECTORY)
	h.at(12, data, 0o10000000)
	h.at(13, "/dev/urandom", os.O_RDONLY)
	h.at(14, "/dev/full", os.O_WRONLY)
	h.call(sysDup3, 3, 20, 0)
	h.call(syscall.SYS_LSEEK, 3, 4, 0)
	h.call(syscall.SYS_LSEEK, 4, 2, 0)

	h = roundTrip(t, h)

	h.wants(20, "456789")
	h.call(syscall.SYS_LSEEK, 20, 1, 0)
	h.wants(3, "123456789")
	h.wants(4, "23456789")
	h.shares(3, 20, true)
	h.shares(3, 4, false)
	h.write(7, "second\n")
	if got, err := os.ReadFile(log); string(got) != "first\nsecond\n" || err != nil {
		t.Errorf("log is %q, error %v", got, err)
	}
	if _, err := h.try(syscall.SYS_WRITE, 14, []byte("x"), 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("/dev/full: %v", err)
	}
	if _, err := h.read(12, 1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("O_PATH: %v", err)
	}
}

func TestChangedFilesAreRefused(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "data")
	change := map[string]func(){
		"grown":    func() { writeFile(t, path, "longer than it was") },
		"cut":      func() { writeFile(t, path, "x") },
		"replaced": func() { os.Rename(path, path+"~"); writeFile(t, path, "content") },
		"touched":  func() { os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"gone":     func() { os.Remove(path) },
		"fifo":     func() { os.Remove(path); syscall.Mkfifo(path, 0o600) },
		"folder":   func() { os.Remove(path); os.Mkdir(path, 0o755) },
	}
	for _, flags := range []int{os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND} {
		for name, change := range change {
			os.RemoveAll(path)
			writeFile(t, path, "content")
			h := newHeld(t)
			h.at(5, path, flags)
			im := keep(t, h)
			h.kill()
			change()
			var want []api.Code
			appends := flags == os.O_WRONLY|os.O_APPEND
			switch {
			case name == "gone":
				want = []api.Code{codeMissing}
			case name == "grown" && appends, name == "touched" && appends:
			default:
				want = []api.Code{codeChanged}
			}
			refusals, err := Plan(im, Restoring{})
			if diff := cmp.Diff(want, codes(refusals)); diff != "" || err != nil {
				t.Errorf("%s with flags %#x: error %v (-want +got):\n%s", name, flags, err, diff)
			}
			for _, r := range refusals {
				if r.Subject != subject(h.pid, 5) {
					t.Errorf("subject is %q", r.Subject)
				}
			}
			if o, err := Open(im, Restoring{}); (err != nil) != (want != nil) {
				t.Errorf("%s with flags %#x: opened with error %v", name, flags, err)
			} else if err == nil {
				o.Close()
			}
			forced, err := Plan(im, Restoring{Force: true})
			if err != nil || len(forced) > 0 != (name == "gone" || name == "folder" || name == "fifo") {
				t.Errorf("%s, forced: %v, error %v", name, forced, err)
			}
		}
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "data")
	writeFile(t, path, "content")
	for _, test := range []struct {
		name string
		set  func(h *held)
		want []api.Code
	}{
		{"deleted", func(h *held) { os.Mkdir(path+"2", 0o755); h.at(5, path+"2", os.O_RDONLY); os.Remove(path + "2") }, []api.Code{codeDeleted}},
		{"renamed", func(h *held) {
			h.at(5, path+"3", os.O_CREATE|os.O_RDWR)
			os.Link(path+"3", path+"4")
			os.Remove(path + "3")
		}, []api.Code{codeDeleted}},
		{"in /proc", func(h *held) { h.at(5, "/proc/self/status", os.O_RDONLY) }, []api.Code{codeProc}},
		{"a lease on what is mapped", func(h *held) {
			h.at(5, path, os.O_RDONLY)
			h.call(syscall.SYS_MMAP, 0, 4096, syscall.PROT_READ, syscall.MAP_PRIVATE, 5, 0)
			h.call(sysFcntl, 5, syscall.F_SETLEASE, syscall.F_RDLCK)
		}, []api.Code{codeLocks}},
		{"a lease on what is deleted", func(h *held) {
			h.at(5, path+"5", os.O_CREATE|os.O_RDONLY)
			h.call(sysFcntl, 5, syscall.F_SETLEASE, syscall.F_RDLCK)
			os.Remove(path + "5")
		}, []api.Code{codeLocks}},
		{"memory", func(h *held) { h.at(5, "/dev/kmsg", os.O_RDONLY) }, []api.Code{codeDevice}},
	} {
		h := newHeld(t)
		test.set(h)
		refusals := refused(t, h, test.want...)
		if len(refusals) > 0 && refusals[0].Subject != subject(h.pid, 5) {
			t.Errorf("%s: %+v", test.name, refusals)
		}
		h.kill()
	}
}

func TestSharedFilesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	writeFile(t, path, "content")
	for flags, want := range map[int][]api.Code{os.O_RDWR: {codeShared}, os.O_RDWR | os.O_APPEND: {codeShared}, os.O_WRONLY | os.O_APPEND: nil} {
		h := newHeld(t)
		h.at(5, path, flags)
		child := h.call(syscall.SYS_FORK)
		refused(t, h, want...)
		syscall.Kill(child, syscall.SIGKILL)
		h.call(syscall.SYS_WAIT4, child, 0, 0, 0)
		h.kill()
	}
}

func TestInheritedDescriptorsAreGiven(t *testing.T) {
	h := newHeld(t)
	child := h.call(syscall.SYS_FORK) // has the other end, too
	syscall.Kill(child, syscall.SIGKILL)
	h.call(syscall.SYS_WAIT4, child, 0, 0, 0)
	h.at(0, "/dev/ptmx", os.O_RDWR)
	h.call(sysDup3, 0, 5, syscall.O_CLOEXEC)
	h.at(6, "/dev/null", os.O_RDWR)
	im := keep(t, h, 5)
	h.kill()

	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeInherited}) {
		t.Errorf("without: %v, error %v", refusals, err)
	}
	reads, writes, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reads.Close()
	h = again(t, im, Restoring{Inherit: map[int]*os.File{0: writes}})
	writes.Close()
	h.shares(0, 5, true)
	h.write(5, "given")
	h.call(sysClose, 0)
	h.call(sysClose, 5)
	b := make([]byte, 100)
	if n, err := reads.Read(b); err != nil || string(b[:n]) != "given" {
		t.Errorf("read %q, error %v", b[:n], err)
	}
	if n, _ := reads.Read(b); n != 0 {
		t.Errorf("the pipe has more writers: %q", b[:n])
	}
}

func TestImagesThatContradictThemselves(t *testing.T) {
	for name, im := range map[string]*image.Image{
		"kind":   {Files: []image.File{{Kind: "spoon"}}},
		"path":   {Files: []image.File{{Kind: "socket", Socket: &image.Socket{Family: 1, Type: 1, Local: []byte("\x01\x00relative\x00")}}}},
		"family": {Files: []image.File{{Kind: "socket", Socket: &image.Socket{Family: 77, Type: 1, Local: []byte{77, 0}}}}},
		"type":   {Files: []image.File{{Kind: "socket", Socket: &image.Socket{Family: 2, Type: 4, Protocol: 1, Local: []byte{2, 0}}}}},
		"option": {Files: []image.File{{Kind: "socket", Socket: &image.Socket{Family: 2, Type: 1, Protocol: 6, Local: []byte{2, 0}, Options: []image.Option{{Level: 6, Name: 19, Value: []byte{1, 0, 0, 0}}}}}}},
		"lacks":  {Files: []image.File{{Kind: "pipe"}}},
		"file":   {Processes: []image.Process{{Descriptors: []image.Descriptor{{Number: 1, File: 0}}}}},
		"number": {Files: []image.File{{Kind: "eventfd", Event: &image.Event{}}}, Processes: []image.Process{{Descriptors: []image.Descriptor{{Number: -1, File: 0}}}}},
		"twice":  {Files: []image.File{{Kind: "eventfd", Event: &image.Event{}}}, Processes: []image.Process{{Descriptors: []image.Descriptor{{Number: 1}, {Number: 1}}}}},
	} {
		refusals, err := Plan(im, Restoring{})
		if err == nil && len(refusals) == 0 {
			t.Errorf("%s: planned", name)
		}
		if _, err := Open(im, Restoring{}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestFlagsThatNeedCare: links to what is open anew, and O_TMPFILE, which contains
// O_DIRECTORY.
func TestFlagsThatNeedCare(t *testing.T) {
	folder := t.TempDir()
	path, fifo, gone := filepath.Join(folder, "data"), filepath.Join(folder, "fifo"), filepath.Join(folder, "gone")
	writeFile(t, path, "content")
	writeFile(t, gone, "gone")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	const noFollow, unnamed = syscall.O_NOFOLLOW, 0o20200000
	h := newHeld(t)
	h.at(10, path, os.O_RDONLY|noFollow)
	h.at(11, "/dev/null", os.O_RDWR|noFollow)
	h.at(12, fifo, os.O_RDWR|noFollow)
	h.at(13, gone, os.O_RDWR|noFollow)
	h.at(14, folder, os.O_RDWR|unnamed)
	h.at(16, path, os.O_RDWR|syscall.O_SYNC|syscall.O_NOATIME)
	h.write(14, "unnamed")
	os.Remove(gone)
	im := keep(t, h)
	h.kill()
	h = again(t, im, Restoring{})
	h.wants(10, "content")
	h.wants(11, "")
	h.write(12, "fifo")
	h.wants(12, "fifo")
	h.wants(13, "gone")
	h.call(syscall.SYS_LSEEK, 14, 0, 0)
	h.wants(14, "unnamed")
	const status = os.O_RDWR | syscall.O_SYNC | syscall.O_NOATIME | 0o100000
	if flags := h.call(sysFcntl, 16, syscall.F_GETFL); flags != status {
		t.Errorf("flags %#o, want %#o", flags, status)
	}
}

func TestFilesElsewhere(t *testing.T) {
	folder, other := t.TempDir(), t.TempDir()
	h := newHeld(t)
	for i, name := range []string{"data", "gone"} {
		writeFile(t, filepath.Join(folder, name), name)
		h.at(10+i, filepath.Join(folder, name), os.O_RDWR)
	}
	os.Remove(filepath.Join(folder, "gone"))
	h.at(12, folder, os.O_RDONLY)
	im := keep(t, h)
	h.kill()
	os.RemoveAll(folder)
	writeFile(t, filepath.Join(other, "data"), "another")
	h = again(t, im, Restoring{Map: func(path string) string { return strings.Replace(path, folder, other, 1) }})
	h.wants(10, "another")
	h.wants(11, "gone")
	for _, handle := range seen(t, h) {
		if !strings.HasPrefix(handle.Path, other) {
			t.Errorf("descriptor %d leads to %s", handle.FD, handle.Path)
		}
	}
}
