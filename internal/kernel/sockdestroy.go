package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const diagDestroy = 21 // SOCK_DESTROY

// DestroyOrphan ends a connection of TCP that no program has any more, as one whose end
// the peer has not acknowledged, and reports whether there was one. It needs
// CAP_NET_ADMIN, and a kernel with CONFIG_INET_DIAG_DESTROY.
func (d *SocketDiag) DestroyOrphan(c Connection) (bool, error) {
	request := make([]byte, 56) // struct inet_diag_req_v2
	local, remote := c.Local.Addr().Unmap(), c.Remote.Addr().Unmap()
	request[0], request[1] = unix.AF_INET, unix.IPPROTO_TCP
	if local.Is6() {
		request[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(request[4:], 1<<32-1)
	for i, end := range []netip.AddrPort{c.Local, c.Remote} {
		binary.BigEndian.PutUint16(request[8+2*i:], end.Port())
	}
	copy(request[12:], local.AsSlice())
	copy(request[28:], remote.AsSlice())
	binary.NativeEndian.PutUint64(request[48:], 1<<64-1) // of any cookie
	var inode uint32
	const inodeAt = 68 // in struct inet_diag_msg
	err := d.ask(diagByFamily, request, func(payload []byte) {
		if len(payload) >= inodeAt+4 {
			inode = binary.NativeEndian.Uint32(payload[inodeAt:])
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err == nil && inode != 0 {
		return false, nil
	}
	if err == nil {
		err = d.ask(diagDestroy, request, func([]byte) {})
	}
	if err != nil {
		return false, fmt.Errorf("end the connection from %v to %v that nobody has: %w", c.Local, c.Remote, err)
	}
	return true, nil
}

// ask sends one request and hands over what is answered, until it is acknowledged.
func (d *SocketDiag) ask(kind uint16, request []byte, each func(payload []byte)) error {
	d.seq++
	message := make([]byte, netlinkHead, netlinkHead+len(request))
	binary.NativeEndian.PutUint32(message, uint32(netlinkHead+len(request)))
	binary.NativeEndian.PutUint16(message[4:], kind)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(message[8:], d.seq)
	if err := unix.Sendto(d.fd, append(message, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := retry(func() (int, error) {
			n, _, err := unix.Recvfrom(d.fd, buf, 0)
			return n, err
		})
		if err != nil {
			return err
		}
		for rest := buf[:n]; len(rest) >= netlinkHead; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < netlinkHead || size > len(rest) {
				return fmt.Errorf("a message of %d bytes in %d", size, len(rest))
			}
			kind, seq, payload := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint32(rest[8:]), rest[netlinkHead:size]
			rest = rest[min((size+3)&^3, len(rest)):]
			if seq != d.seq {
				continue
			}
			if kind != unix.NLMSG_ERROR {
				each(payload)
				continue
			}
			if len(payload) < 4 {
				return unix.EBADMSG
			}
			if errno := int32(binary.NativeEndian.Uint32(payload)); errno != 0 {
				return syscall.Errno(-errno)
			}
			return nil
		}
	}
}
