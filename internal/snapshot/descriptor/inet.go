package descriptor

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// An inetSocket is one of TCP that listens, is connected (see tcp.go), or is neither nor
// has been, or one of UDP, of ping or of raw packets, with or without a peer. What waits to be accepted, or
// datagrams that wait to be read, are refused: there is no way to put them back.
type inetSocket struct{}

func (inetSocket) look(l *looking, h *handle.Handle) []api.Refusal {
	s := h.Socket
	tcp := s.Protocol == "tcp" || s.Protocol == "mptcp"
	if !tcp && !slices.Contains([]string{"udp", "raw", "icmp"}, s.Protocol) {
		return []api.Refusal{refusal(codeKind, h, leadsTo(h)+", which is not kept", "close it, or "+inheritRemedy(h.FD))}
	}
	if here, err := l.network(h.PID); err != nil || !here {
		return []api.Refusal{refusal(codeNetwork, h, leadsTo(h)+", in another network namespace", "run vos in it: nsenter --net")}
	}
	if s.Signed {
		return []api.Refusal{connectionRefusal(h, "whose segments are signed (TCP-MD5)")}
	}
	if tcp && s.Found && s.State != "listen" && s.State != stateUnconnected {
		return l.lookAtConnection(h)
	}
	return nil
}

func (inetSocket) dump(d *dumping, h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	if !isTCP(s) {
		if !isDatagrams(s) {
			return refusal(codeKind, h, leadsTo(h)+", which is not kept", "close it, or "+inheritRemedy(h.FD))
		}
		// One without ports does not tell what it is connected to, only that it is.
		if _, err := raw.Option(levelIP, ipMTU); err == nil && s.State != stateConnected && s.Type == socketRaw {
			return refusal(codeKind, h, leadsTo(h)+", which is connected", "close it, or "+inheritRemedy(h.FD))
		}
		ready, err := raw.Ready(kernel.EventIn | kernel.EventError)
		if err != nil {
			return err
		}
		if ready {
			return refusal(codeWaiting, h, leadsTo(h)+", which has datagrams or errors that were not read", TryAgain)
		}
		return d.keepMemberships(h, raw, s)
	}
	info, err := raw.Option(levelTCP, tcpInfo)
	if err != nil {
		return err
	}
	if len(info) < 32 {
		return fmt.Errorf("TCP_INFO has %d bytes", len(info))
	}
	if ulp, err := raw.Option(levelTCP, tcpULP); err == nil && s.Protocol == levelTCP && len(ulp) > 0 && ulp[0] != 0 {
		return refusal(codeConnection, h, leadsTo(h)+", which has a protocol in the kernel", "none is known")
	}
	switch info[0] {
	case tcpClosed:
		// One that was connected once tells of its end; a new one does not.
		ended, err := raw.Ready(kernel.EventIn | kernel.EventPeerEnd | kernel.EventError)
		if err != nil {
			return err
		}
		if ended {
			return refusal(codeConnection, h, leadsTo(h)+", a connection that has ended, which is not kept", "try again when the program has closed it")
		}
	case tcpListening:
		s.Backlog = int(binary.NativeEndian.Uint32(info[28:]))
		if waiting := binary.NativeEndian.Uint32(info[24:]); waiting > 0 {
			return refusal(codeWaiting, h, fmt.Sprintf("%s, which has %d connections that were not accepted", leadsTo(h), waiting), TryAgain)
		}
	default:
		return d.keepConnection(h, raw, s, info)
	}
	return nil
}

// network reports whether a process is in vos's network namespace.
func (l *looking) network(pid int) (bool, error) {
	if l.networks == nil {
		l.networks = map[int]bool{}
	}
	if here, ok := l.networks[pid]; ok {
		return here, nil
	}
	here, err := sameNetwork(l.process(pid))
	if err == nil {
		l.networks[pid] = here
	}
	return here, err
}

func (inetSocket) plan(p *planning, i int, s *image.Socket) []api.Refusal {
	if isConnection(s) {
		return p.planConnection(i, s)
	}
	// A socket of such options is made, bound, and closed again.
	raw, err := openInet(s, false)
	if err != nil {
		return []api.Refusal{p.refusal(codeAddress, i, fmt.Sprintf("a socket at %s can't be made: %v", inetText(s.Local), err), "end what has the address, or give this machine the address")}
	}
	if err := raw.Close(); err != nil {
		return []api.Refusal{p.refusal(codeAddress, i, err.Error(), TryAgain)}
	}
	return nil
}

func (inetSocket) open(o *Opened, i int, s *image.Socket) (kernel.Raw, error) {
	if isConnection(s) {
		return o.openConnection(i, s)
	}
	return openInet(s, true)
}

// openInet makes a socket, and lets it listen or connects it if it is to be whole.
func openInet(s *image.Socket, whole bool) (_ kernel.Raw, err error) {
	raw, err := newSocket(s)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	bound := !unspecified(s.Local)
	if bound && isTCP(s) {
		// What is left of connections to the address keeps nobody else off.
		on := binary.NativeEndian.AppendUint32(nil, 1)
		if err := raw.SetOption(levelSocket, soReuseAddress, on); err != nil {
			return -1, err
		}
	}
	if bound {
		if err := raw.Bind(s.Local); err != nil {
			return -1, err
		}
	}
	if err := join(raw, s); err != nil {
		return -1, err
	}
	if whole && s.State == stateListening {
		if err := raw.Listen(s.Backlog); err != nil {
			return -1, err
		}
	}
	if whole && s.State == stateConnected {
		if err := raw.Connect(s.Peer); err != nil {
			return -1, err
		}
	}
	for _, o := range s.Options {
		if bound && o.Level == levelSocket && o.Name == soReuseAddress {
			err = raw.SetOption(o.Level, o.Name, o.Value)
		}
	}
	return raw, err
}

// isDatagrams reports whether a socket is one of UDP, of ping (ICMP without headers), or
// of raw packets.
func isDatagrams(s *image.Socket) bool {
	return s.Type == socketRaw || s.Type == socketDgram && slices.Contains([]int{levelUDP, levelICMP, levelICMPv6}, s.Protocol)
}

// unspecified reports whether a socket has no port.
func unspecified(name []byte) bool { return len(name) < 4 || name[2] == 0 && name[3] == 0 }

// inetAddress returns what a struct sockaddr says; of another family it is not valid.
func inetAddress(name []byte) netip.AddrPort {
	switch {
	case len(name) >= 8 && name[0] == byte(kernel.FamilyIPv4):
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:8])), binary.BigEndian.Uint16(name[2:]))
	case len(name) >= 24 && name[0] == byte(kernel.FamilyIPv6):
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(name[8:24])), binary.BigEndian.Uint16(name[2:]))
	}
	return netip.AddrPort{}
}

// inetText returns an address in words.
func inetText(name []byte) string {
	if a := inetAddress(name); a.IsValid() {
		return a.String()
	}
	return "an address of no known family"
}
