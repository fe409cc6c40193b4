package handle

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// ErrClosed is wrapped where a descriptor is not open.
var ErrClosed = errors.New("descriptor is not open")

// ErrRestless is wrapped where a descriptor was another one each time that it was
// looked at.
var ErrRestless = errors.New("descriptor is opened and closed too often to be looked at")

// tries bounds how often a descriptor that changes is looked at again. One look
// takes some 20 µs.
const tries = 100

// Read looks at one descriptor of a process. Errors wrap ErrClosed, ErrRestless,
// fs.ErrPermission or procfs.ErrGone.
func Read(p *procfs.Process, fd int) (Handle, error) {
	var before *glimpse
	alike := 0 // glimpses in a row that saw the same
	for range tries {
		now, err := glance(p, fd)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("look at descriptor %d of process %d: %w", fd, p.PID(), ErrClosed)
		}
		if err != nil {
			return Handle{}, err
		}
		if before != nil && now.sees(before) {
			alike++
		} else {
			alike = 0
		}
		if now.agrees(alike >= enoughAlike) {
			return now.handle(p, fd), nil
		}
		before = now
	}
	return Handle{}, fmt.Errorf("look at descriptor %d of process %d: %w", fd, p.PID(), ErrRestless)
}

// A glimpse is one look at a descriptor: at the file, and at the description.
type glimpse struct {
	procfs.DescriptorFile
	info *info
}

func glance(p *procfs.Process, fd int) (*glimpse, error) {
	g := new(glimpse)
	var err error
	if g.DescriptorFile, err = p.DescriptorFile(fd); err != nil {
		return nil, err
	}
	err = p.DescriptorInfo(fd, func(text []byte) (err error) {
		g.info, err = parseInfo(text)
		return err
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// enoughAlike is how many glimpses in a row have to see the same two numbers of
// inodes before these are taken for one file's: a descriptor that goes to and fro
// between two files does not show the same mixture so often.
const enoughAlike = 16

// agrees reports whether all that was seen is of one open file. The number of the
// inode in fdinfo is that of stat(2), but for file systems without a device that
// have one for themselves and one to show (overlayfs).
func (g *glimpse) agrees(alike bool) bool {
	kind := kindOf(g.Stat, g.Link, g.info.flags)
	major, _ := kernel.Device(g.Stat.Device)
	switch {
	case g.Mount != 0 && g.info.mount >= 0 && g.Mount != g.info.mount:
		return false
	case g.info.kind != "" && g.info.kind != kind:
		return false
	case g.info.kind == "" && (kind == KindEventfd || kind == KindTimerfd || kind == KindSignalfd):
		return false // these always have lines of their own
	case !g.info.hasInode || g.info.inode == g.Stat.Inode:
		return true
	}
	return alike && major == 0
}

// sees reports whether two glimpses saw the same numbers.
func (g *glimpse) sees(before *glimpse) bool {
	return before.Link == g.Link && before.Stat.Device == g.Stat.Device && before.Stat.Inode == g.Stat.Inode &&
		before.info.inode == g.info.inode && before.info.mount == g.info.mount
}

func (g *glimpse) handle(p *procfs.Process, fd int) Handle {
	in := g.info
	h := Handle{
		PID: p.PID(), FD: fd, Kind: kindOf(g.Stat, g.Link, in.flags), Link: g.Link,
		Device: g.Stat.Device, Inode: g.Stat.Inode, Mount: in.mount,
		Offset: in.offset, Flags: in.flags, Locks: in.locks, Terminal: in.terminal,
	}
	switch h.Kind {
	case KindEpoll:
		h.Epoll = in.epoll
	case KindEventfd:
		h.Event = &in.event
	case KindTimerfd:
		h.Timer = &in.timer
	case KindSignalfd:
		h.Signals = in.signals
	case KindPidfd:
		h.Process = &in.process
	case KindInotify:
		h.Watches = in.watches
	case KindIOUring:
		h.Ring = &in.ring
	case KindSocket:
		h.Socket = newSocket(g.Protocol)
	case KindMemfd:
		h.Size = g.Stat.Size
	case KindFile:
		h.Size = g.Stat.Size
		h.setPath(p, g.Stat)
	case KindTerminal:
		if major, minor := kernel.Device(g.Stat.Special); major >= 136 && major <= 143 {
			h.Terminal = int(major-136)<<20 | int(minor)
		}
		h.Special = g.Stat.Special
		h.setPath(p, g.Stat)
	case KindDevice:
		h.Special = g.Stat.Special
		h.setPath(p, g.Stat)
	case KindDirectory, KindFIFO, KindPath:
		h.setPath(p, g.Stat)
	}
	return h
}

// setPath takes the path from the link: as the program would write it, and without
// the kernel's mark of a deleted file, which may as well end a name.
func (h *Handle) setPath(p *procfs.Process, stat kernel.FileStat) {
	h.Path = h.Link
	if path, marked := strings.CutSuffix(h.Link, deletedMark); marked && (stat.Links == 0 || !p.IsAtPath(h.Link, stat)) {
		h.Path, h.Deleted = path, true
	}
	if path, err := p.PathInRoot(h.Path); err == nil {
		h.Path = path
	}
}

// List looks at all descriptors of a process, ascending. Those that are closed
// meanwhile are left out; restless are those that Read could not settle.
func List(p *procfs.Process) (handles []Handle, restless []int, err error) {
	numbers, err := p.DescriptorNumbers()
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range numbers {
		h, err := Read(p, fd)
		switch {
		case errors.Is(err, ErrClosed):
		case errors.Is(err, ErrRestless):
			restless = append(restless, fd)
		case err != nil:
			return nil, nil, err
		default:
			handles = append(handles, h)
		}
	}
	markOwn(p, handles)
	return handles, restless, nil
}
