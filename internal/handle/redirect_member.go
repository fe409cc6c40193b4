package handle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A member is a process that has the description open that is to be exchanged.
type member struct {
	p        *procfs.Process
	pid      int
	name     string
	start    uint64
	pidfd    *os.File
	identity procfs.Auxv

	limit, slots int // of descriptors: how many it may have, and has room for

	numbers    []int        // its open descriptors
	plain      map[int]bool // those that were neither epoll nor io_uring at the last look; nil before
	bound      []bound      // those of the description
	registered []registered // with which epolls they are registered
	standing   *redirectRecord
	recordAt   int // the descriptor of the standing record
	refusals   []api.Refusal
	remarks    []string
}

// bound is a descriptor of the description.
type bound struct {
	fd      int
	cloexec bool
}

// registered is a registration of the description with an epoll.
type registered struct {
	epoll, fd int
	events    uint32
	data      uint64
	stale     bool // the number is not bound to the description any more
}

// Flags of epoll events, epoll_ctl(2).
const (
	epollFlags   = 0xf << 28 // EXCLUSIVE, WAKEUP, ONESHOT, ET
	epollOneshot = 1 << 30
)

// newMember opens a process as a member.
func newMember(p *procfs.Process) (*member, error) {
	m := &member{p: p, pid: p.PID()}
	stat, err := p.Stat()
	if err != nil {
		return nil, err
	}
	m.name, m.start = stat.Command, stat.StartTicks
	if m.identity, err = p.Auxv(); err != nil {
		return nil, err
	}
	if m.pidfd, err = kernel.OpenPidfd(m.pid); err != nil {
		return nil, err
	}
	if !p.Alive() { // the number might be another process's
		return nil, errors.Join(fmt.Errorf("open process %d: %w", m.pid, procfs.ErrGone), m.pidfd.Close())
	}
	return m, nil
}

func (m *member) close() error {
	if m == nil || m.pidfd == nil {
		return nil
	}
	return m.pidfd.Close()
}

// look finds the descriptors and registrations of a description. The process may
// run; then what is found is what was so for a moment. Of a descriptor that was plain
// at the look before it only asks whether it is an epoll by now, which is quick: a
// server has thousands of them, and may be stopped.
func (m *member) look(d *description) error {
	var err error
	if m.numbers, err = m.p.DescriptorNumbers(); err != nil {
		return err
	}
	m.bound, m.registered, m.refusals = nil, nil, nil
	before := m.plain
	m.plain = make(map[int]bool, len(m.numbers))
	var epolls []int
	inode := d.stat.Inode // as the kernel has it, which is not what overlayfs shows
	for _, fd := range m.numbers {
		same, err := d.is(m.pid, fd)
		if err != nil {
			return err
		}
		if same && !m.ours(fd) {
			info, err := readInfo(m.p, fd)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if info.hasInode {
				inode = info.inode
			}
			if len(info.locks) > 0 {
				m.refuse(locksRefusal(m.pid, fd))
			}
			m.bound = append(m.bound, bound{fd, info.flags&FlagCloseExec != 0})
			continue
		}
		if before[fd] && !kernel.IsEpoll(m.pid, fd, int(d.file.Fd())) {
			m.plain[fd] = true
			continue
		}
		link, err := m.p.Descriptor(fd)
		switch {
		case err != nil: // closed meanwhile
		case link == "anon_inode:[eventpoll]":
			epolls = append(epolls, fd)
		case link == "anon_inode:[io_uring]":
			m.refuse(api.Refusal{Code: codeIOUring, Subject: subject(m.pid, fd),
				Detail: "it is an io_uring, which may hold the description, or wait for it, unseen",
				Remedy: "restart the program with another setting instead"})
		default:
			m.plain[fd] = true
		}
	}
	if len(m.bound) == 0 {
		return nil
	}
	return m.lookAtEpolls(d, inode, epolls)
}

// ours reports whether a descriptor is one that vOS keeps in the process.
func (m *member) ours(fd int) bool {
	return m.standing != nil && fd == m.standing.Kept || fd == m.recordAt && m.standing != nil
}

func (m *member) refuse(err error) { m.refusals = append(m.refusals, api.Refusals(err)...) }

func locksRefusal(pid, fd int) error {
	return api.Refusal{Code: codeLocksHeld, Subject: subject(pid, fd),
		Detail: "the program holds a lock or a lease by it, or on its file, which an exchange would lose",
		Remedy: "try again when the lock is given up"}
}

func (m *member) lookAtEpolls(d *description, inode uint64, epolls []int) error {
	var known []int // those with registrations; duplicates of them are passed over
	for _, epoll := range epolls {
		lines, err := registrationsOf(m.p, epoll, inode)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var found []registered
		for _, line := range lines {
			order, err := kernel.CompareRegistered(os.Getpid(), int(d.file.Fd()), m.pid, epoll, line.FD, line.nth)
			if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EBADF) || err == nil && order != 0 {
				continue
			}
			if err != nil {
				return err
			}
			stale := !slices.ContainsFunc(m.bound, func(b bound) bool { return b.fd == line.FD })
			found = append(found, registered{epoll, line.FD, line.Events, line.Data, stale})
		}
		if len(found) == 0 {
			continue
		}
		for _, other := range known {
			if order, err := kernel.CompareFiles(m.pid, epoll, m.pid, other); err == nil && order == 0 {
				found = nil
				break
			}
		}
		if found != nil {
			known = append(known, epoll)
			m.registered = append(m.registered, found...)
		}
	}
	return nil
}

// disarmed reports whether a registration with EPOLLONESHOT has fired, and waits
// for the program to arm it again.
func (r registered) disarmed() bool {
	return r.events&epollOneshot != 0 && r.events&^uint32(epollFlags) == 0
}

// check looks, while the process runs, for what speaks against an exchange.
func (m *member) check(old *description) error {
	status, err := m.p.Status()
	if err != nil {
		return err
	}
	m.slots = status.Slots
	if m.limit, err = m.p.DescriptorLimit(); err != nil {
		return err
	}
	tids, err := m.p.Threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		order, err := kernel.CompareTables(m.pid, tid)
		if errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		if order != 0 {
			m.refuse(api.Refusal{Code: codeTables, Subject: fmt.Sprintf("thread %d of process %d", tid, m.pid),
				Detail: "it has a descriptor table of its own", Remedy: "restart the program instead"})
			break
		}
	}
	return m.checkMappings(old)
}

// checkLocks refuses where the process holds locks that closing a descriptor of
// the file would give up, whichever descriptor they were taken by.
func (m *member) checkLocks(d *description) error {
	if !d.regular() {
		return nil
	}
	for _, fd := range m.numbers {
		file, err := m.p.DescriptorFile(fd)
		if err != nil || file.Stat.Inode != d.stat.Inode || file.Stat.Device != d.stat.Device {
			continue
		}
		info, err := readInfo(m.p, fd)
		if err != nil {
			continue // closed meanwhile
		}
		if slices.ContainsFunc(info.locks, func(l Lock) bool { return l.Type == "POSIX" }) {
			m.refuse(locksRefusal(m.pid, fd))
			return nil
		}
	}
	return nil
}

// checkMappings remarks on what is mapped of a file: it stays as it is.
func (m *member) checkMappings(old *description) error {
	if !old.regular() {
		return nil
	}
	maps, err := m.p.Maps()
	if err != nil {
		return err
	}
	n := 0
	for _, mapping := range maps {
		if mapping.Inode == old.stat.Inode && strings.TrimSuffix(old.link, " (deleted)") == mapping.Path {
			n++
		}
	}
	if n > 0 {
		m.remarks = append(m.remarks, fmt.Sprintf("%d mappings of %s stay", n, old.link))
	}
	return nil
}

// room chooses the numbers of descriptors that an exchange takes: five that the
// kernel gives next, and those at the upper end of the table as it is allocated.
func (m *member) room(high int) (next [5]int, upper []int, err error) {
	taken := make(map[int]bool, len(m.numbers))
	for _, fd := range m.numbers {
		taken[fd] = true
	}
	at := 0
	for i := range next {
		for taken[at] {
			at++
		}
		next[i], taken[at] = at, true
	}
	for fd := min(m.slots, m.limit) - 1; fd >= 0 && len(upper) < high; fd-- {
		if !taken[fd] {
			upper, taken[fd] = append(upper, fd), true
		}
	}
	for fd := m.slots; fd < m.limit && len(upper) < high; fd++ {
		if !taken[fd] {
			upper, taken[fd] = append(upper, fd), true
		}
	}
	if at >= m.limit || len(upper) < high {
		return next, nil, exhaustedRefusal(m.pid, m.limit)
	}
	return next, upper, nil
}
