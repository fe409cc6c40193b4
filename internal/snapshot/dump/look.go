package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
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
	// LeaveRunning lets the program go on behind its checkpoint.
	LeaveRunning bool
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
	Process  *procfs.Process
	Program  string
	Model    image.Model
	Refusals []api.Refusal
	Threads  int
	Mapped   uint64 // bytes of address space
	Kept     uint64 // bytes of memory that the image would hold
	Handles  int    // descriptors

	options Options
	found   *descriptor.Found
	memory  *memory
	base    image.Process // what does not change, or is looked at again

	statuses map[int]procfs.Status // of the threads

	// written, where it is not nil, is called when all was written, while the program is
	// held: for tests.
	written func(s *tracee.Session, c *commit) error
}

// Look looks at a process, which runs meanwhile, and is the caller's: the plan needs
// it. Nothing is stopped or changed.
func Look(ctx context.Context, p *procfs.Process, o Options) (*Plan, error) {
	plan := &Plan{Process: p, options: o, Model: image.Minimal}
	stat, err := p.Stat()
	if err != nil {
		return nil, err
	}
	plan.Program, plan.Threads = stat.Command, stat.Threads
	if err := tracee.Lifeless(p.PID(), stat); err != nil {
		return plan.refuse(err)
	}
	auxv, err := p.Auxv()
	if err != nil {
		return nil, err
	}
	if err := tracee.Foreign(p.PID(), auxv); err != nil {
		return plan.refuse(err)
	}
	if stat.Zombie() {
		return plan.refuse(refused(codeZombie, processSubject(p.PID()), "its main thread has ended, other threads have not", noRemedy))
	}
	status, err := tracee.Check(p)
	if err != nil && len(api.Refusals(err)) == 0 {
		return nil, err
	}
	for _, r := range api.Refusals(err) {
		plan.full(r)
	}
	if err := plan.lookAtProcess(stat, status); err != nil {
		return nil, err
	}
	if plan.memory, err = lookAtMemory(p, nil); err != nil {
		return nil, err
	}
	if err := plan.memory.running(p, &plan.base); err != nil {
		if _, err := plan.refuse(err); err != nil {
			return nil, err
		}
	}
	plan.Refusals = append(plan.Refusals, plan.memory.refusals...)
	plan.Mapped = plan.memory.mapped
	if plan.Kept, err = plan.memory.estimate(p); err != nil {
		return nil, err
	}
	var refusals []api.Refusal
	if plan.found, refusals, err = descriptor.Look(ctx, []*procfs.Process{p}, o.descriptors()); err != nil {
		return nil, err
	}
	numbers, err := p.DescriptorNumbers()
	if err != nil {
		return nil, err
	}
	plan.Handles = len(numbers)
	plan.Refusals = append(plan.Refusals, refusals...)
	if plan.Model == image.Minimal {
		plan.Model = plan.found.Model()
	}
	return plan, nil
}

func (p *Plan) refuse(err error) (*Plan, error) {
	var r api.Refusal
	if !errors.As(err, &r) {
		return nil, err
	}
	p.Model, p.Refusals = image.Full, append(p.Refusals, r)
	return p, nil
}

// full notes an obstacle that the full model will have to deal with.
func (p *Plan) full(r api.Refusal) {
	p.Model = image.Full
	p.Refusals = append(p.Refusals, r)
}

// lookAtProcess looks at what belongs to the process as a whole: while it runs, and
// again when it is held.
func (p *Plan) lookAtProcess(stat procfs.Stat, status procfs.Status) error {
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
	if len(children) > 0 {
		p.full(refused(codeChildren, processSubject(pid), fmt.Sprintf("it has child processes (%d, …): trees are not kept yet", children[0]), "end them first"))
	}
	if stat.Terminal != 0 && len(p.options.Inherit) == 0 {
		p.full(refused(codeTerminal, processSubject(pid), "it has a controlling terminal, which is not kept",
			"start it by setsid, or --inherit 0,1,2: it is restored without a controlling terminal"))
	}
	if err := p.lookAtNamespaces(); err != nil {
		return err
	}
	b := &p.base
	b.PID, b.Program, b.ExitSignal = pid, stat.Command, 17 // SIGCHLD
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
func (p *Plan) lookAtThreads(main procfs.Status) error {
	tids, err := p.Process.Threads()
	if err != nil {
		return err
	}
	want := credentials(main)
	p.statuses = make(map[int]procfs.Status, len(tids))
	for _, tid := range tids {
		status, err := p.Process.ThreadStatus(tid)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		p.statuses[tid] = status
		if !reflect.DeepEqual(credentials(status), want) || status.NoNewPrivs != main.NoNewPrivs || (status.Seccomp == procfs.SeccompStrict) != (main.Seccomp == procfs.SeccompStrict) {
			p.full(refused(codeThreadIDs, fmt.Sprintf("thread %d of process %d", tid, p.Process.PID()), "it has other rights than the main thread", noRemedy))
			return nil
		}
	}
	return nil
}

func (p *Plan) lookAtNamespaces() error {
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
			p.full(refused(codeNamespace, processSubject(p.Process.PID()), "it has a "+n.name+" namespace of its own, which is not kept yet",
				"run vos in the same namespaces: nsenter --target "+fmt.Sprint(p.Process.PID())+" --all"))
		}
	}
	return nil
}

func (p *Plan) lookAtPaths() error {
	b, pid := &p.base, p.Process.PID()
	var err error
	if b.Root, err = p.Process.RootDirectory(); err != nil {
		return err
	}
	if b.Root != "/" {
		p.full(refused(codeRoot, processSubject(pid), "its root directory is "+b.Root, "run vos in the same root directory"))
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
