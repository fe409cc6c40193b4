package criu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
)

// States of sockets in CRIU's images: those of TCP, for all families.
var socketStates = map[string]uint32{"established": 1, "unconnected": 7, "listening": 10}

const (
	protocolTCP = 6
	protocolUDP = 17
)

// socket is a socket of any family.
func (x *export) socket(i int) *file {
	s := x.img.Files[i].Socket
	inode, ok := x.inode(i, s.ID)
	state, known := socketStates[s.State]
	switch {
	case !ok:
		return nil
	case len(s.Filter) > 0 || len(s.Memberships) > 0:
		x.refuseFile(i, "it is a socket with a filter, or in a multicast group")
		return nil
	case !known:
		x.refuseFile(i, fmt.Sprintf("it is a socket in state %q", s.State))
		return nil
	case s.Family == syscall.AF_UNIX:
		return x.unix(i, inode, state)
	case s.Family == syscall.AF_INET || s.Family == syscall.AF_INET6:
		return x.inet(i, inode, state)
	}
	x.refuseFile(i, fmt.Sprintf("it is a socket of family %d", s.Family))
	return nil
}

// inet is a socket of IPv4 or IPv6.
func (x *export) inet(i int, inode, state uint32) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	s := f.Socket
	switch {
	case s.Type == syscall.SOCK_STREAM && s.Protocol == protocolTCP, s.Type == syscall.SOCK_DGRAM && s.Protocol == protocolUDP:
	default:
		x.refuseFile(i, fmt.Sprintf("it is a socket of type %d and protocol %d", s.Type, s.Protocol))
		return nil
	}
	if s.Protocol == protocolTCP && s.State == "established" {
		if s.Shutdown&shutSend != 0 {
			state = stateFinWait
		}
		if s.TCP != nil && s.TCP.PeerEnded {
			x.refuseFile(i, "its peer has ended the connection")
		}
		x.stream(i, inode, s)
	}
	if len(s.Queue) > 0 {
		x.refuseFile(i, "datagrams wait in it")
	}
	e := &inetSocket{ID: id, Inode: inode, Family: uint32(s.Family), Type: uint32(s.Type), Protocol: uint32(s.Protocol), State: state, Flags: f.Flags,
		Backlog: uint32(s.Backlog), Owner: x.owner(i), Options: optionsOf(s), Namespace: namespaceNetwork}
	e.SourcePort, e.Source = address(s.Family, s.Local)
	e.PeerPort, e.Peer = address(s.Family, s.Peer)
	if s.Shutdown != 0 {
		e.Shutdown = new(uint32(s.Shutdown))
	}
	freeBind, packetInfo := option{levelIP, 15}, option{levelIP, 8}
	if s.Family == syscall.AF_INET6 {
		freeBind, packetInfo = option{levelIPv6, 78}, option{levelIPv6, 49}
		e.V6Only = new(value(s, option{levelIPv6, 26}) != 0)
		e.Interface = textOption(s, option{levelSocket, soDevice})
	} else {
		e.IP.TOS, e.IP.TTL = present(s, option{levelIP, 1}), present(s, option{levelIP, 2})
	}
	e.IP.FreeBind, e.IP.PacketInfo = value(s, freeBind) != 0, value(s, packetInfo) != 0
	if s.Protocol == protocolTCP {
		e.TCP = &tcpOptions{Cork: new(value(s, option{levelTCP, 3}) != 0), NoDelay: new(value(s, option{levelTCP, 1}) != 0)}
		if e.Options.KeepAlive {
			e.TCP.KeepIdle, e.TCP.KeepInterval, e.TCP.KeepCount = present(s, option{levelTCP, 4}), present(s, option{levelTCP, 5}), present(s, option{levelTCP, 6})
			e.Options.KeepIdle, e.Options.KeepInterval, e.Options.KeepCount = e.TCP.KeepIdle, e.TCP.KeepInterval, e.TCP.KeepCount
		}
	}
	return &file{Inet: e}
}

// address returns the port and the address of a struct sockaddr; without one, zeroes.
func address(family int, name []byte) (port uint32, words []uint32) {
	at, size := 4, 4
	if family == syscall.AF_INET6 {
		at, size = 8, 16
	}
	if len(name) < at+size {
		return 0, make([]uint32, size/4)
	}
	return uint32(binary.BigEndian.Uint16(name[2:])), words32(name[at : at+size])
}

// unix is a unix socket.
func (x *export) unix(i int, inode, state uint32) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	s := f.Socket
	e := &unixSocket{ID: id, Inode: inode, Type: uint32(s.Type), State: state, Flags: f.Flags, Backlog: uint32(s.Backlog), Owner: x.owner(i),
		Options: optionsOf(s), Namespace: namespaceNetwork}
	if len(s.Local) > 2 {
		e.Name = s.Local[2:]
		if path, _, _ := bytes.Cut(e.Name, []byte{0}); len(path) > 0 {
			e.Name = append(slices.Clone(path), 0)
			if s.Path == nil || s.Path.Path != string(path) {
				x.refuseFile(i, fmt.Sprintf("it is a socket that was bound to %q, and is at another path now", path))
				return nil
			}
			e.File = &permissions{Mode: syscall.S_IFSOCK | s.Path.Mode, UID: s.Path.UID, GID: s.Path.GID}
		}
	}
	if s.Shutdown != 0 {
		e.Shutdown = new(uint32(s.Shutdown))
	}
	if peer := x.peer(s); peer != nil {
		n, ok := x.inode(i, peer.ID)
		if !ok {
			return nil
		}
		e.Peer = n
	} else if s.State == "established" {
		x.refuseFile(i, "it is connected to a socket that is not in the image")
	}
	x.queue(i, s)
	return &file{Unix: e}
}

// peer is the socket at the other end of one, or nil.
func (x *export) peer(s *image.Socket) *image.Socket {
	for i := range x.img.Files {
		other := x.img.Files[i].Socket
		if other == nil || other == s || other.Family != syscall.AF_UNIX {
			continue
		}
		if s.PeerID != 0 && other.ID == s.PeerID || s.PeerID == 0 && s.State == "established" && len(s.Peer) > 2 && bytes.Equal(other.Local, s.Peer) {
			return other
		}
	}
	return nil
}

const scmRights = 1

// queue adds what a unix socket has received.
func (x *export) queue(i int, s *image.Socket) {
	for _, p := range s.Queue {
		if len(p.From) > 2 {
			x.refuseFile(i, "a datagram waits in it, of a sender with a name")
		}
		e := packet{For: fileNumber(i), Bytes: uint32(len(p.Data))}
		if len(p.Files) > 0 {
			passed := inFlight{Type: scmRights}
			for _, n := range p.Files {
				passed.Files = append(passed.Files, fileNumber(n))
			}
			e.Passed = []inFlight{passed}
		}
		x.extend("sk-queues.img", magicQueues, e, rawBytes(p.Data))
	}
}

// Levels of socket options, and names of those of SOL_SOCKET.
const (
	levelSocket = 1
	levelIP     = 0
	levelTCP    = 6
	levelIPv6   = 41

	soSendBuffer    = 7
	soReceiveBuffer = 8
	soLinger        = 13
	soReceiveTime   = 20
	soSendTime      = 21
	soDevice        = 25
	soMark          = 36
)

type option struct{ level, name int }

// bytesOf returns the value of an option, or nil.
func bytesOf(s *image.Socket, o option) []byte {
	for _, have := range s.Options {
		if have.Level == o.level && have.Name == o.name {
			return have.Value
		}
	}
	return nil
}

// present returns an option that is an int, if the image has it and it is not 0.
func present(s *image.Socket, o option) *uint32 {
	if n := value(s, o); n != 0 {
		return &n
	}
	return nil
}

func value(s *image.Socket, o option) uint32 {
	b := bytesOf(s, o)
	switch {
	case len(b) >= 4:
		return binary.LittleEndian.Uint32(b)
	case len(b) > 0:
		return uint32(b[0])
	}
	return 0
}

func textOption(s *image.Socket, o option) *string {
	text, _, _ := bytes.Cut(bytesOf(s, o), []byte{0})
	if len(text) == 0 {
		return nil
	}
	return new(string(text))
}

// Sizes of buffers that the kernel gives a socket at first, on most machines. An image has
// those that were set; CRIU's needs a number, and BuffersAreSet says that they grow.
const (
	firstBuffer     = 212992
	firstTCPSend    = 16384
	firstTCPReceive = 131072

	sendSet    = 1 // SOCK_SNDBUF_LOCK
	receiveSet = 2
)

// optionsOf are the options that CRIU keeps of every socket.
func optionsOf(s *image.Socket) socketOptions {
	on := func(name int) bool { return value(s, option{levelSocket, name}) != 0 }
	o := socketOptions{
		SendBuffer: firstBuffer, ReceiveBuffer: firstBuffer, ReuseAddress: on(2), Priority: value(s, option{levelSocket, 12}),
		LowWater: max(1, value(s, option{levelSocket, 18})), Mark: present(s, option{levelSocket, soMark}),
		PassCred: on(16), PassSec: on(34), DontRoute: on(5), NoCheck: on(11), Device: textOption(s, option{levelSocket, soDevice}),
		ReusePort: on(15), Broadcast: on(6), KeepAlive: on(9), OutOfBand: value(s, option{levelSocket, 10}),
	}
	if s.Protocol == protocolTCP && s.Family != syscall.AF_UNIX {
		o.SendBuffer, o.ReceiveBuffer = firstTCPSend, firstTCPReceive
	}
	if t := s.TCP; t != nil { // what the kernel had made of them by then
		o.SendBuffer, o.ReceiveBuffer = uint32(t.SendBuffer), uint32(t.ReceiveBuffer)
	}
	if n := value(s, option{levelSocket, soSendBuffer}); n != 0 {
		o.SendBuffer, o.BuffersAreSet = n, o.BuffersAreSet|sendSet
	}
	if n := value(s, option{levelSocket, soReceiveBuffer}); n != 0 {
		o.ReceiveBuffer, o.BuffersAreSet = n, o.BuffersAreSet|receiveSet
	}
	o.SendSec, o.SendUsec = timeOption(s, soSendTime)
	o.ReceiveSec, o.ReceiveUsec = timeOption(s, soReceiveTime)
	if b := bytesOf(s, option{levelSocket, soLinger}); len(b) >= 8 && binary.LittleEndian.Uint32(b) != 0 {
		o.Linger = new(binary.LittleEndian.Uint32(b[4:]))
	}
	return o
}

// timeOption is an option that is a struct timeval.
func timeOption(s *image.Socket, name int) (seconds, microseconds uint64) {
	b := bytesOf(s, option{levelSocket, name})
	if len(b) < 16 {
		return 0, 0
	}
	seconds, microseconds = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	return min(seconds, math.MaxInt64/uint64(time.Second)), microseconds
}
