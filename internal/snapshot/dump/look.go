package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Options say what is kept, and how.
type Options struct {
	// Inherit are the descriptors that whoever restores gives: what they lead to is
	// not kept. With them a controlling terminal is no obstacle.
	Inherit []int
	// Tree keeps all that descends from the process, too.
	Tree bool
	// LeaveRunning lets the program go on behind its checkpoint.
	LeaveRunning bool
	// Series notes writes between this checkpoint and the next of the same program, and
	// knows those since the one before; nil is none. It goes with LeaveRunning.
	Series *Series
	// Apart are the namespaces that the program is in, and vOS, which is in them, too, was
	// not before.
	Apart *image.Apart
	// Progress is told how many bytes of memory are written, of how many; it may be
	// nil. It is called by several goroutines, one at a time.
	Progress func(done, total uint64)
}

// descriptors are the options that are of descriptors.
func (o Options) descriptors() descriptor.Options {
	return descriptor.Options{Inherit: o.Inherit, GoesOn: o.LeaveRunning}
}

// A Plan is a program that was looked at: what speaks against a checkpoint, and what
// it would hold, as of then.
type Plan struct {
	*member  // the root
	Program  string
	Model    image.Model
	Refusals []api.Refusal
	PIDs     []int    // of all processes, parents before their children
	Threads  int      // of all of them
	Mapped   uint64   // bytes of address space
	Kept     uint64   // bytes of memory that the image would hold
	Handles  int      // descriptors
	Notes    []string // what a restore takes beside the image

	members []*member // parents before their children
	ended   []*ended
	found   *descriptor.Found

	// written, where it is not nil, is called when all was written, while the program is
	// held: for tests.
	written func(s *tracee.Session, c *commit) error
}

// A member is one process of the program.
type member struct {
	Process *procfs.Process

	parent   int   // 0 of the root
	children []int // that belong to the program
	options  Options
	memory   *memory
	base     image.Process // what does not change, or is looked at again
	model    image.Model
	refusals []api.Refusal

	statuses map[int]procfs.Status // of the threads
}

// Look looks at a process, which runs meanwhile, and is the caller's: the plan needs
// it. With Options.Tree it looks at all that descends from it, too. Nothing is stopped
// or changed. The caller closes the plan.
func Look(ctx context.Context, p *procfs.Process, o Options) (_ *Plan, err error) {
	root := &member{Process: p, options: o, model: image.Minimal}
	plan := &Plan{member: root, Model: image.Minimal, members: []*member{root}}
	defer func() {
		if err != nil {
			err = errors.Join(err, plan.Close())
		}
	}()
	stat, err := p.Stat()
	if err != nil {
		return nil, err
	}
	plan.Program = stat.Command
	if o.Tree {
		if err := plan.grow(); err != nil {
			return nil, err
		}
	}
	for _, m := range plan.members {
		plan.PIDs = append(plan.PIDs, m.Process.PID())
		whole, err := m.look()
		if err != nil {
			return nil, err
		}
		plan.Refusals = append(plan.Refusals, m.refusals...)
		plan.Model = larger(plan.Model, m.model)
		if !whole {
			return plan, nil
		}
		plan.Threads += len(m.statuses)
		plan.Refusals = append(plan.Refusals, m.memory.refusals...)
		plan.Mapped += m.memory.mapped
		kept, err := m.memory.estimate(m.Process)
		if err != nil {
			return nil, err
		}
		plan.Kept += kept
		numbers, err := m.Process.DescriptorNumbers()
		if err != nil {
			return nil, err
		}
		plan.Handles += len(numbers)
	}
	if len(plan.members)+len(plan.ended) > 1 {
		plan.Model = image.Full
		bases := make([]image.Process, len(plan.members))
		for i, m := range plan.members {
			bases[i] = m.base
		}
		ended, err := plan.lookAtEnded()
		if err != nil {
			return nil, err
		}
		relations, err := refuseRelations(bases, ended)
		if err != nil {
			return nil, err
		}
		plan.Refusals = append(plan.Refusals, relations...)
	}
	sharers, err := plan.lookAtSharers()
	if err != nil {
		return nil, err
	}
	plan.Refusals = append(plan.Refusals, sharers...)
	spaces, err := plan.lookAtSpaces()
	if err != nil {
		return nil, err
	}
	plan.Refusals = append(plan.Refusals, spaces...)
	refusals, err := plan.lookAtDescriptors(ctx)
	if err != nil {
		return nil, err
	}
	plan.Refusals = append(plan.Refusals, refusals...)
	plan.Model, plan.Notes = larger(plan.Model, plan.found.Model()), plan.found.Notes()
	for _, m := range plan.members {
		if r := m.foreignTerminal(&m.base, plan.found.HasMaster); r != nil {
			plan.Refusals, plan.Model = append(plan.Refusals, *r), image.Full
		}
	}
	return plan, nil
}

// foreignTerminal refuses a process that a terminal controls which is not the program's.
// Where whoever restores gives what the program had from outside, it does without.
func (m *member) foreignTerminal(b *image.Process, own func(number int) bool) *api.Refusal {
	if b.Terminal == nil || own(*b.Terminal) {
		return nil
	}
	b.Terminal = nil
	if len(m.options.Inherit) > 0 {
		return nil
	}
	return new(refused(codeTerminal, processSubject(m.Process.PID()), "it has a controlling terminal, whose other end is not the program's",
		"start it by setsid, or --inherit 0,1,2: it is restored without a controlling terminal"))
}

// pseudoTerminal is the number in /dev/pts of a controlling terminal, as stat(5) has it;
// -1 is none of these.
func pseudoTerminal(device int) int {
	major, minor := device>>8&0xfff, device&0xff|device>>12&0xfff00
	if major < 136 || major > 143 {
		return -1
	}
	return (major-136)<<20 | minor
}

func larger(a, b image.Model) image.Model {
	for _, m := range []image.Model{image.Full, image.Enhanced} {
		if a == m || b == m {
			return m
		}
	}
	return image.Minimal
}

// lookAtDescriptors looks at what the descriptors of all processes lead to.
func (p *Plan) lookAtDescriptors(ctx context.Context) (refusals []api.Refusal, err error) {
	all := make([]*procfs.Process, len(p.members))
	for i, m := range p.members {
		all[i] = m.Process
	}
	p.found, refusals, err = descriptor.Look(ctx, all, p.options.descriptors())
	return refusals, err
}

// look looks at one process. It is whole if there is no such obstacle that nothing more
// can be said of it.
func (m *member) look() (whole bool, err error) {
	p := m.Process
	stat, err := p.Stat()
	if err != nil {
		return false, err
	}
	if err := tracee.Lifeless(p.PID(), stat); err != nil {
		return false, m.refuse(err)
	}
	auxv, err := p.Auxv()
	if err != nil {
		return false, err
	}
	if err := tracee.Foreign(p.PID(), auxv); err != nil {
		return false, m.refuse(err)
	}
	if stat.Zombie() {
		return false, m.refuse(refused(codeZombie, processSubject(p.PID()), "its main thread has ended, other threads have not", noRemedy))
	}
	status, err := tracee.Check(p)
	if err != nil && len(api.Refusals(err)) == 0 {
		return false, err
	}
	for _, r := range api.Refusals(err) {
		m.full(r)
	}
	looked := make(chan error, 1)
	go func() {
		var err error
		m.memory, err = lookAtMemory(p, m.options.Series.tracker(p.PID()))
		looked <- err
	}()
	err = m.lookAtProcess(stat, status)
	if err := errors.Join(err, <-looked); err != nil {
		return false, err
	}
	if err := m.memory.running(p, &m.base); err != nil {
		if err := m.refuse(err); err != nil {
			return false, err
		}
	}
	return true, nil
}

// refuse notes a refusal; another error is returned.
func (m *member) refuse(err error) error {
	var r api.Refusal
	if !errors.As(err, &r) {
		return err
	}
	m.full(r)
	return nil
}

// full notes an obstacle that the full model will have to deal with.
func (m *member) full(r api.Refusal) {
	m.model = image.Full
	m.refusals = append(m.refusals, r)
}

// lookAtProcess looks at what belongs to the process as a whole: while it runs, and
// again when it is held.
func (p *member) lookAtProcess(stat procfs.Stat, status procfs.Status) error {
	process, pid := p.Process, p.Process.PID()
	if status.Seccomp == procfs.SeccompStrict {
		p.full(refused(codeSeccomp, processSubject(pid), "it may only read, write and end (strict seccomp)", noRemedy))
	}
	if err := p.lookAtThreads(status); err != nil {
		return err
	}
	children, err := process.Children()
	if err != nil {
		return err
	}
	if strange := slices.IndexFunc(children, func(child int) bool { return !slices.Contains(p.children, child) }); strange >= 0 {
		if p.options.Tree {
			p.full(refused(codeMoving, processSubject(pid), fmt.Sprintf("its child process %d has just been born", children[strange]), descriptor.TryAgain))
		} else {
			p.full(refused(codeChildren, processSubject(pid), fmt.Sprintf("it has child processes (%d, …)", children[strange]), "--tree keeps them, too"))
		}
	}
	if stat.Terminal != 0 {
		p.base.Terminal = new(pseudoTerminal(stat.Terminal))
	}
	if err := p.lookAtNamespaces(); err != nil {
		return err
	}
	b := &p.base
	b.PID, b.Parent, b.Program, b.ExitSignal = pid, p.parent, stat.Command, stat.ExitSignal
	b.Group, b.Session, b.Umask = stat.ProcessGrp, stat.Session, status.Umask
	b.NoNewPrivileges = status.NoNewPrivs
	b.Credentials = credentials(status)
	if err := p.lookAtPaths(); err != nil {
		return err
	}
	limits, err := process.Limits()
	if err != nil {
		return err
	}
	for _, l := range limits {
		b.Limits = append(b.Limits, image.Limit{Soft: l[0], Hard: l[1]})
	}
	if b.OOMScoreAdjust, err = process.OOMScoreAdjust(); err != nil {
		return err
	}
	groups, err := process.Cgroups()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if path.Clean(g.Path) != g.Path {
			continue // above the root of vOS's cgroup namespace
		}
		b.ControlGroups = append(b.ControlGroups, image.ControlGroup{Controllers: g.Controllers, Path: g.Path})
	}
	if b.Command, err = process.Cmdline(); err != nil {
		return err
	}
	layout, err := process.Layout()
	if err != nil {
		return err
	}
	if b.Layout.Auxv, err = process.AuxvWords(); err != nil {
		return err
	}
	b.Layout = image.Layout{
		StartCode: layout.StartCode, EndCode: layout.EndCode, StartData: layout.StartData, EndData: layout.EndData,
		StartBreak: layout.StartBreak, StartStack: layout.StartStack, ArgStart: layout.ArgStart, ArgEnd: layout.ArgEnd,
		EnvStart: layout.EnvStart, EnvEnd: layout.EnvEnd, Auxv: b.Layout.Auxv,
	}
	return nil
}

// lookAtThreads refuses threads that have other rights than the main one.
func (p *member) lookAtThreads(main procfs.Status) error {
	tids, err := p.Process.Threads()
	if err != nil {
		return err
	}
	all := make([]procfs.Status, len(tids))
	err = procfs.Abreast(len(tids), func(i int) (err error) {
		if all[i], err = p.Process.ThreadStatus(tids[i]); errors.Is(err, os.ErrNotExist) {
			return nil // it has ended
		}
		return err
	})
	if err != nil {
		return err
	}
	want := credentials(main)
	p.statuses = make(map[int]procfs.Status, len(tids))
	for i, status := range all {
		tid := tids[i]
		if status.PID == 0 {
			continue
		}
		p.statuses[tid] = status
		if !reflect.DeepEqual(credentials(status), want) || status.NoNewPrivs != main.NoNewPrivs || (status.Seccomp == procfs.SeccompStrict) != (main.Seccomp == procfs.SeccompStrict) {
			p.full(refused(codeThreadIDs, fmt.Sprintf("thread %d of process %d", tid, p.Process.PID()), "it has other rights than the main thread", noRemedy))
			return nil
		}
	}
	return nil
}

func (p *member) lookAtNamespaces() error {
	if p.options.Apart != nil {
		p.model = image.Full
	}
	if p.Process.PID() == 1 {
		p.full(refused(codeNamespace, processSubject(1), "it is the first process of a pid namespace, which ends with it", noRemedy))
	}
	theirs, err := p.Process.Namespaces()
	if err != nil {
		return err
	}
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return err
	}
	defer self.Close()
	own, err := self.Namespaces()
	if err != nil {
		return err
	}
	for _, n := range []struct {
		name         string
		theirs, ours uint64
	}{
		{"pid", theirs.PID, own.PID}, {"pid (for children)", theirs.PIDForChildren, own.PIDForChildren}, {"network", theirs.Net, own.Net},
		{"mount", theirs.Mount, own.Mount}, {"ipc", theirs.IPC, own.IPC}, {"uts", theirs.UTS, own.UTS},
		{"user", theirs.User, own.User}, {"time", theirs.Time, own.Time}, {"cgroup", theirs.Cgroup, own.Cgroup},
	} {
		if n.theirs != n.ours {
			p.full(refused(codeNamespace, processSubject(p.Process.PID()), "it has a "+n.name+" namespace of its own, which is not kept",
				"run vos in the same namespaces: nsenter --target "+fmt.Sprint(p.Process.PID())+" --all"))
		}
	}
	return nil
}

func (p *member) lookAtPaths() error {
	b, pid := &p.base, p.Process.PID()
	var err error
	if b.Root, err = p.Process.RootDirectory(); err != nil {
		return err
	}
	if info, err := os.Stat(b.Root); !path.IsAbs(b.Root) || err != nil || !info.IsDir() {
		p.full(refused(codeRoot, processSubject(pid), "its root directory "+b.Root+" is not to be found by its path", noRemedy))
	}
	if b.Directory, err = p.Process.Directory(); err != nil {
		return err
	}
	if !path.IsAbs(b.Directory) {
		p.full(refused(codeRoot, processSubject(pid), "its current directory is "+b.Directory+", which has no path", "let it change to another directory"))
	}
	if info, err := os.Stat(b.Directory); err != nil || !info.IsDir() {
		p.full(refused(codeRoot, processSubject(pid), "its current directory "+b.Directory+" is gone", "let it change to another directory"))
	}
	executable, err := p.Process.Executable()
	if err != nil {
		return err
	}
	if executable.Deleted {
		b.Executable.Path = executable.Path
		return nil
	}
	b.Executable, err = fileRef(executable.Path)
	return err
}

// fileRef says how a file is at this time.
func fileRef(path string) (image.FileRef, error) {
	info, err := os.Stat(path)
	if err != nil {
		return image.FileRef{}, err
	}
	device, inode := identity(info)
	return image.FileRef{Path: path, Device: device, Inode: inode, Size: info.Size(), Modified: info.ModTime().UTC().Round(time.Nanosecond)}, nil
}

func credentials(s procfs.Status) image.Credentials {
	ids := func(i procfs.IDs) [4]uint32 {
		return [4]uint32{uint32(i.Real), uint32(i.Effective), uint32(i.Saved), uint32(i.Filesystem)}
	}
	c := image.Credentials{
		UID: ids(s.UIDs), GID: ids(s.GIDs), Inheritable: s.CapInheritable, Permitted: s.CapPermitted,
		Effective: s.CapEffective, Bounding: s.CapBounding, Ambient: s.CapAmbient,
	}
	for _, g := range s.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}
