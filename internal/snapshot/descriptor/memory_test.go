package descriptor

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

func (h *held) memfd(number int, name string, flags int) {
	h.t.Helper()
	fd := h.call(319, name, flags)
	h.call(sysDup3, fd, number, 0)
	h.call(sysClose, fd)
}

func TestMemfdsAreKept(t *testing.T) {
	h := newHeld(t)
	h.memfd(50, "sealed (deleted)", memfdSealable)
	h.memfd(51, "plain", 0)
	h.memfd(52, "holes", memfdNoExec)
	h.memfd(53, "empty", 0)
	h.write(50, "content")
	h.call(sysFcntl, 50, 1033, 2|4|8) // F_ADD_SEALS: shrink, grow, write
	for range 6 {
		h.write(51, strings.Repeat("p", 512<<10))
	}
	h.call(syscall.SYS_PWRITE64, 52, []byte("far"), 3, 40<<20+5)
	h.call(syscall.SYS_FTRUNCATE, 52, 80<<20+1)
	h.at(54, "/proc/self/fd/51", os.O_RDONLY)
	h.call(sysDup3, 51, 60, 0)
	h.call(syscall.SYS_LSEEK, 50, 3, 0)
	h.call(syscall.SYS_LSEEK, 54, 3<<20-4, 0)

	h = roundTrip(t, h)

	h.wants(50, "tent")
	if _, err := h.try(syscall.SYS_PWRITE64, 50, []byte("x"), 1, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("write to sealed memory: %v", err)
	}
	for fd, want := range map[int]int{50: 2 | 4 | 8, 51: 1, 52: sealExec} {
		if got := h.call(sysFcntl, fd, 1034, 0); got != want {
			t.Errorf("seals of %d are %#x, want %#x", fd, got, want)
		}
	}
	h.wants(54, "pppp")
	h.shares(51, 60, true)
	h.call(syscall.SYS_PWRITE64, 51, []byte("q"), 1, 3<<20)
	h.wants(54, "q")
	b := make([]byte, 16)
	if n := h.call(syscall.SYS_PREAD64, 52, b, 16, 40<<20); n != 16 || !bytes.HasPrefix(b, []byte("\x00\x00\x00\x00\x00far\x00")) {
		t.Errorf("%d bytes %q", n, b)
	}
}

func TestMemfdsOfOthersAreRefused(t *testing.T) {
	h := newHeld(t)
	h.memfd(5, "shared", 0)
	refused(t, h)
	child := h.call(syscall.SYS_FORK)
	refused(t, h, codeShared)
	syscall.Kill(child, syscall.SIGKILL)
	h.call(syscall.SYS_WAIT4, child, 0, 0, 0)
}
