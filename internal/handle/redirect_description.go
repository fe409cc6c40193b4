package handle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A description is an open file description, of which vOS holds a descriptor too.
type description struct {
	file   *os.File
	link   string // what /proc/PID/fd says of it
	stat   kernel.FileStat
	flags  int
	socket *kernel.SocketKind // nil where it is none
	class  class
}

// A class is how far descriptions can stand for each other.
type class int

const (
	classOther      class = iota // eventfd, epoll, timerfd …: nothing can stand for it
	classFile                    // file, pipe, terminal: bytes are read or written
	classConnection              // a connected stream socket
	classListener
	classDatagram // any other socket
)

func (c class) String() string {
	return [...]string{"of a kind that nothing else can stand for", "a file, pipe or terminal",
		"a connection", "a listening socket", "a socket without a stream"}[c]
}

// describe looks at an open file. The description owns it.
func describe(file *os.File, link string) (*description, error) {
	d := &description{file: file, link: link}
	var err error
	if d.stat, err = kernel.StatFile(file); err != nil {
		return nil, err
	}
	if d.flags, err = kernel.FileFlags(file); err != nil {
		return nil, err
	}
	switch d.stat.Mode {
	case 0, fs.ModeNamedPipe:
		d.class = classFile
	case fs.ModeDevice | fs.ModeCharDevice:
		if plainDevice(d.stat.Special) {
			d.class = classFile
		}
	case fs.ModeSocket:
		kind, err := kernel.Socket(file)
		if err != nil {
			return nil, err
		}
		d.socket = &kind
		switch {
		case kind.Type != kernel.SocketStream:
			d.class = classDatagram
		case kind.Listening:
			d.class = classListener
		case kind.Connected:
			d.class = classConnection
		}
	}
	if d.flags&pathOnly != 0 {
		d.class = classOther
	}
	return d, nil
}

const pathOnly = kernel.PathOnly

// plainDevice reports whether a device is one that is only read and written: memory
// devices as /dev/null, and terminals.
func plainDevice(special uint64) bool {
	switch major, _ := kernel.Device(special); {
	case major == 1, major == 4, major == 5, major >= 136 && major <= 143:
		return true
	}
	return false
}

func (d *description) identity() identity { return identity{d.stat.Device, d.stat.Inode} }

// regular reports whether it has an offset that can be set.
func (d *description) regular() bool { return d.stat.Mode == 0 }

func (d *description) close() {
	if d != nil {
		d.file.Close()
	}
}

// is reports whether a descriptor of a process is bound to it. A descriptor that is
// not open is not.
func (d *description) is(pid, fd int) (bool, error) {
	order, err := kernel.CompareFiles(os.Getpid(), int(d.file.Fd()), pid, fd)
	if errors.Is(err, syscall.EBADF) {
		return false, nil
	}
	return order == 0 && err == nil, err
}

// replaceable refuses what nothing can stand for.
func (d *description) replaceable(pid, fd int) error {
	own := strings.HasPrefix(d.link, "/memfd:vos-")
	if d.class == classOther || own {
		return api.Refusal{Code: codeWrongType, Subject: subject(pid, fd),
			Detail: fmt.Sprintf("it is %s, which nothing else can stand for", d.link),
			Remedy: "name a descriptor of a file, pipe, terminal or socket"}
	}
	return nil
}

// standsFor refuses a new description that the program could not use as the old.
func (d *description) standsFor(old *description, pid, fd int, registered bool) error {
	wrong := func(detail string) error {
		return api.Refusal{Code: codeWrongType, Subject: subject(pid, fd), Detail: detail,
			Remedy: "bind it to something of the same kind"}
	}
	journal := old.class == classConnection && old.socket.Family == kernel.FamilyUnix && (fd == 1 || fd == 2)
	switch {
	case old.class == d.class:
	case old.class == classFile && d.class == classConnection:
	case journal && d.class == classFile: // standard output of a service
	default:
		return wrong(fmt.Sprintf("it is %s, and the other is %s", old.class, d.class))
	}
	if old.class == classDatagram || old.class == classListener {
		if a, b := old.socket, d.socket; a.Family != b.Family || a.Type != b.Type || a.Protocol != b.Protocol {
			return wrong("the sockets are of different families or protocols")
		}
	}
	if a, b := Flags(old.flags), Flags(d.flags); a.Readable() && !b.Readable() || a.Writable() && !b.Writable() {
		return api.Refusal{Code: codeAccessMode, Subject: subject(pid, fd),
			Detail: "it is open for reading or writing, and the other is not", Remedy: "open the other for both"}
	}
	if registered {
		pollable, err := kernel.Pollable(d.file)
		if err != nil {
			return err
		}
		if !pollable {
			return api.Refusal{Code: codeNotPollable, Subject: subject(pid, fd),
				Detail: "the program waits for it by epoll, which can't wait for a regular file",
				Remedy: "bind it to a pipe or a socket"}
		}
	}
	return nil
}
