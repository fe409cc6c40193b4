package restore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/lineage"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A family is the processes of an image while they are born, with those that end when
// all are there. Nobody is more than a place to work in: a child begins as a copy of its
// parent, and later its parent may have lost the right to choose its id.
type family struct {
	*tracer
	plan    *Plan
	births  lineage.Plan
	starter *process
	members map[int]*process // all that are there, by their ids
	born    []*process       // the same, as they were born
	spare   int              // the id to be tried for who is nobody's
}

// bearAll bears all processes of the image, and returns them in its order.
func (f *family) bearAll() (built []*process, err error) {
	img := f.plan.source.Image()
	processes, exitSignals := make(map[int]*image.Process), make(map[int]int)
	for i := range img.Processes {
		p := &img.Processes[i]
		processes[p.PID] = p
		if i > 0 { // the root's parent is the starter, whose end makes that signal SIGCHLD
			exitSignals[p.PID] = p.ExitSignal
		}
	}
	for i := range img.Ended {
		exitSignals[img.Ended[i].PID] = img.Ended[i].ExitSignal
	}
	for _, s := range f.births.Steps {
		if s.Session {
			err = f.makeSession(s.PID, processes[s.PID])
		} else {
			err = f.bear(s, exitSignals[s.PID], processes[s.PID])
		}
		if err != nil {
			return nil, err
		}
	}
	if err := f.makeGroups(); err != nil {
		return nil, err
	}
	for i := range img.Processes {
		built = append(built, f.members[img.Processes[i].PID])
	}
	return built, f.plan.setForeground(built, img)
}

// bear takes one step of the births.
func (f *family) bear(s lineage.Step, exitSignal int, of *image.Process) (err error) {
	by := f.starter
	if s.By != 0 {
		by = f.members[s.By]
	}
	between := by
	if s.Adopter != 0 {
		if between, err = f.bearSpare(by); err != nil {
			return err
		}
		if err := f.members[s.Adopter].adopting(true); err != nil {
			return err
		}
	}
	child, err := between.bear(s.PID, exitSignal)
	if child != nil {
		f.add(child)
	}
	if err != nil {
		return err
	}
	if s.Adopter != 0 {
		if err := f.endStandIn(between, by); err != nil {
			return err
		}
		if err := f.members[s.Adopter].adopting(false); err != nil {
			return err
		}
	}
	if of == nil {
		return nil
	}
	return child.settleIn(of.Mappings)
}

func (f *family) add(p *process) {
	f.members[p.pid], f.born = p, append(f.born, p)
}

// makeSession lets a process make its session, with its terminal.
func (f *family) makeSession(pid int, of *image.Process) error {
	p := f.members[pid]
	b := p.batch()
	b.add("make a session", syscall.SYS_SETSID)
	if _, err := b.run(); err != nil || of == nil || of.Terminal == nil {
		return err
	}
	return p.takeTerminal(f.plan.terminals, *of.Terminal)
}

// makeGroups puts the processes into their groups: those that lead one first.
func (f *family) makeGroups() error {
	for _, pid := range f.births.Founders {
		if err := f.join(pid, pid); err != nil {
			return err
		}
	}
	for _, m := range f.births.Members {
		if err := f.join(m.PID, m.Of); err != nil {
			return err
		}
	}
	return nil
}

func (f *family) join(pid, group int) error {
	b := f.members[pid].batch()
	b.add(fmt.Sprintf("join process group %d", group), syscall.SYS_SETPGID, 0, uint64(group))
	_, err := b.run()
	return err
}

// endEnded ends those who stood for others, and those that have ended and were not waited
// for. Their parents have nothing but a place to work in, and learn nothing of it.
func (f *family) endEnded() error {
	for _, s := range f.births.StandIns {
		if err := f.endStandIn(f.members[s.PID], f.members[s.Of]); err != nil {
			return err
		}
	}
	img := f.plan.source.Image()
	for i := range img.Ended {
		e := &img.Ended[i]
		if err := f.members[e.PID].endAs(e); err != nil {
			return err
		}
		if err := f.members[e.Parent].forget(e.ExitSignal); err != nil {
			return err
		}
	}
	return f.check()
}

// endStandIn ends a process, and lets its parent wait for it.
func (f *family) endStandIn(p, parent *process) error {
	if err := p.endBy(tracee.Call{Number: syscall.SYS_EXIT_GROUP}); err != nil {
		return err
	}
	b := parent.batch()
	b.add("wait for who stood for another one", syscall.SYS_WAIT4, uint64(p.pid), 0, waitAll, 0)
	if _, err := b.run(); err != nil {
		return err
	}
	delete(f.members, p.pid)
	for i := range f.born {
		if f.born[i] == p {
			f.born = append(f.born[:i], f.born[i+1:]...)
			break
		}
	}
	return nil
}

// bearSpare lets a process bear one whose id is none of the image's.
func (f *family) bearSpare(by *process) (*process, error) {
	const tries = 1 << 10
	for range tries {
		f.spare++
		errno, err := by.clone(f.spare, 0)
		if err != nil {
			return nil, err
		}
		switch errno {
		case 0:
			p, err := by.child(f.spare)
			f.add(p)
			return p, err
		case syscall.EEXIST:
		case syscall.EINVAL:
			f.spare = lowestSpare // there are no higher ids
		default:
			return nil, &StepError{PID: by.pid, TID: by.pid, What: "make a process between two", Errno: errno}
		}
		for f.plan.ids[f.spare+1] {
			f.spare++
		}
	}
	return nil, fmt.Errorf("make a process between two: none of %d ids is free", tries)
}

const lowestSpare = 300 // RESERVED_PIDS of the kernel

// check makes sure that all have the parents, sessions and groups that they are to have.
func (f *family) check() error {
	img := f.plan.source.Image()
	if len(img.Processes)+len(img.Ended) == 1 {
		return nil
	}
	for i := range img.Processes {
		p := &img.Processes[i]
		parent := p.Parent
		if i == 0 {
			parent = f.starter.pid
		}
		if err := f.checkOne(p.PID, parent, p.Group, p.Session); err != nil {
			return err
		}
	}
	for i := range img.Ended {
		e := &img.Ended[i]
		if err := f.checkOne(e.PID, e.Parent, e.Group, e.Session); err != nil {
			return err
		}
	}
	return nil
}

func (f *family) checkOne(pid, parent, group, session int) error {
	root := &f.plan.source.Image().Processes[0]
	if group == root.Group {
		group = root.PID
	}
	if session == root.Session {
		session = root.PID
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	stat, err := procfs.ParseStat(text)
	if err != nil {
		return err
	}
	if stat.PPID != parent || stat.ProcessGrp != group || stat.Session != session {
		return fmt.Errorf("build process %d: its parent is %d, its process group %d, its session %d, instead of %d, %d, %d",
			pid, stat.PPID, stat.ProcessGrp, stat.Session, parent, group, session)
	}
	return nil
}

// adopting makes the process the one that gets the children of what ends below it, or not.
func (p *process) adopting(yes bool) error {
	b := p.batch()
	on := uint64(0)
	if yes {
		on = 1
	}
	b.add("adopt what is below it", syscall.SYS_PRCTL, prctlSubreaper, on)
	_, err := b.run()
	return err
}

// endAs lets the process end as one has that was not waited for. What a dump of its core
// would tell is left out.
func (p *process) endAs(e *image.Ended) error {
	b := p.batch()
	name, err := b.place(append([]byte(e.Program), 0))
	if err != nil {
		return err
	}
	b.add("set its name", syscall.SYS_PRCTL, prctlName, name)
	b.add("take its group", syscall.SYS_SETRESGID, uint64(e.GID), uint64(e.GID), uint64(e.GID))
	b.add("take its user", syscall.SYS_SETRESUID, uint64(e.UID), uint64(e.UID), uint64(e.UID))
	b.add("dump no core", syscall.SYS_PRCTL, prctlDumpable, 0)
	if _, err := b.run(); err != nil {
		return err
	}
	if e.Signal() == 0 {
		return p.endBy(tracee.Call{Number: syscall.SYS_EXIT_GROUP, Args: [6]uint64{uint64(e.Code())}})
	}
	if err := kernel.SetSignalMask(p.pid, ^uint64(1<<(e.Signal()-1))); err != nil {
		return err
	}
	return p.endBy(tracee.Call{Number: syscall.SYS_KILL, Args: [6]uint64{uint64(p.pid), uint64(e.Signal())}})
}

// endBy makes the last call of a process. Signals that it stops for are those by which it
// ends.
func (p *process) endBy(call tracee.Call) error {
	if err := launch(p.pid, p.main, []tracee.Call{call}, nil); err != nil {
		return err
	}
	for {
		err := p.awaitStop(p.main)
		var ended *endedError
		if errors.As(err, &ended) && ended.tid == p.pid {
			return nil
		}
		if err != nil {
			return err
		}
		signal := 0
		if s := p.main.status; s.Event() == 0 && !s.SyscallStop() {
			signal = s.Signal()
		}
		p.main.stopped = false
		if err := kernel.Continue(p.pid, signal); err != nil {
			return err
		}
	}
}

// forget takes away a signal that is pending.
func (p *process) forget(signal int) error {
	if signal == 0 {
		return nil
	}
	b := p.batch()
	for _, handler := range []uint64{ignored, 0} {
		at, err := b.place(encodeAction(&image.Action{Handler: handler}))
		if err != nil {
			return err
		}
		b.add("forget the end of a child", syscall.SYS_RT_SIGACTION, uint64(signal), at, 0, maskBytes)
	}
	_, err := b.run()
	return err
}
