package descriptor

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

const nonBlock = syscall.O_NONBLOCK

// pipe makes a pipe with its ends under these numbers; -1 closes one.
func (h *held) pipe(reads, writes, flags int) {
	h.t.Helper()
	b := make([]byte, 8)
	h.call(syscall.SYS_PIPE2, b, flags)
	for i, to := range []int{reads, writes} {
		from := int(b[4*i]) | int(b[4*i+1])<<8
		if to >= 0 {
			h.call(sysDup3, from, to, flags&syscall.O_CLOEXEC)
		}
		h.call(sysClose, from)
	}
}

func TestPipesAreKept(t *testing.T) {
	h := newHeld(t)
	long := strings.Repeat("0123456789abcdef", 3000)
	h.pipe(100, 101, nonBlock|syscall.O_CLOEXEC)
	h.pipe(102, 103, 0)
	h.call(sysFcntl, 103, syscall.F_SETPIPE_SZ, 1<<18)
	h.pipe(104, -1, 0) // all of the writers are gone
	h.pipe(-1, 106, nonBlock)
	h.pipe(108, 109, 0o40000|nonBlock)
	h.call(sysDup3, 103, 110, 0)
	h.at(111, "/proc/self/fd/102", os.O_RDONLY|nonBlock)
	h.at(112, "/proc/self/fd/102", os.O_RDWR)
	h.write(101, "x")
	h.write(103, long)
	h.write(112, "y")

	h = roundTrip(t, h)

	h.wants(100, "x")
	if _, err := h.read(100, 1); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("an empty pipe: %v", err)
	}
	got, err := h.read(102, 20)
	if err != nil || got != long[:20] {
		t.Errorf("read %q, error %v", got, err)
	}
	h.wants(111, long[20:]+"y")
	h.wants(104, "")
	h.call(syscall.SYS_RT_SIGACTION, int(syscall.SIGPIPE), ignore(), 0, 8)
	if _, err := h.try(syscall.SYS_WRITE, 106, []byte("x"), 1); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a pipe that nobody reads: %v", err)
	}
	h.write(109, "one")
	h.write(109, "two")
	h.wants(108, "one")
	if size := h.call(sysFcntl, 102, syscall.F_GETPIPE_SZ); size != 1<<18 {
		t.Errorf("size is %d", size)
	}
	h.shares(103, 110, true)
	h.call(sysClose, 103)
	h.call(sysClose, 110)
	h.call(sysClose, 112)
	h.wants(102, "")
}

// ignore is a struct sigaction of SIG_IGN.
func ignore() []byte { return append([]byte{1}, make([]byte, 31)...) }

func TestPipesThatAreRefused(t *testing.T) {
	t.Run("outside", func(t *testing.T) {
		h := newHeld(t)
		h.pipe(5, 6, 0)
		child := h.call(syscall.SYS_FORK)
		refused(t, h, codeOutside, codeOutside)
		syscall.Kill(child, syscall.SIGKILL)
		h.call(syscall.SYS_WAIT4, child, 0, 0, 0)
		refused(t, h)
	})
	t.Run("packets", func(t *testing.T) {
		h := newHeld(t)
		h.pipe(5, 6, 0o40000)
		refused(t, h)
		h.write(6, "packet")
		refusedNow(t, h, codePackets)
	})
}

func TestEventsAreKept(t *testing.T) {
	h := newHeld(t)
	for i, test := range []struct{ count, flags int }{{0, 0}, {7, nonBlock}, {1 << 31, 1}, {3, 1 | nonBlock | syscall.O_CLOEXEC}} {
		fd := h.call(syscall.SYS_EVENTFD2, test.count, test.flags)
		h.call(sysDup3, fd, 30+i, test.flags&syscall.O_CLOEXEC)
		h.call(sysClose, fd)
	}
	h.call(sysDup3, 31, 40, 0)

	h = roundTrip(t, h)

	h.shares(31, 40, true)
	h.shares(30, 31, false)
	h.wants(40, "\x07\x00\x00\x00\x00\x00\x00\x00")
	if _, err := h.read(31, 8); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("an eventfd that was read: %v", err)
	}
	for range 3 {
		h.wants(33, "\x01\x00\x00\x00\x00\x00\x00\x00")
	}
	if _, err := h.read(33, 8); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("a semaphore at 0: %v", err)
	}
}
