package criu

import (
	"fmt"
	"math"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

// descriptors adds the table of process i.
func (x *export) descriptors(i int) {
	p := &x.img.Processes[i]
	var all []any
	for _, d := range p.Descriptors {
		e := fdinfo{ID: fileNumber(d.File), Type: x.typeOf(d.File), FD: uint32(d.Number)}
		if d.OnClose {
			e.Flags = syscall.FD_CLOEXEC
		}
		all = append(all, e)
	}
	x.add(fmt.Sprintf("fdinfo-%d.img", tables(i)), magicFdinfo, all...)
}

// types are those of the kinds of image.File. Where a kind has several, typeOf tells.
var types = map[string]uint32{
	"file": typeRegular, "directory": typeRegular, "path": typeRegular, "device": typeRegular, image.Inherited: typeRegular,
	"pipe": typePipe, "fifo": typeFIFO, "eventfd": typeEventfd, "epoll": typeEpoll, "inotify": typeInotify,
	"signalfd": typeSignalfd, "timerfd": typeTimerfd, "memfd": typeMemfd,
}

func (x *export) typeOf(i int) uint32 {
	f := &x.img.Files[i]
	if f.Socket == nil {
		return types[f.Kind]
	}
	if f.Socket.Family == syscall.AF_UNIX {
		return typeUnix
	}
	return typeInet
}

// descriptions adds what the descriptors lead to.
func (x *export) descriptions() {
	for i := range x.img.Files {
		if e := x.description(i); e != nil {
			e.Type, e.ID = x.typeOf(i), fileNumber(i)
			x.files = append(x.files, *e)
		}
	}
}

func (x *export) description(i int) *file {
	f, id, told := &x.img.Files[i], fileNumber(i), x.owner(i)
	switch {
	case f.Kind == image.Inherited:
		// As CRIU has files of --external: criu restore --inherit-fd gives it.
		x.note("%s leads to what whoever restores it gives: criu restore --inherit-fd 'fd[N]:%s'", x.fileSubject(i), inheritedName(i))
		return &file{Regular: &regFile{ID: id, Flags: f.Flags, Owner: told, Name: inheritedName(i), External: new(true)}}
	case f.Regular != nil && types[f.Kind] == typeRegular:
		return x.regular(i)
	case f.Pipe != nil && (f.Kind == "pipe" || f.Kind == "fifo"):
		return x.pipe(i)
	case f.Event != nil && f.Kind == "eventfd":
		if f.Event.Semaphore {
			x.refuseFile(i, "it is an eventfd that counts as a semaphore")
		}
		return &file{Event: &eventFile{ID: id, Flags: f.Flags, Owner: told, Counter: f.Event.Count}}
	case f.Kind == "signalfd":
		return &file{Signal: &signalFile{ID: id, Flags: f.Flags, Owner: told, Mask: f.Signals}}
	case f.TimerFD != nil && f.Kind == "timerfd":
		return &file{Timer: timerFD(f, id, told)}
	case f.Kind == "memfd" && f.Object < len(x.img.Objects):
		return &file{Memory: &memoryFile{ID: id, Flags: f.Flags, Position: uint64(f.Offset), Owner: told, Inode: x.memfd(f.Object)}}
	case f.Kind == "epoll":
		return x.epoll(i)
	case f.Kind == "inotify":
		return x.inotify(i)
	case f.Socket != nil && f.Kind == "socket":
		return x.socket(i)
	}
	x.refuseFile(i, "it leads to a description of kind "+f.Kind)
	return nil
}

func inheritedName(i int) string { return fmt.Sprintf("inherited[%d]", fileNumber(i)) }

// owner is who gets signals of file i.
func (x *export) owner(i int) owner {
	o := x.img.Files[i].Owner
	if o == nil {
		return owner{}
	}
	c := &x.img.Processes[0].Credentials
	return owner{UID: c.UID[0], EUID: c.UID[1], Signal: uint32(o.Signal), Type: uint32(o.Type), ID: uint32(o.ID)}
}

const (
	timerAbsolute = 1 // TFD_TIMER_ABSTIME
	timerCancel   = 2 // TFD_TIMER_CANCEL_ON_SET
)

func timerFD(f *image.File, id uint32, told owner) *timerFile {
	t := &timerFile{ID: id, Flags: f.Flags, Owner: told, Clock: uint32(f.TimerFD.Clock), Ticks: f.TimerFD.Ticks}
	if f.TimerFD.Absolute {
		t.SetFlags |= timerAbsolute
	}
	if f.TimerFD.CancelOnSet {
		t.SetFlags |= timerCancel
	}
	t.LeftSec, t.LeftNsec = split(f.TimerFD.Time.Left)
	t.EverySec, t.EveryNsec = split(f.TimerFD.Time.Every)
	return t
}

// pipe is a pipe or FIFO, whose content is added once.
func (x *export) pipe(i int) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	number, ok := x.inode(i, f.Pipe.ID)
	if !ok {
		return nil
	}
	data, magic := "pipes-data.img", uint32(magicPipesData)
	if f.Pipe.Path != "" {
		data, magic = "fifo-data.img", magicFIFOData
	}
	if len(f.Content) > 0 || !x.withContent(f.Pipe.ID) && x.first(i) {
		x.extend(data, magic, pipeData{Pipe: number, Bytes: uint32(len(f.Content)), Size: uint32(f.Pipe.Size)}, rawBytes(f.Content))
	}
	if f.Pipe.Path == "" {
		return &file{Pipe: &pipeFile{ID: id, Pipe: number, Flags: f.Flags, Owner: x.owner(i)}}
	}
	named := x.number()
	x.files = append(x.files, file{Type: typeRegular, ID: named,
		Regular: &regFile{ID: named, Flags: f.Flags, Owner: x.owner(i), Name: f.Pipe.Path}})
	return &file{FIFO: &fifoFile{ID: id, Pipe: number, Regular: named}}
}

// withContent reports whether one of a pipe's descriptions has what is in it.
func (x *export) withContent(pipe uint64) bool {
	return slices.ContainsFunc(x.img.Files, func(f image.File) bool { return f.Pipe != nil && f.Pipe.ID == pipe && len(f.Content) > 0 })
}

// first reports whether file i is the first of its pipe.
func (x *export) first(i int) bool {
	return i == slices.IndexFunc(x.img.Files, func(f image.File) bool { return f.Pipe != nil && f.Pipe.ID == x.img.Files[i].Pipe.ID })
}

// inode is a number of an inode, of which CRIU keeps 32 bits.
func (x *export) inode(i int, number uint64) (uint32, bool) {
	if number > math.MaxUint32 {
		x.refuseFile(i, fmt.Sprintf("its inode has the number %d, of more than 32 bits", number))
		return 0, false
	}
	return uint32(number), true
}

// epoll is an epoll, whose registrations CRIU makes again in the first process that has it.
func (x *export) epoll(i int) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	e := &epollFile{ID: id, Flags: f.Flags, Owner: x.owner(i)}
	for _, w := range f.Epoll {
		if !x.leadsTo(w.Process, i) || !x.leadsTo(w.Process, w.File) || x.leads(w.Process, w.Number) != w.File {
			x.refuseFile(i, fmt.Sprintf("it waits for a description by number %d, which is no longer its descriptor", w.Number))
			continue
		}
		e.Targets = append(e.Targets, epollTarget{ID: id, FD: uint32(w.Number), Events: w.Events, Data: w.Data})
	}
	return &file{Epoll: e}
}

// leads returns the file that a descriptor of a process leads to, or -1.
func (x *export) leads(pid, number int) int {
	for p := range x.img.Processes {
		if x.img.Processes[p].PID != pid {
			continue
		}
		for _, d := range x.img.Processes[p].Descriptors {
			if d.Number == number {
				return d.File
			}
		}
	}
	return -1
}

// leadsTo reports whether a process has a descriptor of file i.
func (x *export) leadsTo(pid, i int) bool {
	for p := range x.img.Processes {
		if x.img.Processes[p].PID == pid && slices.ContainsFunc(x.img.Processes[p].Descriptors, func(d image.Descriptor) bool { return d.File == i }) {
			return true
		}
	}
	return false
}

// handleWords is how many words a file handle of CRIU's has at least.
const handleWords = 16

// inotify is an inotify; CRIU finds what it watches by the paths.
func (x *export) inotify(i int) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	e := &inotifyFile{ID: id, Flags: f.Flags, Owner: x.owner(i)}
	for _, w := range f.Inotify {
		e.Watches = append(e.Watches, inotifyWatch{ID: id, Inode: w.Inode, Mask: w.Mask, Number: uint32(w.ID),
			Handle: fileHandle{Handle: make([]uint64, handleWords), Path: w.Path}})
	}
	return &file{Inotify: e}
}
