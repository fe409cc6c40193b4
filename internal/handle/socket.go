package handle

import (
	"net/netip"
	"strconv"
	"strings"
)

// A Socket is what the kernel tells of one. A socket that is neither bound nor
// connected is in none of its tables: of such a one only the first three are known.
type Socket struct {
	Family   string // inet, inet6, unix, netlink, packet, or what the kernel calls it
	Type     string // stream, dgram, seqpacket, raw; "" is not known
	Protocol string // tcp, udp, mptcp, …; "" where the family says it all

	Found bool   // in the tables; the rest is known
	State string // established, listen, …; unconnected

	Local, Remote netip.AddrPort // of inet and inet6; not valid is none

	Signed bool // of TCP: there are keys for its segments (TCP-MD5)

	Name      string // of unix: the path as the program gave it, or the abstract name
	Abstract  bool   // Name is no path
	Peer      uint64 // of unix: the inode of the socket at the other end; 0 is none
	FileInode uint32 // of unix: the lower half of the inode of the file that it was bound to; 0 is none, or not known
	PeerName  string // of unix: what the other end is bound to, where it is known
	Shutdown  int    // of unix: bit 0 tells that it receives no more, bit 1 that it sends no more

	// Receive and Send are the bytes in the queues; of a socket that listens, the
	// connections that wait to be accepted, and how many may.
	Receive, Send uint32
}

// protocols are the kernel's names of protocols, without the "v6" at their end.
var protocols = map[string]Socket{
	"TCP":            {Family: "inet", Type: "stream", Protocol: "tcp"},
	"MPTCP":          {Family: "inet", Type: "stream", Protocol: "mptcp"},
	"UDP":            {Family: "inet", Type: "dgram", Protocol: "udp"},
	"UDP-Lite":       {Family: "inet", Type: "dgram", Protocol: "udplite"},
	"UDPLITE":        {Family: "inet", Type: "dgram", Protocol: "udplite"},
	"RAW":            {Family: "inet", Type: "raw", Protocol: "raw"},
	"PING":           {Family: "inet", Type: "dgram", Protocol: "icmp"},
	"SCTP":           {Family: "inet", Protocol: "sctp"},
	"UNIX":           {Family: "unix"},
	"UNIX-STREAM":    {Family: "unix", Type: "stream"},
	"UNIX-DGRAM":     {Family: "unix", Type: "dgram"},
	"UNIX-SEQPACKET": {Family: "unix", Type: "seqpacket"},
	"NETLINK":        {Family: "netlink"},
	"PACKET":         {Family: "packet"},
}

func newSocket(protocol string) *Socket {
	name, six := strings.CutSuffix(protocol, "v6")
	s, known := protocols[name]
	switch {
	case !known:
		s.Family = strings.ToLower(strings.TrimPrefix(protocol, "AF_"))
	case six && s.Family == "inet":
		s.Family = "inet6"
	}
	return &s
}

// socketTypes are those of socket(2).
var socketTypes = map[int]string{1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}

// socketStates are those of TCP, which other protocols borrow, linux/tcp_states.h.
var socketStates = [...]string{"", "established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2",
	"time_wait", "unconnected", "close_wait", "last_ack", "listen", "closing", "syn_recv"}

func socketState(state int) string {
	if state > 0 && state < len(socketStates) {
		return socketStates[state]
	}
	return strconv.Itoa(state)
}

// LocalAddress returns where the socket is, as ss(8) writes it: ADDRESS:PORT, or
// the path or @NAME of a unix socket; "" is nowhere.
func (s *Socket) LocalAddress() string {
	switch {
	case s.Abstract:
		return "@" + s.Name
	case s.Name != "":
		return s.Name
	case s.Local.IsValid():
		return s.Local.String()
	}
	return ""
}

// RemoteAddress returns where the other end is, likewise.
func (s *Socket) RemoteAddress() string {
	if s.Remote.IsValid() {
		return s.Remote.String()
	}
	return ""
}

// addressPair is a connection as one of its ends sees it.
type addressPair struct {
	protocol      string
	local, remote netip.AddrPort
}

// pair returns the connection, with addresses that mean the same made equal: an
// inet6 socket may talk to an inet one.
func (s *Socket) pair() addressPair {
	plain := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	protocol := s.Protocol
	if protocol == "mptcp" {
		protocol = "tcp"
	}
	return addressPair{protocol, plain(s.Local), plain(s.Remote)}
}

func (a addressPair) reversed() addressPair { return addressPair{a.protocol, a.remote, a.local} }
