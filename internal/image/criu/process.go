package criu

import (
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
)

const (
	imageVersion = 2 // CRTOOLS_IMAGES_V1_1
	machineX86   = 1
	taskAlive    = 1
	taskDead     = 2
)

// inventory adds what says that the directory is an image, and the processes.
func (x *export) inventory() {
	x.add("inventory.img", magicInventory, inventory{Version: imageVersion, FdinfoPerID: true, NamespacesID: true, RootIDs: numbers(1)})
	var all []any
	for i := range x.img.Processes {
		p := &x.img.Processes[i]
		e := pstree{PID: uint32(p.PID), Parent: uint32(p.Parent), Group: uint32(p.Group), Session: uint32(p.Session)}
		if i == 0 {
			e.Parent = 0
		}
		for _, t := range p.Threads {
			e.Threads = append(e.Threads, uint32(t.TID))
		}
		all = append(all, e)
	}
	for i := range x.img.Ended {
		e := &x.img.Ended[i]
		all = append(all, pstree{PID: uint32(e.PID), Parent: uint32(e.Parent), Group: uint32(e.Group), Session: uint32(e.Session), Threads: []uint32{uint32(e.PID)}})
		x.add(fmt.Sprintf("core-%d.img", e.PID), magicCore, core{Machine: machineX86, Task: &task{State: taskDead, ExitCode: e.Status, Name: e.Program}})
	}
	x.add("pstree.img", magicPstree, all...)
}

// numbers are what a process has: tables of its own, and the namespaces that all have.
func numbers(own uint32) ids {
	return ids{Memory: own, Files: own, FS: own, Handlers: own, PID: 1, Network: namespaceNetwork, IPC: 3, UTS: 4, Time: 5, Mounts: 6, User: 7, CGroup: 8}
}

const namespaceNetwork = 2

// tables is the number of a process's tables: that of whoever made the image has 1.
func tables(i int) uint32 { return uint32(i) + 2 }

// process adds all that belongs to a process.
func (x *export) process(i int) {
	p := &x.img.Processes[i]
	if p.Root != "" && p.Root != "/" {
		x.refuse(processSubject(p), "it has a root directory of its own, "+p.Root, noRemedy)
	}
	x.add(fmt.Sprintf("ids-%d.img", p.PID), magicIDs, numbers(tables(i)))
	x.add(fmt.Sprintf("fs-%d.img", p.PID), magicFS, directories{
		Current: x.directory(p.Directory), Root: x.directory("/"), Umask: p.Umask})
	for n := range p.Threads {
		x.thread(p, n)
	}
	x.memory(p)
	x.descriptors(i)
}

// thread adds thread n of a process; the first has what belongs to the process.
func (x *export) thread(p *image.Process, n int) {
	t := &p.Threads[n]
	where := fmt.Sprintf("thread %d", t.TID)
	state, err := extended(t.XState, x.img.Machine.XFeatures)
	if err != nil {
		x.refuse(where, err.Error(), noRemedy)
	}
	if t.Scheduler.Policy == policyDeadline {
		x.refuse(where, "it is scheduled by deadlines (SCHED_DEADLINE)", "give it another policy: chrt")
	}
	if t.Restart != nil {
		x.note("%s: it waits for its whole time again, of which %v were left", where, t.Restart.Left.Round(time.Millisecond))
	}
	r := &t.Registers
	e := core{
		Machine: machineX86,
		X86: &threadX86{
			ClearTID: t.ClearTID,
			Registers: registers{R15: r.R15, R14: r.R14, R13: r.R13, R12: r.R12, BP: r.RBP, BX: r.RBX, R11: r.R11, R10: r.R10, R9: r.R9, R8: r.R8,
				AX: r.RAX, CX: r.RCX, DX: r.RDX, SI: r.RSI, DI: r.RDI, OrigAX: r.OrigRAX, IP: r.RIP, CS: r.CS, Flags: r.Flags, SP: r.RSP, SS: r.SS,
				FSBase: r.FSBase, GSBase: r.GSBase, DS: r.DS, ES: r.ES, FS: r.FS, GS: r.GS, Compact: 1},
			FPU: state,
			TLS: []userDescriptor{emptySegment(12), emptySegment(13), emptySegment(14)},
		},
		Thread: &threadCore{
			Robust: t.Robust.Head, RobustSize: uint32(t.Robust.Length), Nice: t.Scheduler.Nice, Policy: t.Scheduler.Policy,
			Blocked: t.Mask, AltStack: altStack(t.AltStack), Pending: pending(t.Pending), Rights: rights(p), Name: t.Name,
		},
	}
	if e.Thread.Filter = x.filters(p, t); e.Thread.Filter != nil {
		e.Thread.Seccomp = new(uint32(modeFilter))
	}
	if t.Scheduler.Priority != 0 {
		e.Thread.Priority = &t.Scheduler.Priority
	}
	if t.Rseq != nil {
		e.Thread.Rseq = &rseq{Address: t.Rseq.Address, Size: t.Rseq.Size, Signature: t.Rseq.Signature}
	}
	if n == 0 {
		if p.ParentDeath != 0 {
			e.Thread.DeathSig = new(uint32(p.ParentDeath))
		}
		e.Task = x.task(p)
	}
	x.add(fmt.Sprintf("core-%d.img", t.TID), magicCore, e)
}

const policyDeadline = 6 // SCHED_DEADLINE

// emptySegment is one of the entries of the GDT that set_thread_area(2) sets.
func emptySegment(n uint32) userDescriptor {
	return userDescriptor{Entry: n, ReadExec: true, NotPresent: true}
}

// task is what belongs to the process as a whole.
func (x *export) task(p *image.Process) *task {
	main := &p.Threads[0]
	t := &task{State: taskAlive, Personality: main.Persona, Blocked: main.Mask, Name: main.Name, Subreaper: p.ChildSubreaper, OOMAdjust: new(int32(p.OOMScoreAdjust)),
		Timers:  &timers{Real: microseconds(p.Intervals[0]), Virtual: microseconds(p.Intervals[1]), Profile: microseconds(p.Intervals[2])},
		Limits:  &limits{},
		Pending: new(pending(p.Pending)),
	}
	for _, l := range p.Limits {
		t.Limits.All = append(t.Limits.All, limit(l))
	}
	for i, a := range p.Actions {
		if number := syscall.Signal(i + 1); number != syscall.SIGKILL && number != syscall.SIGSTOP {
			t.Actions = append(t.Actions, action{Handler: a.Handler, Flags: a.Flags, Restorer: a.Restorer, Mask: a.Mask})
		}
	}
	for _, own := range p.Timers {
		e := posixTimer{ID: uint32(own.ID), Clock: uint32(own.Clock), Signal: uint32(own.Signal), Notify: uint32(own.Notify), Value: own.Value, Overrun: uint32(own.Overrun)}
		e.EverySec, e.EveryNsec = split(own.Time.Every)
		e.LeftSec, e.LeftNsec = split(own.Time.Left)
		if own.Thread != 0 {
			e.Thread = new(int32(own.Thread))
		}
		t.Timers.POSIX = append(t.Timers.POSIX, e)
	}
	return t
}

func split(d time.Duration) (seconds, nanoseconds uint64) {
	return uint64(d / time.Second), uint64(d % time.Second)
}

func microseconds(i image.Interval) (to interval) {
	to.EverySec, to.EveryUsec = split(i.Every)
	to.LeftSec, to.LeftUsec = split(i.Left)
	to.EveryUsec /= 1000
	to.LeftUsec /= 1000
	return to
}

func pending(from []image.Signal) (to signals) {
	for _, s := range from {
		to.All = append(to.All, siginfo{Info: s})
	}
	return to
}

// rights are those of the process, which all of its threads have.
func rights(p *image.Process) credentials {
	c := &p.Credentials
	words := func(set uint64) []uint32 { return []uint32{uint32(set), uint32(set >> 32)} }
	to := credentials{
		UID: c.UID[0], EUID: c.UID[1], SUID: c.UID[2], FSUID: c.UID[3], GID: c.GID[0], EGID: c.GID[1], SGID: c.GID[2], FSGID: c.GID[3],
		Inheritable: words(c.Inheritable), Permitted: words(c.Permitted), Effective: words(c.Effective), Bounding: words(c.Bounding),
		SecureBits: c.SecureBits, Groups: c.Groups,
	}
	if p.NoNewPrivileges {
		to.NoNew = new(uint32(1))
	}
	if c.Ambient != 0 {
		to.Ambient = words(c.Ambient)
	}
	return to
}
