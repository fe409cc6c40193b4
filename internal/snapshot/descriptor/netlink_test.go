package descriptor

import (
	"bytes"
	"encoding/binary"
	"os"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

func (h *held) setFilter(fd int, filter []byte) {
	h.t.Helper()
	at, err := h.Place(filter)
	if err != nil {
		h.t.Fatal(err)
	}
	program := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, uint64(len(filter)/8)), at)
	h.call(syscall.SYS_SETSOCKOPT, fd, levelSocket, 26, program, len(program)) // SO_ATTACH_FILTER
}

// filterText returns a filter as a text, of which the kernel is asked.
func (h *held) filterText(fd int) string {
	h.t.Helper()
	b, size := make([]byte, 8*200), []byte{200, 0, 0, 0}
	h.call(syscall.SYS_GETSOCKOPT, fd, levelSocket, 26, b, size)
	return string(b)
}

// longFilter lets all pass, after much work.
func longFilter() (filter []byte) {
	for n := range 99 {
		filter = append(filter, 0, 0, 0, 0, byte(n), 0, 0, 0) // ld #n
	}
	return append(filter, 6, 0, 0, 0, 255, 255, 0, 0) // ret #65535
}

func TestNetlinkSocketsAreKept(t *testing.T) {
	h := newHeld(t)
	h.socket(10, kernel.FamilyNetlink, socketRaw|nonBlock) // not bound
	for fd, number := range map[int]uint32{11: uint32(h.pid), 12: 0xf0000000 | uint32(h.pid)} {
		h.socket(fd, kernel.FamilyNetlink, socketDgram|nonBlock)
		name := binary.NativeEndian.AppendUint32([]byte{16, 0, 0, 0}, number)
		h.bind(fd, append(name, 0, 0, 0, 0))
	}
	h.setOption(12, levelNetlink, netlinkJoin, 1)
	h.setOption(12, levelNetlink, netlinkJoin, 33)
	h.setOption(12, levelNetlink, 11, 1)
	h.connect(12, append([]byte{16, 0, 0, 0}, 0, 0, 0, 0, 1, 0, 0, 0))
	fd := h.call(syscall.SYS_SOCKET, kernel.FamilyNetlink, socketRaw|nonBlock, 15)
	h.call(sysDup3, fd, 13, 0)
	h.call(sysClose, fd)
	h.setFilter(13, longFilter())
	filter := h.filterText(13)

	h = h.sockets(10, 11, 12, 13)

	if got := h.filterText(13); got != filter {
		t.Error("its filter is another one")
	}
	groups := make([]byte, 8)
	h.call(syscall.SYS_GETSOCKOPT, 12, levelNetlink, netlinkGroups, groups, []byte{8, 0, 0, 0})
	if want := []byte{1, 0, 0, 0, 1, 0, 0, 0}; !bytes.Equal(groups, want) {
		t.Errorf("it listens to the groups %v, want %v", groups, want)
	}
	// The kernel answers.
	request := binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint32(nil, 17), 18) // RTM_GETLINK
	request = append(binary.NativeEndian.AppendUint16(request, 0x301), make([]byte, 9)...)     // of all
	h.call(syscall.SYS_SENDTO, 11, request, len(request), 0, 0, 0)
	if got, err := h.read(11, 4096); err != nil || len(got) < 32 {
		t.Errorf("an answer of %d bytes, error %v", len(got), err)
	}
}

func TestHostileNetlinkSocketsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*image.Socket){
		"protocol": func(s *image.Socket) { s.Protocol = 12 },
		"name":     func(s *image.Socket) { s.Local = s.Local[:8] },
		"peer":     func(s *image.Socket) { s.State, s.Peer = stateConnected, nil },
		"group":    func(s *image.Socket) { s.Groups = []int{0} },
		"groups":   func(s *image.Socket) { s.Groups = []int{1 << 30} },
		"listens":  func(s *image.Socket) { s.State = stateListening },
	} {
		s := &image.Socket{Family: kernel.FamilyNetlink, Type: socketRaw, State: stateUnconnected, Local: make([]byte, netlinkNameSize)}
		if err := checkSocket(s); err != nil {
			t.Fatal(err)
		}
		change(s)
		if err := checkSocket(s); err == nil {
			t.Errorf("%s: a socket like %+v passes", name, s)
		}
	}
}

func TestRawSocketsAreKept(t *testing.T) {
	const groups = "/proc/sys/net/ipv4/ping_group_range"
	before, err := os.ReadFile(groups)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(groups, []byte("0 0"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(groups, before, 0); err != nil {
			t.Error(err)
		}
	})
	h := newHeld(t)
	make := func(number, family, kind, protocol int) {
		fd := h.call(syscall.SYS_SOCKET, family, kind|nonBlock, protocol)
		h.call(sysDup3, fd, number, 0)
		h.call(sysClose, fd)
	}
	make(10, kernel.FamilyIPv4, socketRaw, levelICMP)
	h.setOption(10, levelRaw, 1, -1) // none of them, as others send some, too
	h.setOption(10, levelIP, 3, 1)
	make(11, kernel.FamilyIPv4, socketRaw, 255)
	h.bind(11, inetName(t, "127.0.0.1:0"))
	make(13, kernel.FamilyIPv4, socketDgram, levelICMP)
	h.bind(13, inetName(t, "127.0.0.1:4321"))
	make(14, kernel.FamilyIPv6, socketRaw, 253)
	h.setOption(14, levelRaw, 7, 4)

	h = h.sockets(10, 11, 13, 14)

	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1}
	name := inetName(t, "127.0.0.1:0")
	h.call(syscall.SYS_SENDTO, 13, echo, len(echo), 0, name, len(name))
	if got, err := h.read(13, 64); err != nil || len(got) != 8 || got[0] != 0 || got[4:6] != "\x10\xe1" {
		t.Errorf("the answer to an echo is %q, error %v", got, err)
	}
}
