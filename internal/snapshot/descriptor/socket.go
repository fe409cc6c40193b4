package descriptor

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
)

// A socket is kept with its options and addresses, if it is one of unixSocket, inetSocket
// or netlinkSocket; others are refused. One that is neither bound nor connected is a new one.
type socket struct{}

// A family is the sockets of one or two families.
type family interface {
	look(l *looking, h *handle.Handle) []api.Refusal
	dump(d *dumping, h *handle.Handle, raw kernel.Raw, s *image.Socket) error
	plan(p *planning, i int, s *image.Socket) []api.Refusal
	open(o *Opened, i int, s *image.Socket) (kernel.Raw, error)
}

// States of image.Socket.
const (
	stateUnconnected = "unconnected"
	stateListening   = "listening"
	stateConnected   = "established"
)

const (
	socketStream = 1
	socketDgram  = 2
	socketRaw    = 3
	socketPacket = 5 // SOCK_SEQPACKET
)

func familyOf(name string) family {
	switch name {
	case "unix":
		return unixSocket{}
	case "inet", "inet6":
		return inetSocket{}
	case "netlink":
		return netlinkSocket{}
	}
	return nil
}

var familyNames = map[int]string{kernel.FamilyUnix: "unix", kernel.FamilyIPv4: "inet", kernel.FamilyIPv6: "inet6", kernel.FamilyNetlink: "netlink"}

func (socket) look(l *looking, h *handle.Handle) []api.Refusal {
	f := familyOf(h.Socket.Family)
	if f == nil {
		return []api.Refusal{refusal(codeKind, h, leadsTo(h)+", which is not kept", "close it, or "+inheritRemedy(h.FD))}
	}
	return f.look(l, h)
}

func (socket) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	s := &image.Socket{ID: h.Inode, State: stateUnconnected}
	for option, value := range map[int]*int{soDomain: &s.Family, soType: &s.Type, soProtocol: &s.Protocol} {
		var err error
		if *value, err = number(raw, levelSocket, option); err != nil {
			return err
		}
	}
	listens, err := number(raw, levelSocket, soAccepts)
	if err != nil {
		return err
	}
	if listens != 0 {
		s.State = stateListening
	}
	if s.Local, err = raw.LocalName(); err != nil {
		return err
	}
	s.Peer, err = raw.PeerName()
	switch {
	case err == nil:
		s.State = stateConnected
	case !errors.Is(err, syscall.ENOTCONN):
		return err
	}
	if err := keepOptions(h, raw, s); err != nil {
		return err
	}
	f.Socket = s
	return familyOf(familyNames[s.Family]).dump(d, h, raw, s)
}

func (socket) plan(p *planning, i int) []api.Refusal {
	s := p.image.Files[i].Socket
	return familyOf(familyNames[s.Family]).plan(p, i, s)
}

func (socket) open(o *Opened, i int) (kernel.Raw, error) {
	s := o.image.Files[i].Socket
	return withFlags(o, i, func() (kernel.Raw, error) { return familyOf(familyNames[s.Family]).open(o, i, s) })
}

const sysListen = 50

// wire lets what listens do so again, in the process: its clients are told who did.
func (socket) wire(o *Opened, p remote.Process, i, number int, process *image.Process) error {
	s := o.image.Files[i].Socket
	if s.State != stateListening || s.Family != kernel.FamilyUnix {
		return nil
	}
	b := batch{process: p}
	b.add(sysListen, uint64(number), uint64(s.Backlog))
	return b.run()
}

// newSocket makes a socket with its options.
func newSocket(s *image.Socket) (kernel.Raw, error) {
	raw, err := kernel.NewSocket(s.Family, s.Type, s.Protocol)
	if err != nil {
		return -1, err
	}
	if err := setOptions(raw, s); err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}

// isTCP reports whether a socket is one of TCP, or of MPTCP, which Go's servers listen with.
func isTCP(s *image.Socket) bool {
	return s.Type == socketStream && (s.Protocol == levelTCP || s.Protocol == protocolMPTCP)
}

// checkSocket makes sure that an image's socket is of a kind that is made.
func checkSocket(s *image.Socket) error {
	if s == nil || familyNames[s.Family] == "" {
		return errors.New("it is of no family that this vos can make")
	}
	if s.Family == kernel.FamilyNetlink {
		return checkNetlink(s)
	}
	streams := s.Type == socketStream
	if err := errors.Join(checkConnection(s), checkMemberships(s)); err != nil {
		return err
	}
	right := isTCP(s) || isDatagrams(s)
	if s.Family == kernel.FamilyUnix {
		if name := unixName(s.Local); name != "" && name[0] != 0 && name[0] != '/' {
			return fmt.Errorf("its path %.100q is not absolute", name)
		} else if name != "" && name[0] == '/' && s.Path == nil && (s.State != stateConnected || s.Type == socketDgram) {
			return fmt.Errorf("nothing is known of its path %.100q", name)
		}
		right = s.Protocol == 0 && (streams || s.Type == socketDgram || s.Type == socketPacket)
	}
	if !right || len(s.Local) < 2 || s.State == stateConnected && s.Family != kernel.FamilyUnix && len(s.Peer) < 2 {
		return fmt.Errorf("it is of no type and protocol that this vos can make: %d, %d", s.Type, s.Protocol)
	}
	return nil
}
