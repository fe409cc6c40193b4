package image

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
)

// Bounds of what an image may hold.
const (
	maxProcesses   = 1 << 16
	maxThreads     = 1 << 17
	maxMappings    = 1 << 20
	maxDescriptors = 1 << 20
	maxXState      = 64 << 10
	maxSignals     = 64
	maxString      = 1 << 20
	maxPID         = 1 << 22
	siginfoSize    = 128
	maxSockaddr    = 128
	maxAuxv        = 1 << 10
	maxFilters     = 1 << 12
	maxFilterCode  = 4096 * 8
	userEnd        = 1 << 47 // of addresses that programs have
)

// A checker collects the first thing that is wrong.
type checker struct {
	err   error
	where string
	limit []uint64 // bytes of pages of this image, its parent, and so on

	threadIDs map[int]bool // of all processes so far
}

func (c *checker) that(right bool, format string, args ...any) {
	if c.err == nil && !right {
		c.err = fmt.Errorf("%s: %s", c.where, fmt.Sprintf(format, args...))
	}
}

// validate checks that whoever uses the values will find all that they refer to, and
// that nothing is larger than it may be. It says what is wrong first.
func (e *index) validate(parent *Reader) error {
	c := &checker{where: "pages", limit: []uint64{e.Pages}, threadIDs: map[int]bool{}}
	for p := parent; p != nil; p = p.parent {
		c.limit = append(c.limit, p.index.Pages)
	}
	c.blocks(e)
	c.image(e.Image)
	return c.err
}

func (c *checker) blocks(e *index) {
	next := uint64(0)
	for i, b := range e.Blocks {
		c.that(b.Logical == next, "block %d begins at %d, not %d", i, b.Logical, next)
		c.that(b.Size > 0 && b.Size <= blockSize && b.Size%PageSize == 0, "block %d has %d bytes", i, b.Size)
		c.that(b.Stored > 0 && b.Stored <= b.Size, "block %d has %d bytes stored", i, b.Stored)
		c.that(b.At <= e.Stored && uint64(b.Stored) <= e.Stored-b.At, "block %d ends behind the file", i)
		next += uint64(b.Size)
	}
	c.that(next == e.Pages, "blocks cover %d of %d bytes", next, e.Pages)
}

func (c *checker) image(img *Image) {
	c.where = "image"
	c.that(hexadecimal(img.ID), "its ID is none")
	c.that(img.Parent == "" && len(c.limit) == 1 || hexadecimal(img.Parent) && len(c.limit) > 1, "its parent's ID is none")
	c.that(img.Model == Minimal || img.Model == Enhanced || img.Model == Full, "there is no model %q", img.Model)
	c.texts(img.Machine.Kernel, img.Machine.Hostname, img.Machine.BootID, img.Machine.CPU)
	c.texts(img.Machine.Features...)
	c.that(img.Machine.XStateSize >= 0 && img.Machine.XStateSize <= maxXState, "an extended state of %d bytes", img.Machine.XStateSize)
	c.that(len(img.Processes) > 0 && len(img.Processes) <= maxProcesses, "%d processes", len(img.Processes))
	for i := range img.Objects {
		c.where = fmt.Sprintf("object %d", i)
		c.object(&img.Objects[i])
	}
	known := make(map[int]bool, len(img.Processes))
	for i := range img.Processes {
		p := &img.Processes[i]
		c.where = fmt.Sprintf("process %d", p.PID)
		c.that(!known[p.PID], "it is there twice")
		c.that(i == 0 || known[p.Parent], "its parent %d does not come before it", p.Parent)
		known[p.PID] = true
		c.process(p, img)
	}
	c.where = "image"
	c.that(len(img.Ended) <= maxProcesses, "%d processes that have ended", len(img.Ended))
	ended := make(map[int]bool, len(img.Ended))
	for i := range img.Ended {
		e := &img.Ended[i]
		c.where = fmt.Sprintf("process %d, which has ended", e.PID)
		c.that(known[e.Parent], "its parent %d is not in the image", e.Parent)
		c.that(!known[e.PID] && !ended[e.PID] && !c.threadIDs[e.PID], "it is there twice")
		ended[e.PID] = true
		c.ended(e)
	}
	for i := range img.Files {
		c.where = fmt.Sprintf("file %d", i)
		c.file(&img.Files[i], img, known)
	}
}

func (c *checker) object(o *Object) {
	c.that(o.Kind == "shared" || o.Kind == "memfd" || o.Kind == "sysv" || o.Kind == "file", "there is no kind %q", o.Kind)
	c.texts(o.Name)
	c.that(o.Size <= userEnd, "%d bytes", o.Size)
	c.that((o.Kind == "file") == (o.File != nil), "it is a file, or none")
	if o.File != nil {
		c.fileRef(o.File)
	}
	c.runs(o.Pages, 0, (o.Size+PageSize-1)/PageSize*PageSize)
}

func (c *checker) process(p *Process, img *Image) {
	c.pids(p.PID, p.Group, p.Session)
	c.that(p.PID > 0, "%d is no process", p.PID)
	c.that(p.Parent >= 0 && p.Parent < maxPID, "its parent is %d", p.Parent)
	c.texts(p.Program, p.Directory, p.Root)
	c.texts(p.Command...)
	c.fileRef(&p.Executable)
	c.that(p.Running == nil || *p.Running >= 0 && *p.Running < len(img.Objects) && img.Objects[*p.Running].Kind == "file", "its executable is no file")
	c.that(p.ExitSignal >= 0 && p.ExitSignal <= maxSignals, "its exit signal is %d", p.ExitSignal)
	c.that(p.ParentDeath >= 0 && p.ParentDeath <= maxSignals, "its parent-death signal is %d", p.ParentDeath)
	c.that(p.Umask <= 0o777, "its umask is %o", p.Umask)
	c.that(len(p.Limits) <= 64, "it has %d limits", len(p.Limits))
	c.that(len(p.Credentials.Groups) <= 1<<16, "it has %d groups", len(p.Credentials.Groups))
	c.that(len(p.ControlGroups) <= 64, "it is in %d control groups", len(p.ControlGroups))
	for _, g := range p.ControlGroups {
		c.texts(g.Controllers, g.Path)
		c.that(path.IsAbs(g.Path) && path.Clean(g.Path) == g.Path, "its control group is %.100q", g.Path)
	}
	c.that(p.OOMScoreAdjust >= -1000 && p.OOMScoreAdjust <= 1000, "its oom_score_adj is %d", p.OOMScoreAdjust)
	c.that(len(p.Layout.Auxv) <= maxAuxv && len(p.Layout.Auxv)%2 == 0, "an auxiliary vector of %d words", len(p.Layout.Auxv))
	c.that(len(p.Actions) <= maxSignals, "it has %d actions", len(p.Actions))
	c.signals(p.Pending)
	for _, i := range p.Intervals {
		c.interval(i)
	}
	c.that(len(p.Timers) <= 1<<16, "it has %d timers", len(p.Timers))
	for i, t := range p.Timers {
		c.that(t.ID >= 0 && (i == 0 || t.ID > p.Timers[i-1].ID), "its timers are not in order")
		c.that(t.Signal >= 0 && t.Signal <= maxSignals, "a timer has signal %d", t.Signal)
		c.interval(t.Time)
	}
	c.that(len(p.Filters) <= maxFilters, "it has %d filters", len(p.Filters))
	for _, f := range p.Filters {
		c.that(len(f.Code) > 0 && len(f.Code) <= maxFilterCode && len(f.Code)%8 == 0, "a filter has %d bytes", len(f.Code))
	}
	c.threads(p)
	c.mappings(p, img)
	c.that(len(p.Descriptors) <= maxDescriptors, "it has %d descriptors", len(p.Descriptors))
	for i, d := range p.Descriptors {
		c.that(d.Number >= 0 && d.Number < 1<<30 && (i == 0 || d.Number > p.Descriptors[i-1].Number), "its descriptors are not in order")
		c.that(d.File >= 0 && d.File < len(img.Files), "descriptor %d leads to no file", d.Number)
	}
}

// survived are the signals that end no process.
var survived = []syscall.Signal{syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGURG, syscall.SIGWINCH}

func (c *checker) ended(e *Ended) {
	c.pids(e.PID, e.Parent, e.Group, e.Session)
	c.that(e.PID > 1, "%d is no process", e.PID)
	c.that(len(e.Program) < 16, "its name is too long")
	c.texts(e.Program)
	signal := e.Signal()
	c.that(e.Status <= 0xff00 && (signal == 0 || e.Status <= 0xff && signal <= maxSignals && !slices.Contains(survived, syscall.Signal(signal))) &&
		(signal != 0 || e.Status&CoreDumped == 0), "its status is %#x", e.Status)
	c.that(e.ExitSignal >= 0 && e.ExitSignal <= maxSignals && e.ExitSignal != int(syscall.SIGKILL) && e.ExitSignal != int(syscall.SIGSTOP) &&
		e.ExitSignal != int(syscall.SIGTRAP), "its exit signal is %d", e.ExitSignal)
}

func (c *checker) threads(p *Process) {
	c.that(len(p.Threads) > 0 && len(p.Threads) <= maxThreads, "it has %d threads", len(p.Threads))
	for i := range p.Threads {
		t := &p.Threads[i]
		c.pids(t.TID)
		c.that(t.TID > 0, "%d is no thread", t.TID)
		c.that(!c.threadIDs[t.TID], "thread %d is there twice", t.TID)
		c.threadIDs[t.TID] = true
		c.that(i > 0 || t.TID == p.PID, "its first thread is not the main one")
		c.that(len(t.Name) < 16, "the name of thread %d is too long", t.TID)
		c.texts(t.Name)
		c.that(len(t.XState) <= maxXState, "thread %d has an extended state of %d bytes", t.TID, len(t.XState))
		c.that(t.Registers.RIP < userEnd && t.Registers.FSBase < userEnd && t.Registers.GSBase < userEnd, "registers of thread %d are no program's", t.TID)
		c.that(len(t.Affinity) <= 1024/8, "the CPU mask of thread %d is too large", t.TID)
		c.signals(t.Pending)
		for _, n := range t.Filters {
			c.that(n >= 0 && n < len(p.Filters), "thread %d has a filter that is not there", t.TID)
		}
		c.that(t.Restart == nil || t.Restart.Left >= 0, "thread %d waits for less than nothing", t.TID)
	}
}

func (c *checker) mappings(p *Process, img *Image) {
	c.that(len(p.Mappings) > 0 && len(p.Mappings) <= maxMappings, "it has %d mappings", len(p.Mappings))
	end := uint64(0)
	for i := range p.Mappings {
		m := &p.Mappings[i]
		c.that(m.Start >= end && m.Start < m.End && m.End <= userEnd && m.Start%PageSize == 0 && m.End%PageSize == 0,
			"its mapping %#x-%#x is not behind the one before", m.Start, m.End)
		end = m.End
		c.texts(m.Name)
		c.texts(m.VMFlags...)
		c.that(len(m.VMFlags) <= 64, "mapping %#x has too many flags", m.Start)
		c.that(m.Protection <= syscall.PROT_READ|syscall.PROT_WRITE|syscall.PROT_EXEC, "mapping %#x has protection %#x", m.Start, m.Protection)
		switch m.Kind {
		case Anonymous, VDSO:
		case Private, SharedMap:
			c.that(m.File != nil, "mapping %#x has no file", m.Start)
			if m.File != nil {
				c.fileRef(m.File)
			}
		case InObject:
			c.that(m.Object >= 0 && m.Object < len(img.Objects), "mapping %#x leads to no object", m.Start)
		default:
			c.that(false, "there is no kind %q of mappings", m.Kind)
		}
		c.that(!slices.Contains(m.VMFlags, HugePages) || m.Kind == Anonymous && m.Start%HugePage == 0 && m.End%HugePage == 0,
			"mapping %#x can't be of huge pages", m.Start)
		c.that(m.Kind == Anonymous || m.Kind == Private || m.Kind == VDSO || m.Kind == InObject && m.Flags&syscall.MAP_PRIVATE != 0 || len(m.Pages) == 0, "mapping %#x has pages that are not its own", m.Start)
		c.that(m.Offset%PageSize == 0 && m.Offset < 1<<62, "mapping %#x begins at %#x", m.Start, m.Offset)
		c.runs(m.Pages, m.Start, m.End)
		c.spans(m.Guards, m.Start, m.End)
	}
}

func (c *checker) file(f *File, img *Image, known map[int]bool) {
	c.texts(f.Kind, f.Was)
	c.that(f.Kind != "" && len(f.Kind) <= 32, "it has no kind")
	if o := f.Owner; o != nil {
		c.that(o.Type >= 0 && o.Type <= 2 && o.ID > -maxPID && o.ID < maxPID, "its owner is %d of type %d", o.ID, o.Type)
		c.that(o.Signal >= 0 && o.Signal <= maxSignals, "its signal is %d", o.Signal)
	}
	for _, l := range f.Locks {
		c.pids(l.PID)
		c.that(l.Start >= 0 && (l.End == -1 || l.End >= l.Start), "a lock from %d to %d", l.Start, l.End)
	}
	c.pids(f.PIDFD)
	if f.Regular != nil {
		c.that(!f.Regular.Mapped || f.Object < len(img.Objects), "it leads to no object")
		c.fileRef(&f.Regular.FileRef)
		c.runs(f.Regular.Content, 0, userEnd)
	}
	if f.Pipe != nil {
		c.texts(f.Pipe.Path)
		c.that(f.Pipe.Size >= 0 && f.Pipe.Size <= 1<<31, "a pipe of %d bytes", f.Pipe.Size)
	}
	for _, w := range f.Epoll {
		c.that(w.File >= 0 && w.File < len(img.Files) && known[w.Process], "what epoll waits for is not in the image")
	}
	for _, w := range f.Inotify {
		c.texts(w.Path)
	}
	c.that(f.Object >= 0 && (f.Object == 0 || f.Object < len(img.Objects)), "it leads to no object")
	if f.TimerFD != nil {
		c.interval(f.TimerFD.Time)
	}
	if s := f.Socket; s != nil {
		c.that(len(s.Local) <= maxSockaddr && len(s.Peer) <= maxSockaddr, "an address is too long")
		if s.Path != nil {
			c.texts(s.Path.Path)
			c.that(path.IsAbs(s.Path.Path), "%q is no absolute path", s.Path.Path)
		}
		for _, p := range s.Queue {
			c.that(len(p.From) <= maxSockaddr, "an address is too long")
			for _, n := range p.Files {
				c.that(n >= 0 && n < len(img.Files), "a descriptor in flight is not in the image")
			}
		}
		for _, o := range s.Options {
			c.that(len(o.Value) <= 4096, "the value of an option has %d bytes", len(o.Value))
		}
	}
}

func (c *checker) runs(runs []Run, start, end uint64) {
	for _, r := range runs {
		size := r.Count * PageSize
		c.that(r.Start%PageSize == 0 && r.Start >= start && r.Count > 0 && r.Count <= userEnd/PageSize && r.Start <= end && size <= end-r.Start,
			"pages at %#x are not where they may be", r.Start)
		c.that(r.Place.Up >= 0 && r.Place.Up < len(c.limit), "pages at %#x are in no image", r.Start)
		if c.err != nil {
			return
		}
		limit := c.limit[r.Place.Up]
		c.that(r.Place.Offset%PageSize == 0 && r.Place.Offset <= limit && size <= limit-r.Place.Offset, "pages at %#x are not in the image", r.Start)
		start = r.Start + size
	}
}

func (c *checker) spans(spans []Span, start, end uint64) {
	for _, s := range spans {
		c.that(s.Start >= start && s.Start < s.End && s.End <= end && s.Start%PageSize == 0 && s.End%PageSize == 0, "guards at %#x are not where they may be", s.Start)
		start = s.End
	}
}

func (c *checker) pids(ids ...int) {
	for _, id := range ids {
		c.that(id >= 0 && id < maxPID, "%d is no process", id)
	}
}

func (c *checker) signals(all []Signal) {
	c.that(len(all) <= 1<<16, "%d signals are pending", len(all))
	for _, s := range all {
		c.that(len(s) == siginfoSize, "a signal has %d bytes", len(s))
	}
}

func (c *checker) interval(i Interval) {
	c.that(i.Every >= 0 && i.Left >= 0, "a timer runs backwards")
}

// texts checks names: what the kernel takes has no NUL in it.
func (c *checker) texts(all ...string) {
	for _, s := range all {
		c.that(len(s) <= maxString && !strings.ContainsRune(s, 0), "a name is too long, or has a NUL")
	}
}

func (c *checker) fileRef(f *FileRef) {
	c.texts(f.Path, f.BuildID)
	c.that(f.Path == "" || path.IsAbs(f.Path), "%q is no absolute path", f.Path)
	c.that(f.Size >= 0, "%s has %d bytes", f.Path, f.Size)
}

// hexadecimal reports whether s is an ID.
func hexadecimal(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}
