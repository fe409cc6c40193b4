package handle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A recordIn is a record that a process has open.
type recordIn struct {
	*redirectRecord
	at int // its descriptor
}

// finished reports whether nothing is left to do about it.
func (r recordIn) finished() bool { return r.at == r.Record }

// recordLink is what /proc/PID/fd says of a record.
const recordLink = memfdPrefix + recordName + " (deleted)"

// recordsIn reads the records that a process has open. What is none is passed over:
// a program may name a memfd as it likes.
func recordsIn(p *procfs.Process, pidfd func(fd int) (*description, error)) ([]recordIn, error) {
	links, err := p.Descriptors()
	if err != nil {
		return nil, err
	}
	var all []recordIn
	for fd, link := range links {
		if link != recordLink {
			continue
		}
		d, err := pidfd(fd)
		if err != nil {
			continue // closed meanwhile
		}
		r, err := readRecord(d.file)
		d.close()
		if err == nil {
			all = append(all, recordIn{r, fd})
		}
	}
	slices.SortFunc(all, func(a, b recordIn) int { return a.at - b.at })
	return all, nil
}

// take returns a copy of a descriptor of the process.
func (m *member) take(fd int) (*description, error) {
	link, err := m.p.Descriptor(fd)
	if err != nil {
		return nil, err
	}
	file, err := kernel.TakeDescriptor(m.pidfd, fd)
	if err != nil {
		return nil, err
	}
	d, err := describe(file, link)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return d, nil
}

// has reports whether a descriptor of the process is of the inode.
func (m *member) has(fd int, i identity) bool {
	file, err := m.p.DescriptorFile(fd)
	return err == nil && file.Stat.Inode == i.Inode && file.Stat.Device == i.Device
}

// ownSockets finds the sockets by which an exchange brought something in, and the
// marker of those that may have no name yet, last.
func (m *member) ownSockets() ([]int, error) {
	links, err := m.p.Descriptors()
	if err != nil {
		return nil, err
	}
	var found, markers []int
	marked := make(map[int]bool)
	for fd, link := range links {
		numbers, ok := strings.CutPrefix(link, memfdPrefix+socketPrefix)
		var a, b int
		if _, err := fmt.Sscanf(numbers, "%d-%d (deleted)", &a, &b); ok && err == nil {
			markers = append(markers, fd)
			marked[a], marked[b] = true, true
		}
	}
	for fd, link := range links {
		if !strings.HasPrefix(link, "socket:[") {
			continue
		}
		own, err := m.isOwnSocket(fd, marked[fd])
		if err != nil {
			return nil, err
		}
		if own {
			found = append(found, fd)
		}
	}
	slices.Sort(found)
	return append(found, markers...), nil
}

// isOwnSocket reports whether a socket has a name of vOS's own, or has none, where a
// marker tells of it, and is as vOS makes it.
func (m *member) isOwnSocket(fd int, marked bool) (own bool, err error) {
	file, err := kernel.TakeDescriptor(m.pidfd, fd)
	if err != nil {
		return false, nil // closed meanwhile
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	name, abstract := kernel.AbstractName(file)
	if abstract && strings.HasPrefix(name, socketPrefix) {
		return true, nil
	}
	if !marked || name != "" {
		return false, nil
	}
	kind, err := kernel.Socket(file)
	if err != nil {
		return false, err
	}
	in, err := readInfo(m.p, fd)
	if err != nil {
		return false, nil // closed meanwhile
	}
	return kind.Family == kernel.FamilyUnix && kind.Type == sockSeqpacket && kind.Connected &&
		in.flags&FlagNonblock != 0 && in.flags&FlagCloseExec != 0, nil
}

// left is what an exchange that was cut short has left in a process.
type left struct {
	*member
	record   recordIn
	standing bool // there was a redirection before
	in       placed
	pending  []int // descriptors that have the old binding
	done     []int // that have the new one
	sockets  []int
}

// settle brings the processes in order in which an exchange was cut short: where all
// descriptors have the new binding it is finished, otherwise it is undone. The
// processes are locked. It tells what it did, in words.
func settle(ctx context.Context, members []*member) ([]string, error) {
	byID := make(map[[16]byte][]*left)
	var order [][16]byte
	var said []string
	for _, m := range members {
		all, err := m.leftovers()
		if err != nil {
			return said, err
		}
		for _, l := range all {
			if _, known := byID[l.record.ID]; !known {
				order = append(order, l.record.ID)
			}
			byID[l.record.ID] = append(byID[l.record.ID], l)
		}
	}
	for _, id := range order {
		words, err := settleOne(ctx, byID[id], members)
		if words != "" {
			said = append(said, words)
		}
		if err != nil {
			return said, err
		}
	}
	for _, m := range members {
		if err := m.closeSockets(ctx); err != nil {
			return said, err
		}
	}
	return said, nil
}

// settleOne settles one exchange, in those of its processes that are not among the
// members, too.
func settleOne(ctx context.Context, all []*left, members []*member) (said string, err error) {
	var more []*member
	defer func() {
		for _, m := range more {
			err = errors.Join(err, m.close(), m.p.Close())
		}
	}()
	for _, o := range all[0].record.Others {
		if slices.ContainsFunc(members, func(m *member) bool { return m.pid == o.PID }) {
			continue
		}
		m := openOther(ctx, o)
		if m == nil {
			continue
		}
		more = append(more, m)
		lefts, err := m.leftovers()
		if err != nil {
			return "", err
		}
		for _, l := range lefts {
			if l.record.ID == all[0].record.ID {
				all = append(all, l)
			}
		}
	}
	forward := !slices.ContainsFunc(all, func(l *left) bool { return len(l.pending) > 0 })
	for _, l := range all {
		if err := l.finish(ctx, forward); err != nil && !errors.Is(err, procfs.ErrGone) {
			return "", fmt.Errorf("settle what a vos that was killed has begun: %w", err)
		}
	}
	if forward {
		return fmt.Sprintf("a redirection to %s that was cut short is finished", all[0].record.To), nil
	}
	return fmt.Sprintf("a redirection to %s that was cut short is undone", all[0].record.To), nil
}

// lockPatience is how long another process of an exchange is waited for.
const lockPatience = 2 * time.Second

// openOther opens a process that a record names, if it is still that one and nobody
// else works on it.
func openOther(ctx context.Context, o otherProcess) *member {
	p, err := procfs.Open(o.PID)
	if err != nil {
		return nil
	}
	m, err := newMember(p)
	if err != nil {
		p.Close()
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	if m.start != o.Start || p.Lock(ctx) != nil {
		m.close()
		p.Close()
		return nil
	}
	return m
}

// leftovers finds the exchanges that were cut short in the process.
func (m *member) leftovers() ([]*left, error) {
	records, err := recordsIn(m.p, m.take)
	if err != nil {
		return nil, err
	}
	var all []*left
	for _, r := range records {
		if r.finished() {
			continue
		}
		l := &left{member: m, record: r}
		if err := l.locate(records); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// locate finds out what of the exchange is in the process.
func (l *left) locate(records []recordIn) (err error) {
	r := l.record
	l.in, l.standing = nothingPlaced, false
	l.in.record, l.in.recordAt = r.at, r.Record
	later := false
	for _, other := range records {
		switch {
		case other.at != r.Record:
		case other.ID == r.ID:
			l.in.recordAt = -1 // it is there already: this is what it was made from
		case other.Begun.After(r.Begun):
			later = true
		default:
			l.standing = true
		}
	}
	if r.Back && !l.standing {
		l.in.recordAt = -1 // closed already
	}
	if l.sockets, err = l.ownSockets(); err != nil {
		return err
	}
	if later { // all else is that one's
		l.in.recordAt = -1
		return l.split()
	}
	if l.has(r.Staged, r.New) {
		l.in.staged = r.Staged
	}
	if l.has(r.Previous, r.Was) {
		l.in.previous = r.Previous
	}
	if l.has(r.Kept, r.Old) {
		l.in.kept = r.Kept
	}
	return l.split()
}

// split finds out which descriptors have which binding. What is bound to something
// else by now is the program's own matter.
func (l *left) split() error {
	l.pending, l.done = nil, nil
	if l.in.staged < 0 { // it is closed only when all is done
		return nil
	}
	for _, fd := range l.record.Bound {
		order, err := kernel.CompareFiles(l.pid, fd, l.pid, l.in.staged)
		switch {
		case err != nil: // closed
		case order == 0:
			l.done = append(l.done, fd)
		case l.has(fd, l.record.Was):
			l.pending = append(l.pending, fd)
		}
	}
	return nil
}

// finish finishes or undoes an exchange in one process, with all threads stopped.
func (l *left) finish(ctx context.Context, forward bool) error {
	_, err := tracee.Do(ctx, l.p, tracee.Options{Identity: l.identity}, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		// A thread that was borrowed may have been on its way until now.
		records, err := recordsIn(l.p, l.take)
		if err == nil {
			err = l.locate(records)
		}
		if err != nil {
			return err
		}
		var calls []tracee.Call
		if forward {
			calls = l.in.finishCalls(l.record.Back, l.standing)
		} else {
			if len(l.done) > 0 {
				if err := l.rebindBack(s); err != nil {
					return err
				}
			}
			calls = l.in.undoCalls(l.standing || l.record.Previous != l.record.Kept)
		}
		_, err = s.Run(append(calls, closeCalls(l.sockets...)...))
		return err
	})
	return err
}

// rebindBack binds what has the new binding to the old one again.
func (l *left) rebindBack(s *tracee.Session) error {
	if l.in.previous < 0 {
		return fmt.Errorf("process %d: the old binding is lost", l.pid)
	}
	now, err := l.take(l.in.staged)
	if err != nil {
		return err
	}
	defer now.close()
	if err := l.look(now); err != nil {
		return err
	}
	isDone := func(fd int) bool { return slices.Contains(l.done, fd) }
	l.bound = slices.DeleteFunc(l.bound, func(b bound) bool { return !isDone(b.fd) })
	l.registered = slices.DeleteFunc(l.registered, func(r registered) bool { return !isDone(r.fd) })
	return atOnce(l.pid, rebind(s, l.pid, l.bound, l.registered, l.in.previous, -1))
}

// closeSockets closes sockets by which nothing came in any more.
func (m *member) closeSockets(ctx context.Context) error {
	sockets, err := m.ownSockets()
	if err != nil || len(sockets) == 0 {
		return err
	}
	_, err = tracee.Do(ctx, m.p, tracee.Options{Identity: m.identity}, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		_, err := s.Run(closeCalls(sockets...))
		return err
	})
	return err
}
