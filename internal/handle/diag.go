package handle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// Numbers of linux/inet_diag.h and linux/unix_diag.h.
const (
	familyUnix  = 1
	familyInet  = 2
	familyInet6 = 10

	protocolTCP   = 6
	protocolUDP   = 17
	protocolMPTCP = 262 // does not fit into a byte: it comes as an attribute

	inetRequestSize     = 56
	inetMessageSize     = 72
	inetRequestProtocol = 3
	inetInfo            = 1 << 1 // INET_DIAG_INFO
	inetSignatures      = 18     // INET_DIAG_MD5SIG

	unixMessageSize = 16
	unixShow        = 1 | 2 | 4 | 0x10 // name, file, peer, queues
	unixName        = 0
	unixFile        = 1
	unixPeer        = 2
	unixQueues      = 4
	unixShutdown    = 6
)

var errShort = errors.New("an answer of sock_diag is cut short")

// dumpTries bounds how often a dump is made again because sockets came and went.
// After that some may be missing: they are told as not found.
const dumpTries = 5

// dumpAll makes a dump, again while it was interrupted. What was interrupted to the
// end counts as made.
func dumpAll(d *kernel.SocketDiag, request []byte, each func(payload []byte) error) error {
	for range dumpTries {
		err := d.Dump(request, each)
		if !errors.Is(err, kernel.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// dumpInet adds the sockets of one protocol, both families; name is what the kernel
// calls it.
func (t *socketTable) dumpInet(d *kernel.SocketDiag, protocol int, name string) error {
	for _, family := range []byte{familyInet, familyInet6} {
		request := make([]byte, inetRequestSize)
		request[0] = family
		binary.NativeEndian.PutUint32(request[4:], 1<<32-1) // all states
		if protocol <= 255 {
			request[1] = byte(protocol)
			request[2] = inetInfo // without it the kernel does not tell of keys
		} else {
			request = binary.NativeEndian.AppendUint16(request, 8)
			request = binary.NativeEndian.AppendUint16(request, inetRequestProtocol)
			request = binary.NativeEndian.AppendUint32(request, uint32(protocol))
		}
		err := dumpAll(d, request, func(payload []byte) error {
			inode, s, err := parseInet(payload, name)
			if err == nil {
				t.add(inode, s)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s sockets: %w", name, err)
		}
	}
	return nil
}

// parseInet reads a struct inet_diag_msg.
func parseInet(b []byte, protocol string) (inode uint64, s Socket, err error) {
	if len(b) < inetMessageSize {
		return 0, s, errShort
	}
	s = *newSocket(protocol)
	if b[0] == familyInet6 {
		s.Family = "inet6"
	}
	s.Found, s.State = true, socketState(int(b[1]))
	device := binary.NativeEndian.Uint32(b[40:])
	s.Local = inetAddress(b[0], b[8:24], binary.BigEndian.Uint16(b[4:]), device)
	s.Remote = inetAddress(b[0], b[24:40], binary.BigEndian.Uint16(b[6:]), device)
	if s.Remote.Port() == 0 && s.Remote.Addr().IsUnspecified() {
		s.Remote = netip.AddrPort{}
	}
	s.Receive, s.Send = binary.NativeEndian.Uint32(b[56:]), binary.NativeEndian.Uint32(b[60:])
	s.Signed = hasAttribute(b[inetMessageSize:], inetSignatures)
	return uint64(binary.NativeEndian.Uint32(b[68:])), s, nil
}

// hasAttribute reports whether there is an attribute of a kind among those of b.
func hasAttribute(b []byte, kind uint16) bool {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return false
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false
}

func inetAddress(family byte, b []byte, port uint16, device uint32) netip.AddrPort {
	if family == familyInet {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
	}
	a := netip.AddrFrom16([16]byte(b))
	if a.IsLinkLocalUnicast() && device != 0 {
		a = a.WithZone(strconv.FormatUint(uint64(device), 10))
	}
	return netip.AddrPortFrom(a, port)
}

// dumpUnix adds the unix sockets.
func (t *socketTable) dumpUnix(d *kernel.SocketDiag) error {
	request := make([]byte, 24)
	request[0] = familyUnix
	binary.NativeEndian.PutUint32(request[4:], 1<<32-1)
	binary.NativeEndian.PutUint32(request[12:], unixShow)
	err := dumpAll(d, request, func(payload []byte) error {
		inode, s, err := parseUnix(payload)
		if err == nil {
			t.add(inode, s)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list unix sockets: %w", err)
	}
	return nil
}

// parseUnix reads a struct unix_diag_msg and its attributes.
func parseUnix(b []byte) (inode uint64, s Socket, err error) {
	if len(b) < unixMessageSize {
		return 0, s, errShort
	}
	s = Socket{Family: "unix", Type: socketTypes[int(b[1])], Found: true, State: socketState(int(b[2]))}
	inode = uint64(binary.NativeEndian.Uint32(b[4:]))
	for rest := b[unixMessageSize:]; len(rest) >= 4; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < 4 || size > len(rest) {
			return 0, s, errShort
		}
		kind, value := binary.NativeEndian.Uint16(rest[2:]), rest[4:size]
		rest = rest[min((size+3)&^3, len(rest)):]
		switch {
		case kind == unixName:
			s.setName(value)
		case kind == unixFile && len(value) >= 8:
			s.FileInode = binary.NativeEndian.Uint32(value)
		case kind == unixPeer && len(value) >= 4:
			s.Peer = uint64(binary.NativeEndian.Uint32(value))
		case kind == unixShutdown && len(value) >= 1:
			s.Shutdown = int(value[0])
		case kind == unixQueues && len(value) >= 8:
			s.Receive, s.Send = binary.NativeEndian.Uint32(value), binary.NativeEndian.Uint32(value[4:])
		}
	}
	return inode, s, nil
}

// setName takes what stands in sun_path, unix(7): an abstract name begins with a NUL
// and may have more of them, a path ends at one.
func (s *Socket) setName(b []byte) {
	if len(b) > 0 && b[0] == 0 {
		s.Name, s.Abstract = string(b[1:]), true
		return
	}
	for i, c := range b {
		if c == 0 {
			b = b[:i]
			break
		}
	}
	s.Name = string(b)
}
