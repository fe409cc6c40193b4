package descriptor

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// filterOf returns what a socket receives of a group on the first interface, lo.
func (h *held) filterOf(fd int, group string) []byte {
	h.t.Helper()
	a := netip.MustParseAddr(group)
	b := make([]byte, filterSources+4*addressSize)
	b[0] = 1
	putAddress(b[filterGroup:], a)
	b[filterNumber] = 4
	if _, err := h.try(syscall.SYS_GETSOCKOPT, fd, levelOfGroup(a), groupFilter, b, binary.NativeEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return []byte(err.Error())
	}
	return b
}

func (h *held) joins(fd int, group string) {
	h.t.Helper()
	b := make([]byte, filterMode)
	b[0] = 1
	a := netip.MustParseAddr(group)
	putAddress(b[filterGroup:], a)
	h.call(syscall.SYS_SETSOCKOPT, fd, levelOfGroup(a), joinGroup, b, len(b))
}

func TestMulticastGroupsAreKept(t *testing.T) {
	h := newHeld(t)
	h.socket(10, kernel.FamilyIPv4, socketDgram|nonBlock)
	h.bind(10, inetName(t, "224.0.0.77:0"))
	h.joins(10, "224.0.0.77")
	h.joins(10, "239.1.2.3")
	h.socket(11, kernel.FamilyIPv6, socketDgram|nonBlock)
	h.joins(11, "ff01::4321")
	h.joins(11, "224.0.0.77")
	h.socket(12, kernel.FamilyIPv4, socketDgram|nonBlock) // in none
	// Of one sender only.
	h.socket(13, kernel.FamilyIPv4, socketDgram|nonBlock)
	h.joins(13, "239.1.2.3")
	filter := h.filterOf(13, "239.1.2.3")[:filterSources+addressSize]
	filter[filterMode], filter[filterNumber] = 1, 1
	putAddress(filter[filterSources:], netip.MustParseAddr("127.0.0.9"))
	h.call(syscall.SYS_SETSOCKOPT, 13, levelIP, groupFilter, filter, len(filter))

	look := func(h *held) (all [][]byte) {
		for fd := 10; fd < 14; fd++ {
			for _, group := range []string{"224.0.0.77", "239.1.2.3", "ff01::4321"} {
				all = append(all, h.filterOf(fd, group))
			}
		}
		return all
	}
	before := look(h)
	joined := 0
	for _, b := range before {
		if len(b) > filterSources {
			joined++
		}
	}
	if joined != 5 {
		t.Fatalf("joined %d groups: %q", joined, before)
	}
	h = h.sockets(10, 11, 12, 13)
	if after := look(h); !slices.EqualFunc(before, after, bytes.Equal) {
		t.Errorf("in other groups than before:\n%q\n%q", before, after)
	}
}

func TestHostileMembershipsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*image.Socket){
		"short":  func(s *image.Socket) { s.Memberships[0].Filter = s.Memberships[0].Filter[:filterSources-1] },
		"number": func(s *image.Socket) { s.Memberships[0].Filter[filterNumber+3] = 255 },
		"level":  func(s *image.Socket) { s.Memberships[0].Level = levelSocket },
		"device": func(s *image.Socket) { s.Memberships[0].Device = "" },
		"TCP":    func(s *image.Socket) { s.Type, s.Protocol = socketStream, levelTCP },
		"many":   func(s *image.Socket) { s.Memberships = slices.Repeat(s.Memberships, mostMemberships+1) },
	} {
		s := &image.Socket{Family: kernel.FamilyIPv4, Type: socketDgram, Protocol: levelUDP, State: stateUnconnected, Local: make([]byte, 16),
			Memberships: []image.Membership{{Device: "lo", Filter: make([]byte, filterSources)}}}
		if err := checkSocket(s); err != nil {
			t.Fatal(err)
		}
		change(s)
		if err := checkSocket(s); err == nil {
			t.Errorf("%s: it passes", name)
		}
	}
}
