package kernel

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewSocket makes a socket, socket(2).
func NewSocket(family, kind, protocol int) (Raw, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("make a socket of family %d, type %d, protocol %d: %w", family, kind, protocol, err)
	}
	return Raw(fd), nil
}

// NewSocketPair makes two unix sockets that are connected.
func NewSocketPair(kind int) (a, b Raw, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("make a pair of sockets of type %d: %w", kind, err)
	}
	return Raw(fds[0]), Raw(fds[1]), nil
}

// maxOption is how long the value of a socket option may be.
const maxOption = 512

// Option returns the value of a socket option, as the kernel has it.
func (r Raw) Option(level, name int) ([]byte, error) {
	b := make([]byte, maxOption)
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(r), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("socket option %d of level %d: %w", name, level, errno)
	}
	return b[:min(int(size), len(b))], nil
}

// SetOption sets the value of a socket option.
func (r Raw) SetOption(level, name int, value []byte) error {
	if len(value) == 0 {
		value = []byte{0}
	}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(r), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0)
	if errno != 0 {
		return fmt.Errorf("set socket option %d of level %d: %w", name, level, errno)
	}
	return nil
}

// Ask is Option where the value is a question, which the answer replaces.
func (r Raw) Ask(level, name int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(r), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return fmt.Errorf("socket option %d of level %d: %w", name, level, errno)
	}
	return nil
}

// InterfaceIndex returns the number of a network interface that the socket's namespace
// has.
func (r Raw) InterfaceIndex(name string) (uint32, error) {
	request, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(int(r), unix.SIOCGIFINDEX, request)
	}
	if err != nil {
		return 0, fmt.Errorf("find the network interface %.20q: %w", name, err)
	}
	return request.Uint32(), nil
}

// maxFilter is how many instructions a socket's filter has at most, BPF_MAXINSNS, of
// sizeOfInstruction bytes each.
const (
	maxFilter         = 4096
	sizeOfInstruction = 8
)

// Filter returns a socket's filter, as SO_ATTACH_FILTER takes it: empty is none. One of
// eBPF is EACCES.
func (r Raw) Filter() ([]byte, error) {
	b := make([]byte, maxFilter*sizeOfInstruction)
	size := uint32(maxFilter) // the option is counted in instructions
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(r), unix.SOL_SOCKET, unix.SO_GET_FILTER,
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("read a socket's filter: %w", errno)
	}
	return b[:min(int(size), maxFilter)*sizeOfInstruction], nil
}

// SetFilter gives a socket a filter.
func (r Raw) SetFilter(filter []byte) error {
	n := len(filter) / sizeOfInstruction
	if n == 0 || n > maxFilter || len(filter)%sizeOfInstruction != 0 {
		return fmt.Errorf("a socket's filter of %d bytes: %w", len(filter), unix.EINVAL)
	}
	program := unix.SockFprog{Len: uint16(n), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	if err := unix.SetsockoptSockFprog(int(r), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("give a socket its filter: %w", err)
	}
	return nil
}

// LocalName returns the struct sockaddr of a socket, getsockname(2).
func (r Raw) LocalName() ([]byte, error) { return r.socketName(unix.SYS_GETSOCKNAME) }

// PeerName returns that of what it is connected to, getpeername(2); of what is not
// connected the error is ENOTCONN.
func (r Raw) PeerName() ([]byte, error) { return r.socketName(unix.SYS_GETPEERNAME) }

func (r Raw) socketName(call uintptr) ([]byte, error) {
	b := make([]byte, 128)
	size := uint32(len(b))
	_, _, errno := unix.RawSyscall(call, uintptr(r), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return nil, fmt.Errorf("name of the socket behind descriptor %d: %w", r, errno)
	}
	return b[:min(int(size), len(b))], nil
}

// Bind binds a socket to a struct sockaddr.
func (r Raw) Bind(name []byte) error {
	if err := r.withName(unix.SYS_BIND, name); err != nil {
		return fmt.Errorf("bind a socket: %w", err)
	}
	return nil
}

// Connect connects a socket to a struct sockaddr, without taking up what a signal has
// interrupted: for sockets of which that takes no time.
func (r Raw) Connect(name []byte) error {
	if err := r.withName(unix.SYS_CONNECT, name); err != nil {
		return fmt.Errorf("connect a socket: %w", err)
	}
	return nil
}

func (r Raw) withName(call uintptr, name []byte) error {
	if len(name) == 0 {
		return unix.EINVAL
	}
	_, _, errno := unix.Syscall(call, uintptr(r), uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Listen lets a socket take connections, listen(2).
func (r Raw) Listen(backlog int) error {
	if err := unix.Listen(int(r), backlog); err != nil {
		return fmt.Errorf("let a socket listen: %w", err)
	}
	return nil
}

// Accept takes a connection that waits, accept4(2).
func (r Raw) Accept() (Raw, error) {
	fd, err := retry(func() (int, error) {
		fd, _, err := unix.Accept4(int(r), unix.SOCK_CLOEXEC)
		return fd, err
	})
	if err != nil {
		return -1, fmt.Errorf("accept a connection: %w", err)
	}
	return Raw(fd), nil
}

// Shutdown ends receiving (0), sending (1) or both (2), shutdown(2).
func (r Raw) Shutdown(how int) error {
	if err := unix.Shutdown(int(r), how); err != nil {
		return fmt.Errorf("shut down a socket: %w", err)
	}
	return nil
}

// Peek reads up to most bytes that a socket has received, which stay there, without
// waiting. Ancillary tells that something came with them: descriptors, which are
// closed again, or credentials.
func (r Raw) Peek(most int) (data []byte, ancillary bool, err error) {
	data, control := make([]byte, most), make([]byte, 4096)
	n, length, flags, _, err := unix.Recvmsg(int(r), data, control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, false, fmt.Errorf("look at what a socket has received: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:length])
	if err != nil {
		return nil, false, err
	}
	for _, m := range messages {
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range rights {
				err = errors.Join(err, unix.Close(fd))
			}
		}
	}
	return data[:n], length > 0 || flags&unix.MSG_CTRUNC != 0, nil
}

// A Packet is one that a socket has received.
type Packet struct {
	Data      []byte
	Named     bool // its sender has an address
	Ancillary bool // something came with it: descriptors, which are closed again, or credentials
	Cut       bool // it is longer than the buffer
}

// PeekPacket reads the next packet that a socket has received into b, without waiting.
// The packet stays there; with SO_PEEK_OFF the next call returns the one behind it.
func (r Raw) PeekPacket(b []byte) (p Packet, err error) {
	control := make([]byte, 4096)
	n, length, flags, from, err := unix.Recvmsg(int(r), b, control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return p, fmt.Errorf("look at what a socket has received: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:length])
	if err != nil {
		return p, err
	}
	for _, m := range messages {
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range rights {
				err = errors.Join(err, unix.Close(fd))
			}
		}
	}
	sender, _ := from.(*unix.SockaddrUnix)
	return Packet{Data: b[:n], Named: sender != nil && sender.Name != "", Ancillary: length > 0 || flags&unix.MSG_CTRUNC != 0,
		Cut: flags&unix.MSG_TRUNC != 0}, nil
}

// Send sends a packet, to a struct sockaddr, or to where the socket is connected if that
// is empty. It does not wait.
func (r Raw) Send(data, to []byte) error {
	var at, address unsafe.Pointer = unsafe.Pointer(unsafe.SliceData(data)), unsafe.Pointer(unsafe.SliceData(to))
	if _, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(r), uintptr(at), uintptr(len(data)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL,
		uintptr(address), uintptr(len(to))); errno != 0 {
		return fmt.Errorf("send a packet of %d bytes: %w", len(data), errno)
	}
	return nil
}

// RemoveSocket removes the file of a unix socket; what is none stays, with ENOTSOCK.
func RemoveSocket(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		err = unix.ENOTSOCK
	}
	if err == nil {
		err = unix.Unlink(path)
	}
	if err != nil {
		return fmt.Errorf("remove socket %s: %w", path, err)
	}
	return nil
}

// SetOwnership sets who owns a file, links not followed, and its permissions.
func SetOwnership(path string, uid, gid, permissions uint32) error {
	err := unix.Lchown(path, int(uid), int(gid))
	if err == nil {
		err = unix.Chmod(path, permissions)
	}
	if err != nil {
		return fmt.Errorf("set owner of %s: %w", path, err)
	}
	return nil
}

// UnixAddress returns the struct sockaddr of a path, or of an abstract name, which
// begins with a NUL.
func UnixAddress(name string) []byte {
	b := []byte{unix.AF_UNIX, 0}
	b = append(b, name...)
	if !strings.HasPrefix(name, "\x00") {
		b = append(b, 0)
	}
	return b
}

// Unacknowledged returns how many bytes a connection has written that its peer has not
// acknowledged, SIOCOUTQ; its end counts as one.
func (r Raw) Unacknowledged() (int, error) {
	n, err := unix.IoctlGetInt(int(r), unix.TIOCOUTQ)
	if err != nil {
		return 0, fmt.Errorf("unacknowledged bytes of descriptor %d: %w", r, err)
	}
	return n, nil
}

// Disconnect ends the association of a socket: connect(2) with AF_UNSPEC. One in
// TCP_REPAIR tells its peer nothing and has ECONNABORTED as its error.
func (r Raw) Disconnect() error {
	if err := r.withName(unix.SYS_CONNECT, make([]byte, 16)); err != nil {
		return fmt.Errorf("disconnect a socket: %w", err)
	}
	return nil
}
