package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SegmentMark is the mark (SO_MARK) of segments that a Block lets pass.
const SegmentMark = 0x764f5301

// DeliverEnd lets this machine receive a segment of TCP as if the peer of a connection
// had sent it: its end (FIN), at a sequence number, which acknowledges up to another. It
// needs CAP_NET_RAW and CAP_NET_ADMIN.
func DeliverEnd(c Connection, sequence, acknowledged uint32) (err error) {
	local, remote := c.Local.Addr().Unmap(), c.Remote.Addr().Unmap()
	const tcpBytes, fin, ack, hops = 20, 1, 16, 64
	segment := make([]byte, tcpBytes)
	binary.BigEndian.PutUint16(segment, c.Remote.Port())
	binary.BigEndian.PutUint16(segment[2:], c.Local.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	binary.BigEndian.PutUint32(segment[8:], acknowledged)
	segment[12], segment[13] = tcpBytes/4<<4, fin|ack
	pseudo := append(append(remote.AsSlice(), local.AsSlice()...), 0, unix.IPPROTO_TCP, 0, tcpBytes)
	binary.BigEndian.PutUint16(segment[16:], checksum(append(pseudo, segment...)))

	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(local.AsSlice()[:4])})
	var packet []byte
	if local.Is4() {
		packet = make([]byte, 20) // the kernel sets its length and checksum
		packet[0], packet[8], packet[9] = 0x45, hops, unix.IPPROTO_TCP
		copy(packet[12:], remote.AsSlice())
		copy(packet[16:], local.AsSlice())
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: local.As16()}
		packet = make([]byte, 40)
		packet[0], packet[5], packet[6], packet[7] = 0x60, tcpBytes, unix.IPPROTO_TCP, hops
		copy(packet[8:], remote.AsSlice())
		copy(packet[24:], local.AsSlice())
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err == nil {
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, SegmentMark)
	}
	if err == nil {
		err = unix.Sendto(fd, append(packet, segment...), 0, to)
	}
	if err != nil {
		return fmt.Errorf("deliver the end of the connection from %v to %v: %w", c.Local, c.Remote, err)
	}
	return nil
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
