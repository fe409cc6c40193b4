package restore

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

const (
	cloneThread = syscall.CLONE_VM | syscall.CLONE_FS | syscall.CLONE_FILES | syscall.CLONE_SIGHAND |
		syscall.CLONE_THREAD | syscall.CLONE_SYSVSEM | syscall.CLONE_PTRACE
	nameBytes    = 16 // with the NUL
	stackOn      = 1  // SS_ONSTACK: the kernel works it out
	stackDisable = 2
)

// makeThreads makes all threads but the main one. Each stops before its first
// instruction.
func (p *process) makeThreads(threads []image.Thread) error {
	made := make([]bool, len(threads))
	if err := p.untilFree(func() (bool, error) { return p.tryThreads(threads, made) }); err != nil {
		return err
	}
	for i := range threads {
		k := p.task(threads[i].TID)
		if err := p.awaitStop(k); err != nil {
			return err
		}
		if err := k.prepare(); err != nil {
			return err
		}
		k.arena, k.base.RSP = p.main.arena, p.main.arena.end
	}
	return nil
}

// tryThreads makes the threads that are not made yet. Not done, it refuses the first
// whose id is taken.
func (p *process) tryThreads(threads []image.Thread, made []bool) (done bool, err error) {
	b := p.batch()
	var taken error
	var tried []int
	run := func() error {
		results, err := b.run()
		for i, result := range results {
			t := &threads[tried[i]]
			switch errno := errnoOf(result); errno {
			case 0:
				made[tried[i]] = true
			case syscall.EEXIST:
				taken = pidTaken(t.TID, "a process, thread, group or session has it")
			default:
				return &StepError{PID: p.pid, TID: p.pid, What: fmt.Sprintf("make thread %d", t.TID), Errno: errno}
			}
		}
		tried = tried[:0]
		return err
	}
	for i := range threads {
		t := &threads[i]
		if made[i] {
			continue
		}
		flags := uint64(cloneThread)
		if t.ClearTID != 0 {
			flags |= syscall.CLONE_CHILD_CLEARTID
		}
		at, err := p.Place(make([]byte, cloneArgsBytes+8))
		if err != nil {
			return true, err
		}
		copy(p.placed[at-p.main.arena.data:], cloneArgs(at, flags, t.ClearTID, t.TID, 0))
		b.try(sysClone3, at, cloneArgsBytes)
		tried = append(tried, i)
		if len(tried) == arenaEntries {
			if err := run(); err != nil {
				return true, err
			}
		}
	}
	if err := run(); err != nil {
		return true, err
	}
	return taken == nil, taken
}

// equipment adds the calls by which a thread sets what only itself can set, and has not
// inherited. With shared it takes on the signals that were pending for the process.
func (b *batch) equipment(t *image.Thread, c *image.Credentials, has *inherited, shared []image.Signal) error {
	p := b.process
	name := make([]byte, nameBytes)
	copy(name[:nameBytes-1], t.Name)
	at, err := b.place(name)
	if err != nil {
		return err
	}
	b.add("set the name", syscall.SYS_PRCTL, prctlName, at)
	if t.TID == p.pid {
		b.add("set the address of the thread id", syscall.SYS_SET_TID_ADDRESS, t.ClearTID)
	}
	if a := t.AltStack; a.Flags&stackDisable == 0 && a.Size > 0 {
		stack := binary.LittleEndian.AppendUint64(nil, a.Address)
		stack = binary.LittleEndian.AppendUint64(stack, uint64(a.Flags&^stackOn))
		at, err := b.place(binary.LittleEndian.AppendUint64(stack, a.Size))
		if err != nil {
			return err
		}
		b.addAt("set the alternate stack at", a.Address, syscall.SYS_SIGALTSTACK, at, 0)
	}
	if r := t.Robust; r.Head != 0 {
		b.addAt("set the robust list at", r.Head, syscall.SYS_SET_ROBUST_LIST, r.Head, r.Length)
	}
	if r := t.Rseq; r != nil {
		b.addAt("register restartable sequences at", r.Address, sysRseq, r.Address, uint64(r.Size), uint64(r.Flags), uint64(r.Signature))
	}
	if t.Persona != has.persona {
		b.add("set the personality", syscall.SYS_PERSONALITY, uint64(t.Persona))
	}
	if err := b.addScheduling(t, has); err != nil {
		return err
	}
	if err := b.addPending(p.pid, t.TID, t.Pending, shared); err != nil {
		return err
	}
	if sameCredentials(*c, has.credentials) {
		return nil
	}
	return b.addCredentials(c, &has.credentials)
}

// addScheduling adds the calls by which a thread sets on which CPUs and how it runs.
func (b *batch) addScheduling(t *image.Thread, has *inherited) error {
	if len(t.Affinity) > 0 && !slices.Equal(t.Affinity, has.affinity) {
		var mask []byte
		for _, w := range t.Affinity {
			mask = binary.LittleEndian.AppendUint64(mask, w)
		}
		at, err := b.place(mask)
		if err != nil {
			return err
		}
		b.add("set the CPUs that it may run on", syscall.SYS_SCHED_SETAFFINITY, 0, uint64(len(mask)), at)
	}
	if t.Scheduler != has.scheduler {
		if err := b.addPolicy(&t.Scheduler); err != nil {
			return err
		}
	}
	if t.Slack > 0 && t.Slack != has.slack {
		b.add("set the timer slack", syscall.SYS_PRCTL, prctlSlack, uint64(t.Slack))
	}
	return nil
}

// addPolicy adds the call by which a thread sets how it is scheduled.
func (b *batch) addPolicy(s *image.Scheduler) error {
	a := binary.LittleEndian.AppendUint32(nil, schedAttrBytes) // struct sched_attr
	a = binary.LittleEndian.AppendUint32(a, s.Policy)
	a = binary.LittleEndian.AppendUint64(a, s.Flags)
	a = binary.LittleEndian.AppendUint32(a, uint32(s.Nice))
	a = binary.LittleEndian.AppendUint32(a, s.Priority)
	for _, v := range []uint64{s.Runtime, s.Deadline, s.Period} {
		a = binary.LittleEndian.AppendUint64(a, v)
	}
	at, err := b.place(a)
	if err != nil {
		return err
	}
	b.add("set the scheduling policy", sysSchedSetattr, 0, at, 0)
	return nil
}

const schedAttrBytes = 48

// leaveSection moves a thread that was within a restartable sequence to where it is
// taken up again: registering the sequences anew forgets it. Its memory is there.
func (p *process) leaveSection(t *image.Thread, regs *kernel.Registers) error {
	if t.Rseq == nil {
		return nil
	}
	var word [8]byte
	if err := p.Read(t.Rseq.Address+rseqSectionOffset, word[:]); err != nil {
		return err
	}
	at := binary.LittleEndian.Uint64(word[:])
	if at == 0 {
		return nil
	}
	var section [32]byte // struct rseq_cs: version, flags, start, length, abort
	if err := p.Read(at, section[:]); err != nil {
		return nil // what describes it is gone: it was left long ago
	}
	start, length := binary.LittleEndian.Uint64(section[8:]), binary.LittleEndian.Uint64(section[16:])
	if regs.RIP-start < length {
		regs.RIP = binary.LittleEndian.Uint64(section[24:])
	}
	return nil
}

const rseqSectionOffset = 8 // of rseq_cs in struct rseq

// registersOf are the registers of the image for ptrace.
func registersOf(r *image.Registers) kernel.Registers {
	return kernel.Registers{
		R15: r.R15, R14: r.R14, R13: r.R13, R12: r.R12, RBP: r.RBP, RBX: r.RBX, R11: r.R11, R10: r.R10, R9: r.R9, R8: r.R8,
		RAX: r.RAX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, OrigRAX: r.OrigRAX, RIP: r.RIP, CS: r.CS, Flags: r.Flags,
		RSP: r.RSP, SS: r.SS, FSBase: r.FSBase, GSBase: r.GSBase, DS: r.DS, ES: r.ES, FS: r.FS, GS: r.GS,
	}
}
