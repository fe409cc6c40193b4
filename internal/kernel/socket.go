package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A SocketKind tells what a socket is.
type SocketKind struct {
	Family, Type, Protocol int
	Listening, Connected   bool
}

// Families and types of a SocketKind, and the flags of files that vOS carries over.
const (
	FamilyUnix    = unix.AF_UNIX
	FamilyIPv4    = unix.AF_INET
	FamilyIPv6    = unix.AF_INET6
	FamilyNetlink = unix.AF_NETLINK
	SocketStream  = unix.SOCK_STREAM
)

// Socket looks at a socket; what is none is ENOTSOCK.
func Socket(file *os.File) (k SocketKind, err error) {
	fd := int(file.Fd())
	listening := 0
	for _, o := range []struct {
		option int
		value  *int
	}{{unix.SO_DOMAIN, &k.Family}, {unix.SO_TYPE, &k.Type}, {unix.SO_PROTOCOL, &k.Protocol}, {unix.SO_ACCEPTCONN, &listening}} {
		if *o.value, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.option); err != nil {
			return k, fmt.Errorf("look at socket %s: %w", file.Name(), err)
		}
	}
	k.Listening = listening != 0
	_, err = unix.Getpeername(fd)
	k.Connected = err == nil
	return k, nil
}

// Connect connects a stream socket to an address, on the calling thread: in its
// network namespace, and with its rights. The socket blocks, as a new one does.
func Connect(to netip.AddrPort, timeout time.Duration) (*os.File, error) {
	var address unix.Sockaddr
	family := unix.AF_INET
	if a := to.Addr().Unmap(); a.Is4() {
		address = &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	} else {
		family = unix.AF_INET6
		six := &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
		if zone, err := strconv.Atoi(a.Zone()); err == nil {
			six.ZoneId = uint32(zone)
		}
		address = six
	}
	return connect(family, address, to.String(), timeout)
}

// ConnectUnix connects a stream socket to a unix socket, likewise: by path, or,
// with an @ before it, by its abstract name.
func ConnectUnix(name string, timeout time.Duration) (*os.File, error) {
	return connect(unix.AF_UNIX, &unix.SockaddrUnix{Name: name}, name, timeout)
}

func connect(family int, address unix.Sockaddr, name string, timeout time.Duration) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := await(fd, unix.Connect(fd, address), timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", name, err), unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// await waits until a connection that is under way is there.
func await(fd int, err error, timeout time.Duration) error {
	if !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
		return err
	}
	for end := time.Now().Add(timeout); ; {
		left := max(0, time.Until(end))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		state, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && state != 0 {
			err = unix.Errno(state)
		}
		return err
	}
}

// CopySocketOptions gives a stream socket those options of another one that
// change what its user sees: limits of time, probes, lingering, delay.
func CopySocketOptions(to, from *os.File) error {
	a, b := int(to.Fd()), int(from.Fd())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		value, err := unix.GetsockoptTimeval(b, unix.SOL_SOCKET, option)
		if err == nil {
			err = unix.SetsockoptTimeval(a, unix.SOL_SOCKET, option, value)
		}
		if err != nil {
			return fmt.Errorf("copy socket option %d: %w", option, err)
		}
	}
	linger, err := unix.GetsockoptLinger(b, unix.SOL_SOCKET, unix.SO_LINGER)
	if err == nil {
		err = unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, linger)
	}
	if err != nil {
		return fmt.Errorf("copy socket option %d: %w", unix.SO_LINGER, err)
	}
	for _, o := range [][2]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.SOL_SOCKET, unix.SO_OOBINLINE}, {unix.SOL_SOCKET, unix.SO_RCVLOWAT},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	} {
		value, err := unix.GetsockoptInt(b, o[0], o[1])
		if err != nil {
			continue // not an option of its family
		}
		// Likewise of the other's; a default need not be set.
		if now, err := unix.GetsockoptInt(a, o[0], o[1]); err != nil || now == value {
			continue
		}
		if err := unix.SetsockoptInt(a, o[0], o[1], value); err != nil {
			return fmt.Errorf("copy socket option %d of level %d: %w", o[1], o[0], err)
		}
	}
	return nil
}

// AbstractName returns the abstract name that a unix socket is bound to, without
// the byte 0 before it; ok is false of anything else, and name that of a path, if any.
func AbstractName(file *os.File) (name string, ok bool) {
	address, err := unix.Getsockname(int(file.Fd()))
	if err != nil {
		return "", false
	}
	if own, is := address.(*unix.SockaddrUnix); is {
		return strings.CutPrefix(own.Name, "@")
	}
	return "", false
}

// Unread returns how many bytes a socket has received that nobody has read.
func Unread(file *os.File) (int, error) {
	n, err := unix.IoctlGetInt(int(file.Fd()), unix.TIOCINQ)
	if err != nil {
		return 0, fmt.Errorf("unread bytes of %s: %w", file.Name(), err)
	}
	return n, nil
}

// A Rest is how long nothing has happened on a connection.
type Rest struct {
	Unread, Unsent int           // bytes in its queues
	Timed          bool          // whether the times are known: TCP
	Sent, Received time.Duration // since data were, to some milliseconds
}

// RestOf looks at a connection.
func RestOf(file *os.File) (r Rest, err error) {
	fd := int(file.Fd())
	if r.Unread, err = Unread(file); err != nil {
		return r, err
	}
	if r.Unsent, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ); err != nil {
		return r, fmt.Errorf("unsent bytes of %s: %w", file.Name(), err)
	}
	if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
		r.Timed = true
		r.Sent = time.Duration(info.Last_data_sent) * time.Millisecond
		r.Received = time.Duration(info.Last_data_recv) * time.Millisecond
	}
	return r, nil
}
