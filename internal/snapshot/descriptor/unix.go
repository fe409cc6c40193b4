package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A unixSocket is one end of a pair or connection whose ends are both the program's; one
// that listens; one of datagrams that is bound, or is connected to a name; or one that is
// none of these. The bytes in a stream are kept, and packets that
// wait (packet.go); descriptors in flight are refused.
//
// A path is bound anew: what is left of the socket there is removed if nobody has it,
// and the new one gets its owner and permissions.
type unixSocket struct{}

func (unixSocket) look(l *looking, h *handle.Handle) (refusals []api.Refusal) {
	s := h.Socket
	if !s.Found {
		return nil
	}
	if here, err := l.network(h.PID); err != nil || !here {
		return []api.Refusal{refusal(codeNetwork, h, leadsTo(h)+", in another network namespace", "run vos in it: nsenter --net")}
	}
	outside := l.outside(h.Peers)
	switch {
	case s.State == "listen":
	case s.Type == "dgram" && s.Peer != 0 && (len(outside) > 0 || len(h.Peers) == 0):
		// It is connected by a name, which dump asks for.
	case len(outside) > 0:
		remedy := inheritRemedy(h.FD)
		if isDisplay(s.PeerName) {
			remedy = "run it with a display server of its own in the same tree, and checkpoint that with --tree: xvfb-run"
		}
		return []api.Refusal{refusal(codeOutside, h, leadsTo(h)+", whose other end has "+holdersText(outside), remedy)}
	case s.Peer != 0 && len(h.Peers) == 0:
		return []api.Refusal{refusal(codeOutside, h, leadsTo(h)+", whose other end is in nobody's hands: it waits to be accepted, or is in flight", TryAgain)}
	case s.Type != "dgram" && s.State == stateConnected:
		return nil // by a name or not: see nameless
	}
	if s.Name != "" && !s.Abstract {
		if _, err := l.socketPath(s); err != nil {
			refusals = append(refusals, refusal(codeHidden, h, leadsTo(h)+", "+err.Error(), "bind it to an absolute path that stays"))
		}
	}
	return refusals
}

// isDisplay reports whether X11 or Wayland is spoken at a name.
func isDisplay(name string) bool {
	return path.Dir(name) == "/tmp/.X11-unix" || strings.HasPrefix(path.Base(name), "wayland-")
}

// socketPath returns where the file of a bound socket is: at the path that it was bound
// to, or, renamed, in the same folder.
func (l *looking) socketPath(s *handle.Socket) (string, error) {
	if !path.IsAbs(s.Name) {
		return "", errors.New("by a path that is not absolute")
	}
	if isSocketFile(s.Name, s.FileInode) {
		return s.Name, nil
	}
	folder, err := os.Open(path.Dir(s.Name))
	if err == nil {
		defer folder.Close()
		var entries []fs.DirEntry
		// Folders with more than that are no places of sockets.
		if entries, err = folder.ReadDir(maxEntries); err == nil || errors.Is(err, io.EOF) {
			for _, e := range entries {
				if name := path.Join(path.Dir(s.Name), e.Name()); e.Type()&fs.ModeSocket != 0 && isSocketFile(name, s.FileInode) {
					return name, nil
				}
			}
		}
	}
	return "", errors.New("but the path leads to something else, or is one in another root directory")
}

const maxEntries = 10_000

// isSocketFile reports whether a path leads to the file of a socket.
func isSocketFile(name string, inode uint32) bool {
	info, err := os.Lstat(name)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && inode != 0 && uint32(stat.Ino) == inode
}

func (unixSocket) dump(d *dumping, h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	now, err := d.sockets(h)
	if err != nil {
		return err
	}
	if s.State == stateListening {
		s.Backlog = int(now.Send)
		if now.Receive > 0 {
			return refusal(codeWaiting, h, fmt.Sprintf("%s, which has %d connections that were not accepted", leadsTo(h), now.Receive), TryAgain)
		}
		return d.keepPath(h, now, s)
	}
	s.PeerID, s.Shutdown = now.Peer, now.Shutdown
	switch {
	case s.State != stateConnected:
	case byName(s):
		s.PeerID = 0
	case s.PeerID != 0 && !d.ownSocket(s.PeerID):
		return refusal(codeOutside, h, leadsTo(h)+", whose other end is not the program's", inheritRemedy(h.FD))
	}
	if s.State == stateConnected && s.Type != socketDgram {
		err = d.keepName(h, s)
	} else {
		err = d.keepPath(h, now, s)
	}
	if err != nil {
		return err
	}
	if s.Type != socketStream {
		return d.keepPackets(h, raw, s, int(now.Receive))
	}
	return keepQueue(h, raw, s)
}

// byName reports whether a socket is of datagrams that go to a name: it is connected to
// that again, whoever has it.
func byName(s *image.Socket) bool {
	return s.State == stateConnected && s.Type == socketDgram && len(s.Peer) > 2
}

// keepPath keeps what the file of a bound socket is like.
func (d *dumping) keepPath(h *handle.Handle, now *handle.Socket, s *image.Socket) error {
	if name := unixName(s.Local); name == "" || name[0] == 0 {
		return nil
	}
	name, err := d.socketPath(now)
	if err != nil {
		return refusal(codeHidden, h, leadsTo(h)+", "+err.Error(), "bind it to an absolute path that stays")
	}
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	s.Path = &image.SocketPath{Path: name, Mode: stat.Mode & 0o7777, UID: stat.Uid, GID: stat.Gid}
	return nil
}

// keepQueue keeps the bytes that a stream has received.
func keepQueue(h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	if s.State != stateConnected {
		return nil
	}
	waiting, err := raw.Waiting()
	if err != nil || waiting == 0 {
		return err
	}
	if offset, err := number(raw, levelSocket, soPeekOffset); err != nil || offset >= 0 {
		return errors.Join(err, refusal(codeInFlight, h, leadsTo(h)+", of which it has read a part by MSG_PEEK (SO_PEEK_OFF)", TryAgain))
	}
	data, ancillary, err := raw.Peek(waiting)
	if err != nil {
		return err
	}
	if ancillary || len(data) != waiting {
		return refusal(codeInFlight, h, leadsTo(h)+", which has received descriptors or credentials that were not read", TryAgain)
	}
	s.Queue = []image.Packet{{Data: data}}
	return nil
}

func (unixSocket) plan(p *planning, i int, s *image.Socket) []api.Refusal {
	name := unixName(s.Local)
	if name == "" || s.State == stateConnected && s.Type != socketDgram {
		return nil
	}
	what := name
	if name[0] == 0 {
		what = "@" + name[1:]
	}
	taken, err := taken(s.Type, s.Local)
	if s.Path != nil && err == nil && !taken && s.Path.Path != name {
		what = s.Path.Path
		taken, err = takenPath(s.Type, kernel.UnixAddress(what))
	}
	switch {
	case err != nil:
		return []api.Refusal{p.refusal(codeAddress, i, fmt.Sprintf("a socket at %s can't be made: %v", what, err), "make room for it")}
	case taken:
		return []api.Refusal{p.refusal(codeAddress, i, "somebody else has "+what, "end what has it, or remove it")}
	}
	return nil
}

// taken reports whether somebody has the name of a socket.
func taken(kind int, name []byte) (bool, error) {
	if unixName(name)[0] != 0 {
		return takenPath(kind, name)
	}
	// Of abstract names each type has its own: it is asked by binding to it.
	raw, err := kernel.NewSocket(kernel.FamilyUnix, kind, 0)
	if err != nil {
		return false, err
	}
	err = raw.Bind(name)
	if errors.Is(err, syscall.EADDRINUSE) {
		return true, raw.Close()
	}
	return false, errors.Join(err, raw.Close())
}

// takenPath reports whether a path is a socket's that somebody has, or anything else. It
// is asked by connecting a socket of another type, which nobody notices.
func takenPath(kind int, name []byte) (bool, error) {
	at := unixName(name)
	if info, err := os.Stat(path.Dir(at)); err != nil || !info.IsDir() {
		return false, errors.Join(err, fmt.Errorf("%s is to be a folder", path.Dir(at)))
	}
	info, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil || info.Mode()&fs.ModeSocket == 0:
		return true, err
	}
	other := socketPacket
	if kind == other {
		other = socketStream
	}
	raw, err := kernel.NewSocket(kernel.FamilyUnix, other, 0)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	err = raw.Connect(name)
	return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT), nil
}

// A pairEnds is the two ends of a pair that is made again: first that by whose number it
// is known.
type pairEnds struct{ ends [2]kernel.Raw }

func (unixSocket) open(o *Opened, i int, s *image.Socket) (kernel.Raw, error) {
	if s.State == stateConnected && !byName(s) {
		return o.openPair(s)
	}
	raw, err := newSocket(s)
	if err != nil {
		return -1, err
	}
	if err := bindUnix(raw, s); err != nil {
		_ = raw.Close()
		return -1, err
	}
	if err := o.fillBound(s); err != nil {
		_ = raw.Close()
		return -1, err
	}
	if s.State == stateListening {
		if err := o.connectAt(raw, i); err != nil {
			_ = raw.Close()
			return -1, err
		}
	}
	if byName(s) { // which may be that of one that is made later
		o.later = append(o.later, func() error { return raw.Connect(s.Peer) })
	}
	return raw, nil
}

func bindUnix(raw kernel.Raw, s *image.Socket) error {
	name := unixName(s.Local)
	switch {
	case name == "":
	case name[0] == 0:
		if err := raw.Bind(s.Local); err != nil {
			return err
		}
	default:
		if err := bindPath(raw, s, name); err != nil {
			return err
		}
	}
	if s.State == stateListening {
		return raw.Listen(s.Backlog)
	}
	return nil
}

// bindPath binds a socket to a path, and renames its file to where it was.
func bindPath(raw kernel.Raw, s *image.Socket, name string) error {
	for _, at := range []string{name, s.Path.Path} {
		taken, err := takenPath(s.Type, kernel.UnixAddress(at))
		if err == nil && taken {
			err = syscall.EADDRINUSE
		}
		if err == nil {
			err = kernel.RemoveSocket(at)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room for a socket at %s: %w", at, err)
		}
	}
	if err := raw.Bind(s.Local); err != nil {
		return err
	}
	if err := kernel.SetOwnership(name, s.Path.UID, s.Path.GID, s.Path.Mode); err != nil {
		return err
	}
	if s.Path.Path == name {
		return nil
	}
	return os.Rename(name, s.Path.Path)
}

// openPair makes both ends of a pair when the first of them is opened, if they were not
// made with what they are connected by.
func (o *Opened) openPair(s *image.Socket) (kernel.Raw, error) {
	pair, at := o.pairs[s.ID], 0
	if pair == nil && s.PeerID != 0 {
		pair, at = o.pairs[s.PeerID], 1
	}
	if pair == nil {
		var err error
		pair, at = &pairEnds{}, 0
		if pair.ends[0], pair.ends[1], err = kernel.NewSocketPair(s.Type); err != nil {
			return -1, err
		}
		// The other end is closed with o where nothing of the image leads to it.
		o.scaffold = append(o.scaffold, pair.ends[0], pair.ends[1])
		o.pairs[s.ID] = pair
	}
	raw, other := pair.ends[at], pair.ends[1-at]
	if err := setOptions(raw, s); err != nil {
		return -1, err
	}
	if s.Type != socketStream {
		if err := putPackets(other, s.Queue, nil); err != nil {
			return -1, err
		}
	} else {
		for _, packet := range s.Queue {
			if err := o.send(other, packet.Data); err != nil {
				return -1, err
			}
		}
	}
	if s.Shutdown != 0 {
		o.later = append(o.later, func() error { return raw.Shutdown(shutdownHow(s.Shutdown)) })
	}
	return raw.Copy()
}

// shutdownHow turns the bits of image.Socket into what shutdown(2) takes.
func shutdownHow(bits int) int { return map[int]int{1: 0, 2: 1, 3: 2}[bits&3] }

// send sends what fits the other end's queue, with as large a buffer as that takes.
func (o *Opened) send(from kernel.Raw, data []byte) error {
	size, err := from.Option(levelSocket, soSendBuffer)
	if err != nil {
		return err
	}
	room := binary.NativeEndian.AppendUint32(nil, uint32(min(len(data), 1<<28)*2+1<<16))
	if err := from.SetOption(levelSocket, soSendForce, room); err != nil {
		return err
	}
	if err := fill(from, data); err != nil {
		return err
	}
	return setOption(from, image.Option{Level: levelSocket, Name: soSendBuffer, Value: size})
}

// unixName returns the path, or the abstract name, which begins with a NUL; "" is none.
func unixName(name []byte) string {
	if len(name) <= 2 {
		return ""
	}
	name = name[2:]
	if name[0] != 0 {
		for i, c := range name {
			if c == 0 {
				return string(name[:i])
			}
		}
	}
	return string(name)
}
