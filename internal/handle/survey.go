package handle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Holder is a descriptor of some process.
type Holder struct {
	PID     int
	Program string // the process's name
	FD      int
}

// A Survey is what is known of other processes while the handles of some are looked
// at: who has which file open, and the sockets of their network namespaces. It is
// made at the first question and not renewed, so a Survey is for one look. One
// goroutine uses it at a time.
type Survey struct {
	// holders are the descriptors of all processes by what their links say, by
	// ascending process and number.
	holders map[string][]Holder
	names   map[int]string // programs of processes, as far as they were asked for
	// threads stand for processes in kcmp: that of the process's id, but where it has
	// ended before the others; as far as they were asked for.
	threads map[int]int
	unseen  int // processes whose descriptors may not be looked at

	tables map[uint64]*socketTable // by network namespace
	own    uint64                  // vos's
}

// NewSurvey makes a survey that knows nothing yet. The caller closes it.
func NewSurvey() *Survey { return &Survey{tables: map[uint64]*socketTable{}} }

// Close gives back what the survey holds.
func (s *Survey) Close() error {
	var errs []error
	for _, t := range s.tables {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// Unseen returns how many processes' descriptors could not be looked at for want of
// rights: they may be peers and sharers that are not told.
func (s *Survey) Unseen() int { return s.unseen }

// Complete fills in what the handles of one process do not tell by themselves:
// Socket, Peers and Sharers.
func (s *Survey) Complete(ctx context.Context, p *procfs.Process, handles []Handle) error {
	if err := s.findHolders(ctx); err != nil {
		return err
	}
	table, err := s.findSockets(p, handles)
	if err != nil {
		return err
	}
	for i := range handles {
		h := &handles[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		switch h.Kind {
		case KindPipe, KindFIFO:
			h.Peers = s.pipePeers(h)
		case KindSocket:
			h.Peers = s.socketPeers(h, table)
		}
	}
	return s.findSharers(handles)
}

// findHolders lists the descriptors of all processes, once.
func (s *Survey) findHolders(ctx context.Context) error {
	if s.holders != nil {
		return nil
	}
	pids, err := procfs.Processes()
	if err != nil {
		return err
	}
	s.holders, s.threads, s.names = map[string][]Holder{}, map[int]int{}, map[int]string{}
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue // what vos shares with a program that has its terminal tells nothing
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.addProcess(pid)
	}
	return nil
}

func (s *Survey) addProcess(pid int) {
	p, err := procfs.Open(pid)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			s.unseen++
		}
		return
	}
	defer p.Close()
	if p.WithoutDescriptors() {
		return
	}
	descriptors, err := p.Descriptors()
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			s.unseen++
		}
		return // it has ended
	}
	for _, fd := range slices.Sorted(maps.Keys(descriptors)) {
		link := descriptors[fd]
		s.holders[link] = append(s.holders[link], Holder{PID: pid, FD: fd})
	}
}

// named adds the name of its program to a holder.
func (s *Survey) named(o Holder) Holder {
	name, known := s.names[o.PID]
	if !known {
		if p, err := procfs.Open(o.PID); err == nil {
			if stat, err := p.Stat(); err == nil {
				name = stat.Command
			}
			p.Close()
		}
		s.names[o.PID] = name
	}
	o.Program = name
	return o
}

// pipePeers returns who holds the other end of a pipe: for one who reads those that
// may write, and the other way round.
func (s *Survey) pipePeers(h *Handle) []Holder {
	var peers []Holder
	for _, o := range s.holders[h.Link] {
		if o.PID == h.PID && o.FD == h.FD {
			continue
		}
		flags, ok := stillLeads(o, h.Link)
		if ok && (h.Flags.Readable() && flags.Writable() || h.Flags.Writable() && flags.Readable()) {
			peers = append(peers, s.named(o))
		}
	}
	return peers
}

// socketPeers returns who holds the other end of a connection, if it is on this
// machine: of unix sockets, and of addresses in the same network namespace.
func (s *Survey) socketPeers(h *Handle, t *socketTable) []Holder {
	if t == nil || h.Socket == nil || !h.Socket.Found {
		return nil
	}
	peer := h.Socket.Peer
	if h.Socket.Remote.IsValid() {
		peer = t.byPair[h.Socket.pair().reversed()]
	}
	if peer == 0 {
		return nil
	}
	link := fmt.Sprintf("socket:[%d]", peer)
	var peers []Holder
	for _, o := range s.holders[link] {
		if _, ok := stillLeads(o, link); ok {
			peers = append(peers, s.named(o))
		}
	}
	return peers
}

// stillLeads reports whether a descriptor leads where it did, and how it is opened.
func stillLeads(o Holder, link string) (flags Flags, ok bool) {
	p, err := procfs.Open(o.PID)
	if err != nil {
		return 0, false
	}
	defer p.Close()
	h, err := Read(p, o.FD)
	return h.Flags, err == nil && h.Link == link
}

// Openers returns the other descriptors that have a handle's file open, by the same
// description or another one. It is for handles that Complete was given.
func (s *Survey) Openers(h *Handle) []Holder {
	var openers []Holder
	for _, o := range s.holders[h.Link] {
		if o.PID == h.PID && o.FD == h.FD {
			continue
		}
		p, err := procfs.Open(o.PID)
		if err != nil {
			continue // it has ended
		}
		other, err := Read(p, o.FD)
		if err == nil && other.Device == h.Device && other.Inode == h.Inode {
			openers = append(openers, s.named(o))
		}
		p.Close()
	}
	return openers
}

// Sockets fills in Socket alone, of one process's handles, by what the tables say now.
func (s *Survey) Sockets(p *procfs.Process, handles []Handle) error {
	_, err := s.findSockets(p, handles)
	return err
}

// findSockets fills in what the namespace's tables tell of a process's sockets.
func (s *Survey) findSockets(p *procfs.Process, handles []Handle) (*socketTable, error) {
	if !slices.ContainsFunc(handles, func(h Handle) bool { return h.Kind == KindSocket }) {
		return nil, nil
	}
	t, err := s.table(p)
	if err != nil {
		return nil, err
	}
	for i := range handles {
		h := &handles[i]
		if h.Kind != KindSocket {
			continue
		}
		if err := t.load(p, h.Socket); err != nil {
			return nil, err
		}
		// The kernel's name of a protocol says less than its table.
		if found, ok := t.byInode[h.Inode]; ok && found.Family == h.Socket.Family {
			if found.Family == "unix" && found.Peer != 0 {
				found.PeerName = t.byInode[found.Peer].Name
			}
			h.Socket = &found
			if found.Abstract && strings.HasPrefix(found.Name, socketPrefix) {
				h.Own = OwnLeft
			}
		}
	}
	return t, nil
}

// table returns the sockets of a process's network namespace.
func (s *Survey) table(p *procfs.Process) (*socketTable, error) {
	if s.own == 0 {
		self, err := procfs.Open(os.Getpid())
		if err != nil {
			return nil, err
		}
		defer self.Close()
		own, err := self.Namespaces()
		if err != nil {
			return nil, err
		}
		s.own = own.Net
	}
	namespaces, err := p.Namespaces()
	if err != nil {
		return nil, err
	}
	t := s.tables[namespaces.Net]
	if t == nil {
		t = openSocketTable(p, namespaces.Net == s.own)
		s.tables[namespaces.Net] = t
	}
	return t, nil
}
