package descriptor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// packets wants packets to be received as they were sent, and no more.
func (h *held) packets(fd int, want ...string) {
	h.t.Helper()
	for _, w := range want {
		if got, err := h.read(fd, 100_000); err != nil || got != w {
			h.t.Errorf("descriptor %d received %.20q of %d bytes, error %v; want %.20q of %d", fd, got, len(got), err, w, len(w))
		}
	}
	if got, err := h.read(fd, 100_000); !errors.Is(err, syscall.EAGAIN) {
		h.t.Errorf("descriptor %d received %.20q more, error %v", fd, got, err)
	}
}

func TestPacketsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	h := newHeld(t)
	long := strings.Repeat("0123456789abcdef", 4000)
	h.pair(10, 11, socketDgram|nonBlock)
	h.pair(12, 13, socketPacket|nonBlock)
	h.pair(14, 15, socketPacket|nonBlock)
	h.socket(16, kernel.FamilyUnix, socketDgram|nonBlock)
	h.bind(16, kernel.UnixAddress(path))
	h.socket(17, kernel.FamilyUnix, socketDgram|nonBlock)
	h.connect(17, kernel.UnixAddress(path))
	h.pair(18, 19, socketDgram|nonBlock)
	for _, packet := range []string{"one", long, "three"} {
		for _, fd := range []int{10, 13, 17} {
			h.write(fd, packet)
		}
	}
	if _, err := h.try(syscall.SYS_SENDTO, 10, []byte("-"), 0, 0, 0, 0); err != nil { // an empty one
		t.Fatal(err)
	}
	h.write(15, "last")
	h.call(sysClose, 15)
	h.write(18, "to nineteen")

	h = h.sockets(10, 11, 12, 13, 14, 16, 17, 18, 19)

	h.packets(11, "one", long, "three", "")
	h.packets(12, "one", long, "three")
	h.packets(16, "one", long, "three")
	h.packets(19, "to nineteen")
	h.packets(10)
	h.wants(14, "last")
	h.wants(14, "") // its end
	for _, fd := range []int{10, 13, 17} {
		h.write(fd, "again")
	}
	h.packets(11, "again")
	h.packets(12, "again")
	h.packets(16, "again")
}

// TestPacketsThatAreRefused: what vOS can't send as it was sent is refused by name, and
// stays with the program.
func TestPacketsThatAreRefused(t *testing.T) {
	folder := t.TempDir()
	h := newHeld(t)
	h.socket(10, kernel.FamilyUnix, socketDgram|nonBlock)
	h.bind(10, kernel.UnixAddress(filepath.Join(folder, "log")))
	h.socket(11, kernel.FamilyUnix, socketDgram|nonBlock)
	h.bind(11, kernel.UnixAddress(filepath.Join(folder, "sender")))
	h.connect(11, kernel.UnixAddress(filepath.Join(folder, "log")))
	h.write(11, "by name")
	peekedNow(t, h, codeWaiting)
	h.packets(10, "by name")
	h.pair(12, 13, socketPacket|nonBlock)
	if _, err := h.try(syscall.SYS_SENDTO, 12, []byte("-"), 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	peekedNow(t, h, codeWaiting)
	h.packets(13, "")
	h.pair(14, 15, socketDgram|nonBlock)
	h.setOption(15, levelSocket, 16, 1) // SO_PASSCRED
	h.write(14, "with credentials")
	peekedNow(t, h, codeInFlight)
	h.packets(15, "with credentials")
	h.setOption(15, levelSocket, soPeekOffset, 3)
	h.write(14, "peeked")
	peekedNow(t, h, codeWaiting)
	h.packets(15, "peeked")
	if err := os.Remove(filepath.Join(folder, "sender")); err != nil {
		t.Fatal(err)
	}
}
