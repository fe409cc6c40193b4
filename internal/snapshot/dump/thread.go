package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Operations of prctl(2).
const (
	prGetDeathSignal   = 2
	prGetDumpable      = 3
	prGetSecureBits    = 27
	prGetTimerSlack    = 30
	prGetSubreaper     = 37
	prGetTIDAddress    = 40
	prGetTHPDisable    = 42
	askPersonality     = 0xffffffff
	sigactionSize      = 32
	stackSize          = 24
	itimerspecSize     = 32
	brk                = syscall.SYS_BRK
	sysTimerGettime    = syscall.SYS_TIMER_GETTIME
	sysTimerGetoverrun = syscall.SYS_TIMER_GETOVERRUN
)

func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func call(number uint64, args ...uint64) tracee.Call {
	c := tracee.Call{Number: number}
	copy(c.Args[:], args)
	return c
}

// threads writes down every thread.
func (c *commit) threads(s *tracee.Session, b *image.Process) error {
	states, err := s.ThreadStates()
	if err != nil {
		return err
	}
	if states[0].TID != b.PID {
		return refused(codeZombie, processSubject(b.PID), "its main thread has ended, other threads have not", noRemedy)
	}
	statuses, restarts := make([]*procfs.Status, len(states)), make([]*image.Restart, len(states))
	for i := range states {
		if restarts[i], err = c.restart(s.Memory(), &states[i]); err != nil {
			return err
		}
		if statuses[i], err = c.status(states[i].TID); err != nil {
			return err
		}
		t, err := thread(&states[i], statuses[i])
		if err != nil {
			return err
		}
		if err := c.filters(&t, b); err != nil {
			return err
		}
		b.Threads = append(b.Threads, t)
	}
	if err := s.BorrowThread(statuses[0]); err != nil {
		return err
	}
	if err := c.main(s, b); err != nil {
		return err
	}
	if err := s.GiveBack(); err != nil {
		return err
	}
	if err := own(s, statuses, b.Threads); err != nil {
		return err
	}
	for i := range b.Threads {
		if t := &b.Threads[i]; t.Slack <= mostSlack {
			t.Restart = restarts[i]
		}
	}
	return nil
}

// thread writes down what can be seen of a thread from outside.
func thread(state *tracee.ThreadState, status *procfs.Status) (image.Thread, error) {
	r := &state.Registers
	t := image.Thread{
		TID: state.TID, Mask: state.Mask, XState: state.XState,
		Registers: image.Registers{
			R15: r.R15, R14: r.R14, R13: r.R13, R12: r.R12, RBP: r.RBP, RBX: r.RBX, R11: r.R11, R10: r.R10, R9: r.R9, R8: r.R8,
			RAX: r.RAX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, OrigRAX: r.OrigRAX, RIP: r.RIP, CS: r.CS, Flags: r.Flags,
			RSP: r.RSP, SS: r.SS, FSBase: r.FSBase, GSBase: r.GSBase, DS: r.DS, ES: r.ES, FS: r.FS, GS: r.GS,
		},
	}
	if q := state.Rseq; q.Pointer != 0 {
		t.Rseq = &image.Rseq{Address: q.Pointer, Size: q.Size, Signature: q.Signature, Flags: q.Flags}
	}
	t.Name = status.Name
	signals, err := kernel.PendingSignals(t.TID, false)
	if err != nil {
		return t, err
	}
	t.Pending = pending(signals)
	if t.Robust.Head, t.Robust.Length, err = kernel.RobustList(t.TID); err != nil {
		return t, err
	}
	if t.Affinity, err = kernel.Affinity(t.TID); err != nil {
		return t, err
	}
	a, err := kernel.ThreadAttributes(t.TID)
	if err != nil {
		return t, err
	}
	t.Scheduler = image.Scheduler{Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority,
		Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period}
	return t, nil
}

// status returns the status of a thread, which was read while all threads were stopped,
// or is now.
func (c *commit) status(tid int) (*procfs.Status, error) {
	if status, ok := c.statuses[tid]; ok {
		return &status, nil
	}
	status, err := c.Process.ThreadStatus(tid)
	return &status, err
}

func pending(signals [][kernel.SiginfoSize]byte) (all []image.Signal) {
	for i := range signals {
		all = append(all, image.Signal(signals[i][:]))
	}
	return all
}

// own asks the threads for what they alone can tell.
func own(s *tracee.Session, statuses []*procfs.Status, threads []image.Thread) error {
	const tidAt, size = stackSize, stackSize + 8
	answers, err := s.AskEach(statuses, size, func(at uint64) []tracee.Call {
		return []tracee.Call{
			call(syscall.SYS_SIGALTSTACK, 0, at),
			call(syscall.SYS_PRCTL, prGetTIDAddress, at+tidAt),
			call(syscall.SYS_PRCTL, prGetTimerSlack),
			call(syscall.SYS_PERSONALITY, askPersonality),
		}
	})
	if err != nil {
		return err
	}
	for n, a := range answers {
		t, data := &threads[n], a.Data
		for i, what := range []string{"alternate stack", "cleared word (PR_GET_TID_ADDRESS)"} {
			if err := (tracee.Call{}).Err(a.Results[i]); err != nil {
				return fmt.Errorf("read %s of thread %d: %w", what, t.TID, err)
			}
		}
		t.AltStack = image.AltStack{Address: word(data), Flags: uint32(word(data[8:])) &^ onStack, Size: word(data[16:])}
		t.ClearTID = word(data[tidAt:])
		t.Slack = time.Duration(a.Results[2])
		t.Persona = uint32(a.Results[3])
	}
	return nil
}

// onStack is SS_ONSTACK: the kernel sees it by the stack pointer.
const onStack = 1

// process writes down what can be seen of the process from outside. It is looked at
// anew: between Look and the stop it may have had a child, or taken a filter.
func (c *commit) process() (image.Process, error) {
	stat, err := c.Process.Stat()
	if err != nil {
		return image.Process{}, err
	}
	status, err := c.Process.Status()
	if err != nil {
		return image.Process{}, err
	}
	now := &member{Process: c.Process, parent: c.parent, children: c.children, options: c.options}
	if err := now.lookAtProcess(stat, status); err != nil {
		return image.Process{}, err
	}
	c.statuses = now.statuses
	if len(now.refusals) > 0 {
		return image.Process{}, joined(now.refusals)
	}
	signals, err := kernel.PendingSignals(now.base.PID, true)
	now.base.Pending = pending(signals)
	return now.base, err
}

// main asks the main thread, which is borrowed, for what belongs to the process.
func (c *commit) main(s *tracee.Session, b *image.Process) error {
	const (
		intervals   = 3
		subreaperAt = intervals * itimerspecSize
		deathAt     = subreaperAt + 8
		size        = deathAt + 8
	)
	data, results, err := s.Ask(size, func(at uint64) []tracee.Call {
		calls := []tracee.Call{
			call(syscall.SYS_PRCTL, prGetDumpable), call(syscall.SYS_PRCTL, prGetSubreaper, at+subreaperAt),
			call(syscall.SYS_PRCTL, prGetTHPDisable), call(brk, 0),
			call(syscall.SYS_PRCTL, prGetDeathSignal, at+deathAt), call(syscall.SYS_PRCTL, prGetSecureBits),
		}
		for i := range uint64(intervals) {
			calls = append(calls, call(syscall.SYS_GETITIMER, i, at+i*itimerspecSize))
		}
		return calls
	})
	if err != nil {
		return err
	}
	b.Dumpable = int(results[0])
	if err := (tracee.Call{}).Err(results[4]); err != nil {
		return fmt.Errorf("read parent-death signal of process %d: %w", b.PID, err)
	}
	b.ChildSubreaper = word(data[subreaperAt:]) != 0
	b.ParentDeath = int(uint32(word(data[deathAt:])))
	b.Credentials.SecureBits = uint32(results[5])
	b.NoTHP = results[2] == 1
	b.Layout.Break = results[3]
	for i := range b.Intervals {
		at := data[i*itimerspecSize:]
		micro := func(at []byte) time.Duration {
			return time.Duration(word(at))*time.Second + time.Duration(word(at[8:]))*time.Microsecond
		}
		b.Intervals[i] = image.Interval{Every: micro(at), Left: micro(at[16:])}
	}
	if err := c.keys(s, b); err != nil {
		return err
	}
	if err := c.actions(s, b); err != nil {
		return err
	}
	return c.timers(s, b)
}

// actions reads what the program does with each signal.
func (c *commit) actions(s *tracee.Session, b *image.Process) error {
	const signals = 64
	batch, room := s.MaxAsk()
	batch = min(batch, room/sigactionSize)
	for first := 1; first <= signals; first += batch {
		last := min(first+batch-1, signals)
		data, results, err := s.Ask((last-first+1)*sigactionSize, func(at uint64) (calls []tracee.Call) {
			for n := first; n <= last; n++ {
				calls = append(calls, call(syscall.SYS_RT_SIGACTION, uint64(n), 0, at+uint64(n-first)*sigactionSize, 8))
			}
			return calls
		})
		if err != nil {
			return err
		}
		for i, result := range results {
			if err := (tracee.Call{Number: syscall.SYS_RT_SIGACTION}).Err(result); err != nil {
				return fmt.Errorf("read action of signal %d: %w", first+i, err)
			}
			at := data[i*sigactionSize:]
			b.Actions = append(b.Actions, image.Action{Handler: word(at), Flags: word(at[8:]), Restorer: word(at[16:]), Mask: word(at[24:])})
		}
	}
	return nil
}

// timers reads the timers of timer_create(2).
func (c *commit) timers(s *tracee.Session, b *image.Process) error {
	all, err := c.Process.Timers()
	if errors.Is(err, fs.ErrNotExist) {
		return refused(codeTimers, processSubject(b.PID), "this kernel does not tell of timers (CONFIG_CHECKPOINT_RESTORE)", "use a kernel with it")
	}
	if err != nil {
		return err
	}
	for _, t := range all {
		data, results, err := s.Ask(itimerspecSize, func(at uint64) []tracee.Call {
			return []tracee.Call{call(sysTimerGettime, uint64(t.ID), at), call(sysTimerGetoverrun, uint64(t.ID))}
		})
		if err != nil {
			return err
		}
		for _, result := range results {
			if err := (tracee.Call{Number: sysTimerGettime}).Err(result); err != nil {
				return fmt.Errorf("read timer %d: %w", t.ID, err)
			}
		}
		nano := func(at []byte) time.Duration {
			return time.Duration(word(at))*time.Second + time.Duration(word(at[8:]))
		}
		b.Timers = append(b.Timers, image.Timer{ID: t.ID, Clock: t.Clock, Notify: t.Notify, Signal: t.Signal, Thread: t.Thread,
			Value: t.Value, Overrun: int(results[1]), Time: image.Interval{Every: nano(data), Left: nano(data[16:])}})
	}
	return nil
}
