package handle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// open opens this process: what it has open is known to the test.
func open(t *testing.T) *procfs.Process {
	t.Helper()
	p, err := procfs.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func read(t *testing.T, p *procfs.Process, fd int) Handle {
	t.Helper()
	h, err := Read(p, fd)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// create opens a file as the syscall package does: the runtime's own flags stay out.
func create(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := syscall.Open(path, flags, 0o600)
	if err != nil {
		t.Fatalf("open %q: %v", path, err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	return fd
}

func TestFiles(t *testing.T) {
	p := open(t)
	for _, name := range []string{"plain", "with\nnewline", "ends in (deleted)", "\\012", "memfd:x (deleted)", "socket:[1]"} {
		path := filepath.Join(t.TempDir(), name)
		fd := create(t, path, os.O_CREATE|os.O_WRONLY|os.O_APPEND)
		if _, err := syscall.Write(fd, []byte("12345")); err != nil {
			t.Fatal(err)
		}
		check := func(deleted bool) {
			t.Helper()
			h := read(t, p, fd)
			if h.Kind != KindFile || h.Path != path || h.Deleted != deleted || h.Offset != 5 || h.Size != 5 ||
				h.Flags&FlagAppend == 0 || h.Flags.Access() != AccessWrite {
				t.Errorf("%q, deleted %v: %+v", path, deleted, h)
			}
		}
		check(false)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check(true)
	}
	// A deleted file that has another name still.
	path := filepath.Join(t.TempDir(), "first")
	fd := create(t, path, os.O_CREATE|os.O_WRONLY)
	if err := os.Link(path, path+"-second"); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	if h := read(t, p, fd); h.Path != path || !h.Deleted {
		t.Errorf("%+v", h)
	}
}

func TestSameDescription(t *testing.T) {
	first := create(t, "/dev/null", os.O_RDWR)
	other := create(t, "/dev/null", os.O_RDWR)
	dup, err := syscall.Dup(first)
	if err != nil {
		t.Fatal(err)
	}
	pid := os.Getpid()
	for fd, want := range map[int]bool{first: true, dup: true, other: false} {
		if same, err := SameDescription(pid, first, pid, fd); same != want || err != nil {
			t.Errorf("%d and %d: %v, %v; want %v", first, fd, same, err, want)
		}
	}
	syscall.Close(dup)
	if _, err := SameDescription(pid, first, pid, dup); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed one: %v", err)
	}
}

// What an epoll instance holds stays under the number that it came by, though
// another file has it now.
func TestRegistered(t *testing.T) {
	p := open(t)
	epoll, err := syscall.EpollCreate1(0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(epoll)
	var ends, others [2]int
	syscall.Pipe2(ends[:], 0)
	defer syscall.Close(ends[1])
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | 1<<31, Fd: -2, Pad: 0x1234}
	if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, ends[0], &event); err != nil {
		t.Fatal(err)
	}
	file, err := p.DescriptorFile(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	h := read(t, p, epoll)
	want := Registration{FD: ends[0], Events: 1<<31 | 1 | 0x2000 | always, Data: 0x1234_fffffffe, Device: file.Stat.Device, Inode: file.Stat.Inode}
	if h.Kind != KindEpoll || !slices.Equal(h.Epoll, []Registration{want}) {
		t.Errorf("%+v, want %+v", h, want)
	}
	if names := strings.Join(want.EventNames(), " "); names != "EPOLLIN EPOLLRDHUP EPOLLET" {
		t.Error(names)
	}
	is := func(want bool) {
		t.Helper()
		if got, err := Registered(p.PID(), epoll, ends[0]); got != want || err != nil {
			t.Errorf("registered: %v, %v; want %v", got, err, want)
		}
	}
	is(true)
	duplicate, err := syscall.Dup(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(duplicate)
	syscall.Pipe2(others[:], 0)
	defer syscall.Close(others[1])
	syscall.Dup2(others[0], ends[0])
	syscall.Close(others[0])
	defer syscall.Close(ends[0])
	is(false)
	if h := read(t, p, epoll); len(h.Epoll) != 1 || h.Epoll[0].Inode != want.Inode {
		t.Errorf("%+v", h)
	}
}

// A descriptor that is another one at any time is told as one of them or not at
// all, and its neighbours are all told.
func TestDescriptorsThatChange(t *testing.T) {
	p := open(t)
	folder := t.TempDir()
	var files []int
	var want []uint64
	for i, flags := range []int{os.O_RDONLY, os.O_WRONLY | os.O_APPEND} {
		files = append(files, create(t, fmt.Sprintf("%s/%d", folder, i), os.O_CREATE|flags))
		want = append(want, read(t, p, files[i]).Inode)
	}
	syscall.Seek(files[1], 77, 0)
	const changing = 900
	stop, done := make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			syscall.Dup3(files[i%2], changing, 0)
			if i%3 == 0 {
				syscall.Close(changing)
			}
		}
	}()
	defer func() { close(stop); <-done; syscall.Close(changing) }()
	seen := [2]int{}
	for range 3000 {
		h, err := Read(p, changing)
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrRestless) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		i := slices.Index(want, h.Inode)
		if i < 0 || h.Offset != int64(77*i) || (h.Flags&FlagAppend != 0) != (i == 1) || h.Path != fmt.Sprintf("%s/%d", folder, i) {
			t.Fatalf("a descriptor that never was: %+v", h)
		}
		seen[i]++
	}
	if seen[0] == 0 || seen[1] == 0 {
		t.Errorf("the files were seen %v times", seen)
	}
	all, _, err := List(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range files {
		if !slices.ContainsFunc(all, func(h Handle) bool { return h.FD == fd }) {
			t.Errorf("descriptor %d is not listed", fd)
		}
	}
}

// A thread may have a table of its own.
func TestApart(t *testing.T) {
	p := open(t)
	if apart, err := Apart(p); len(apart) != 0 || err != nil {
		t.Fatalf("before: %v, %v", apart, err)
	}
	tid, end := make(chan int), make(chan bool)
	done := make(chan bool)
	go func() {
		defer close(done)
		kernel.OnOwnThread(func() {
			if err := syscall.Unshare(syscall.CLONE_FILES); err != nil {
				t.Error(err)
			}
			tid <- kernel.ThreadID()
			<-end
		})
	}()
	defer func() { close(end); <-done }()
	want := <-tid
	if apart, err := Apart(p); !slices.Equal(apart, []int{want}) || err != nil {
		t.Errorf("%v, %v; want %d", apart, err, want)
	}
}
