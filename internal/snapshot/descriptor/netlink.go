package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A netlinkSocket is one of a protocol in which the kernel knows no more of a socket than
// what can be asked of it: its number, the groups that it listens to, and whom it is
// connected to. See netlink(7). What was received and not read is refused: only the kernel
// could send it again.
type netlinkSocket struct{}

const (
	levelNetlink = 270

	netlinkJoin   = 1 // NETLINK_ADD_MEMBERSHIP
	netlinkGroups = 9 // NETLINK_LIST_MEMBERSHIPS

	netlinkNameSize = 12 // of struct sockaddr_nl: family, nothing, number, groups
	mostGroups      = 1 << 12
)

// netlinkKept are the protocols that are kept: as vos handles names them, and by number.
var netlinkKept = map[string]int{"route": 0, "sock_diag": 4, "kobject_uevent": 15}

func isNetlinkKept(protocol int) bool {
	for _, number := range netlinkKept {
		if number == protocol {
			return true
		}
	}
	return false
}

func (netlinkSocket) look(l *looking, h *handle.Handle) []api.Refusal {
	if _, ok := netlinkKept[h.Socket.Protocol]; h.Socket.Found && !ok {
		return []api.Refusal{refusal(codeKind, h, leadsTo(h)+", of which the kernel may know more than it tells", "close it, or "+inheritRemedy(h.FD))}
	}
	if here, err := l.network(h.PID); err != nil || !here {
		return []api.Refusal{refusal(codeNetwork, h, leadsTo(h)+", in another network namespace", "run vos in it: nsenter --net")}
	}
	return nil
}

func (netlinkSocket) dump(_ *dumping, h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	if !isNetlinkKept(s.Protocol) {
		return refusal(codeKind, h, leadsTo(h)+", of which the kernel may know more than it tells", "close it, or "+inheritRemedy(h.FD))
	}
	if waiting, err := raw.Ready(kernel.EventIn | kernel.EventError); err != nil || waiting {
		return errors.Join(err, refusal(codeWaiting, h, leadsTo(h)+", which has messages or errors that were not read", TryAgain))
	}
	if len(s.Local) != netlinkNameSize || len(s.Peer) != netlinkNameSize {
		return fmt.Errorf("its names have %d and %d bytes", len(s.Local), len(s.Peer))
	}
	if slices.Max(s.Peer[2:]) == 0 {
		s.State, s.Peer = stateUnconnected, nil
	}
	groups, err := raw.Option(levelNetlink, netlinkGroups)
	if err != nil {
		return err
	}
	for i, b := range groups {
		for bit := range 8 {
			if b&(1<<bit) != 0 {
				s.Groups = append(s.Groups, 8*i+bit+1)
			}
		}
	}
	return nil
}

// number is how the kernel and others address a socket; 0 is not at all.
func (netlinkSocket) number(s *image.Socket) uint32 { return binary.NativeEndian.Uint32(s.Local[4:]) }

func (n netlinkSocket) plan(p *planning, i int, s *image.Socket) []api.Refusal {
	raw, err := n.open(nil, i, s) // and closed again
	if err == nil {
		err = raw.Close()
	}
	if err != nil {
		return []api.Refusal{p.refusal(codeAddress, i, fmt.Sprintf("a netlink socket of number %d can't be made: %v", n.number(s), err), "end what has the number, in /proc/net/netlink")}
	}
	return nil
}

func (n netlinkSocket) open(_ *Opened, _ int, s *image.Socket) (_ kernel.Raw, err error) {
	raw, err := newSocket(s)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, raw.Close())
		}
	}()
	if n.number(s) != 0 {
		name := slices.Clone(s.Local)
		clear(name[8:]) // the groups are joined by number
		if err := raw.Bind(name); err != nil {
			return -1, err
		}
	}
	for _, group := range s.Groups {
		if err := raw.SetOption(levelNetlink, netlinkJoin, binary.NativeEndian.AppendUint32(nil, uint32(group))); err != nil {
			return -1, err
		}
	}
	if s.State == stateConnected {
		return raw, raw.Connect(s.Peer)
	}
	return raw, nil
}

// checkNetlink makes sure that an image's socket can be made.
func checkNetlink(s *image.Socket) error {
	if !isNetlinkKept(s.Protocol) || len(s.Local) != netlinkNameSize || s.State == stateConnected && len(s.Peer) != netlinkNameSize || s.State == stateListening ||
		len(s.Groups) > mostGroups || slices.ContainsFunc(s.Groups, func(g int) bool { return g < 1 || g > mostGroups }) {
		return fmt.Errorf("it is no netlink socket that this vos can make: of protocol %d, in %d groups", s.Protocol, len(s.Groups))
	}
	return nil
}
