package descriptor

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Which multicast groups a socket is in the kernel does not list. It tells which groups an
// interface receives, and answers for each whether a socket has joined it there.

const (
	joinGroup   = 42 // MCAST_JOIN_GROUP
	groupFilter = 48 // MCAST_MSFILTER

	// struct group_filter: interface, group, mode, number of sources, sources.
	addressSize     = 128 // struct sockaddr_storage
	filterGroup     = 8
	filterMode      = filterGroup + addressSize
	filterNumber    = filterMode + 4
	filterSources   = filterNumber + 4
	mostSources     = 256
	exclude         = 0 // MCAST_EXCLUDE: all sources but these
	mostMemberships = 1 << 10
)

// A multicastGroup is received by an interface.
type multicastGroup struct {
	device string
	index  uint32
	group  netip.Addr
}

// multicastGroups returns what the interfaces that a process sees receive.
func (d *dumping) multicastGroups(pid int) (all []multicastGroup, err error) {
	p := d.process(pid)
	for name, parse := range map[string]func(string) ([]multicastGroup, error){"igmp": parseIGMP, "igmp6": parseIGMP6} {
		err := p.NetworkTable(name, func(text []byte) error {
			groups, err := parse(string(text))
			all = append(all, groups...)
			return err
		})
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return nil, err
		}
	}
	return all, nil
}

// parseIGMP reads /proc/PID/net/igmp: an interface a line, and below its groups.
func parseIGMP(text string) (all []multicastGroup, err error) {
	var at multicastGroup
	for _, line := range strings.Split(text, "\n")[1:] {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != '\t':
			index, err := strconv.ParseUint(f[0], 10, 32)
			if err != nil || len(f) < 2 {
				return nil, fmt.Errorf("parse interface %.60q in the table of multicast groups: %w", line, err)
			}
			at.index, at.device = uint32(index), f[1]
		default:
			word, err := strconv.ParseUint(f[0], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("parse group %.60q in the table of multicast groups: %w", line, err)
			}
			// A word of the machine, as it stands in a packet.
			at.group = netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, uint32(word))))
			all = append(all, at)
		}
	}
	return all, nil
}

// parseIGMP6 reads /proc/PID/net/igmp6: interface, name, group.
func parseIGMP6(text string) (all []multicastGroup, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		index, err := strconv.ParseUint(f[0], 10, 32)
		address, bad := hex.DecodeString(f[2])
		if err = errors.Join(err, bad); err != nil || len(address) != 16 {
			return nil, fmt.Errorf("parse %.60q in the table of multicast groups: %w", line, err)
		}
		all = append(all, multicastGroup{device: f[1], index: uint32(index), group: netip.AddrFrom16([16]byte(address))})
	}
	return all, nil
}

// levelOfGroup is the level of options of a group's family.
func levelOfGroup(group netip.Addr) int {
	if group.Is4() {
		return levelIP
	}
	return levelIPv6
}

// keepMemberships keeps the groups that a socket has joined.
func (d *dumping) keepMemberships(h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	groups, err := d.multicastGroups(h.PID)
	if err != nil {
		return err
	}
	for _, g := range groups {
		level := levelOfGroup(g.group)
		if level == levelIPv6 && s.Family != kernel.FamilyIPv6 {
			continue
		}
		filter := make([]byte, filterSources+mostSources*addressSize)
		binary.NativeEndian.PutUint32(filter, g.index)
		putAddress(filter[filterGroup:], g.group)
		binary.NativeEndian.PutUint32(filter[filterNumber:], mostSources)
		err := raw.Ask(level, groupFilter, filter)
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOPROTOOPT) {
			continue // it has not joined
		}
		if err != nil {
			return err
		}
		number := binary.NativeEndian.Uint32(filter[filterNumber:])
		if number > mostSources {
			return refusal(codeKind, h, leadsTo(h)+fmt.Sprintf(", which filters %d senders to a multicast group", number), "close it, or "+inheritRemedy(h.FD))
		}
		s.Memberships = append(s.Memberships, image.Membership{Level: level, Device: g.device, Filter: filter[:filterSources+int(number)*addressSize]})
	}
	return nil
}

// putAddress writes a struct sockaddr without a port.
func putAddress(to []byte, a netip.Addr) {
	if a.Is4() {
		binary.NativeEndian.PutUint16(to, kernel.FamilyIPv4)
		copy(to[4:], a.AsSlice())
		return
	}
	binary.NativeEndian.PutUint16(to, kernel.FamilyIPv6)
	copy(to[8:], a.AsSlice())
}

// join joins a socket's groups again, by the names of the interfaces.
func join(raw kernel.Raw, s *image.Socket) error {
	for _, m := range s.Memberships {
		index, err := raw.InterfaceIndex(m.Device)
		if err != nil {
			return fmt.Errorf("join a multicast group: %w", err)
		}
		filter := append(binary.NativeEndian.AppendUint32(nil, index), m.Filter[4:]...)
		if err := raw.SetOption(m.Level, joinGroup, filter[:filterMode]); err != nil {
			return fmt.Errorf("join a multicast group on %s: %w", m.Device, err)
		}
		if binary.NativeEndian.Uint32(filter[filterMode:]) == exclude && len(filter) == filterSources {
			continue // as one who has just joined
		}
		if err := raw.SetOption(m.Level, groupFilter, filter); err != nil {
			return fmt.Errorf("choose the senders to a multicast group on %s: %w", m.Device, err)
		}
	}
	return nil
}

// checkMemberships makes sure that an image's can be read.
func checkMemberships(s *image.Socket) error {
	for _, m := range s.Memberships {
		if !isDatagrams(s) || m.Level != levelIP && m.Level != levelIPv6 || m.Device == "" || len(m.Filter) < filterSources ||
			len(m.Filter) != filterSources+int(min(binary.NativeEndian.Uint32(m.Filter[filterNumber:]), mostSources))*addressSize {
			return fmt.Errorf("it is in a multicast group that this vos can't join, of level %d, by %d bytes", m.Level, len(m.Filter))
		}
	}
	if len(s.Memberships) > mostMemberships {
		return fmt.Errorf("it is in %d multicast groups", len(s.Memberships))
	}
	return nil
}
