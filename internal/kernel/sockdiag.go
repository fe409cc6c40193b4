package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Netlink's numbers that are not in x/sys, linux/sock_diag.h and linux/netlink.h.
const (
	diagByFamily = 20
	dumpIntr     = 0x10 // NLM_F_DUMP_INTR
	netlinkHead  = 16
)

// ErrDumpInterrupted is wrapped where sockets came and went during a dump, so that
// some may be missing.
var ErrDumpInterrupted = errors.New("what was listed changed meanwhile")

// A SocketDiag asks one network namespace about its sockets, sock_diag(7). Only
// one goroutine may use it at a time.
type SocketDiag struct {
	fd  int
	seq uint32
}

// OpenSocketDiag opens sock_diag in the network namespace that the file, a
// /proc/PID/ns/net, is of; nil is that of this process. Another one needs
// CAP_SYS_ADMIN in it and in the own user namespace.
func OpenSocketDiag(namespace *os.File) (*SocketDiag, error) {
	d := &SocketDiag{fd: -1}
	var err error
	open := func() {
		d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			err = fmt.Errorf("open sock_diag: %w", err)
		}
	}
	if namespace == nil {
		open()
	} else {
		// The thread does not come back from the other namespace: it ends.
		OnOwnThread(func() {
			if err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				err = fmt.Errorf("enter network namespace: %w", err)
				return
			}
			open()
		})
	}
	if err != nil {
		return nil, err
	}
	// A kernel without the answer is not waited for.
	timeout := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("open sock_diag: %w", err), d.Close())
	}
	return d, nil
}

// Close gives the descriptor back.
func (d *SocketDiag) Close() error { return unix.Close(d.fd) }

// Dump sends a request of SOCK_DIAG_BY_FAMILY for all sockets that match, and hands
// each answer's payload to each, which must not keep it. A kind of socket that the
// kernel can't tell of is ENOENT.
func (d *SocketDiag) Dump(request []byte, each func(payload []byte) error) error {
	d.seq++
	message := make([]byte, netlinkHead, netlinkHead+len(request))
	binary.NativeEndian.PutUint32(message, uint32(netlinkHead+len(request)))
	binary.NativeEndian.PutUint16(message[4:], diagByFamily)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(message[8:], d.seq)
	message = append(message, request...)
	if err := unix.Sendto(d.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	buf := make([]byte, 64<<10)
	interrupted := false
	for {
		n, err := retry(func() (int, error) {
			n, _, err := unix.Recvfrom(d.fd, buf, 0)
			return n, err
		})
		if err != nil {
			return fmt.Errorf("ask sock_diag: %w", err)
		}
		for rest := buf[:n]; len(rest) >= netlinkHead; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < netlinkHead || size > len(rest) {
				return fmt.Errorf("ask sock_diag: a message of %d bytes in %d", size, len(rest))
			}
			kind, flags := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint16(rest[6:])
			seq, payload := binary.NativeEndian.Uint32(rest[8:]), rest[netlinkHead:size]
			rest = rest[min((size+3)&^3, len(rest)):]
			if seq != d.seq {
				continue // of a dump that was given up
			}
			interrupted = interrupted || flags&dumpIntr != 0
			switch kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(payload) >= 4 {
					if errno := int32(binary.NativeEndian.Uint32(payload)); errno < 0 {
						return fmt.Errorf("ask sock_diag: %w", syscall.Errno(-errno))
					}
				}
				if interrupted {
					return fmt.Errorf("ask sock_diag: %w", ErrDumpInterrupted)
				}
				return nil
			case diagByFamily:
				if err := each(payload); err != nil {
					return err
				}
			}
		}
	}
}

// SocketProtocol returns the kernel's name of a socket's protocol ("TCP",
// "UNIX-STREAM"), of an open file that may be opened with O_PATH.
func SocketProtocol(file *os.File) (string, error) {
	var buf [64]byte
	n, err := retry(func() (int, error) {
		return unix.Getxattr("/proc/self/fd/"+strconv.Itoa(int(file.Fd())), "system.sockprotoname", buf[:])
	})
	if err != nil {
		return "", fmt.Errorf("read protocol of %s: %w", file.Name(), err)
	}
	return unix.ByteSliceToString(buf[:n]), nil
}
