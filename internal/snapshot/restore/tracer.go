package restore

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A tracer holds the starter and the process that is built, from one locked OS thread.
type tracer struct {
	ctx      context.Context
	waiter   *kernel.Waiter
	tasks    map[int]*task
	patience time.Duration // how long a task may take to stop

	connections *descriptor.Returning // that are usable when it is left
}

// A task is one thread that is held.
type task struct {
	tid     int
	stopped bool
	status  kernel.WaitStatus // why it has stopped, or how it ended
	base    kernel.Registers  // with which calls are made
	arena   arena

	suspended bool // somebody sent SIGSTOP meanwhile: it is to be stopped when it is left
}

const (
	tick           = 100 * time.Millisecond
	defaultPatient = 10 * time.Second
	outsideCall    = ^uint64(0)

	// allButTrap are the signals that are blocked while a process is built: what others
	// send waits until it is done. SIGTRAP ends the interpreter.
	allButTrap = ^uint64(1 << (syscall.SIGTRAP - 1))
	allSignals = ^uint64(0)
)

// newTracer makes the calling OS thread, which is locked, a tracer.
func newTracer(ctx context.Context) (*tracer, error) {
	waiter, err := kernel.NewWaiter()
	if err != nil {
		return nil, err
	}
	if err := waiter.Tick(tick); err != nil {
		return nil, errors.Join(err, waiter.Close())
	}
	return &tracer{ctx: ctx, waiter: waiter, tasks: make(map[int]*task), patience: defaultPatient}, nil
}

// task returns the task of an id, which may be about to be born.
func (t *tracer) task(tid int) *task {
	k := t.tasks[tid]
	if k == nil {
		k = &task{tid: tid}
		t.tasks[tid] = k
	}
	return k
}

// An endedError is that a task ended which was to work.
type endedError struct {
	tid    int
	status kernel.WaitStatus
}

func (e *endedError) Error() string {
	status := syscall.WaitStatus(e.status)
	if status.Signaled() {
		return fmt.Sprintf("process %d was killed by %v while it was built", e.tid, status.Signal())
	}
	return fmt.Sprintf("process %d ended with exit code %d while it was built", e.tid, status.ExitStatus())
}

// await waits until done holds of what the tasks do.
func (t *tracer) await(done func() bool) error {
	deadline := time.Now().Add(t.patience)
	for !done() {
		ended, err := t.wait()
		switch {
		case errors.Is(err, kernel.ErrTimeout):
			if err := t.ctx.Err(); err != nil {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("wait for the process that is built for %v: %w", t.patience, kernel.ErrTimeout)
			}
		case err != nil:
			return err
		case ended != nil:
			return &endedError{ended.tid, ended.status}
		}
	}
	return nil
}

// wait takes the next thing that a task does.
func (t *tracer) wait() (ended *task, err error) {
	tid, status, err := t.waiter.WaitYielding(time.Now().Add(tick))
	if err != nil {
		return nil, err
	}
	k := t.task(tid)
	k.status = status
	if status.Exited() {
		delete(t.tasks, tid)
		return k, nil
	}
	k.stopped = status.Stopped()
	return nil, nil
}

func (t *tracer) awaitStop(k *task) error {
	return t.await(func() bool { return k.stopped })
}

// prepare makes a task that has just stopped ready for calls.
func (k *task) prepare() error {
	if err := kernel.GetRegisters(k.tid, &k.base); err != nil {
		return err
	}
	k.base.OrigRAX = outsideCall
	return kernel.SetSignalMask(k.tid, allButTrap)
}

// resume lets a stopped task go on, until it makes the stop that is wanted.
func (t *tracer) resume(k *task, how func(tid, signal int) error, wanted func(kernel.WaitStatus) bool) error {
	if err := release(k, how); err != nil {
		return err
	}
	return t.arrive(k, how, wanted)
}

// release lets a stopped task go on.
func release(k *task, how func(tid, signal int) error) error {
	k.stopped = false
	return how(k.tid, 0)
}

// arrive waits until a task that goes on makes the stop that is wanted.
func (t *tracer) arrive(k *task, how func(tid, signal int) error, wanted func(kernel.WaitStatus) bool) error {
	for {
		if err := t.awaitStop(k); err != nil {
			return err
		}
		switch s := k.status; {
		case wanted(s):
			return nil
		case s.Event() == kernel.EventStop:
		case s.Event() == 0 && s.Signal() == int(syscall.SIGSTOP):
			k.suspended = true
		default:
			return fmt.Errorf("thread %d stopped with signal %d in the middle of a system call", k.tid, s.Signal())
		}
		if err := release(k, how); err != nil {
			return err
		}
	}
}

// trapped is the stop that ends the interpreter.
func trapped(s kernel.WaitStatus) bool {
	return s.Event() == 0 && !s.SyscallStop() && s.Signal() == int(syscall.SIGTRAP)
}

// run makes calls in a stopped task by the interpreter of its arena, and returns their
// results. pid is its process; data is put at the beginning of the arena's.
func (t *tracer) run(pid int, k *task, calls []tracee.Call, data []byte) ([]uint64, error) {
	results := make([]uint64, 0, len(calls))
	for len(calls) > 0 {
		n := min(len(calls), k.arena.entries)
		if err := launch(pid, k, calls[:n], data); err != nil {
			return nil, err
		}
		var err error
		if results, err = t.land(pid, k, n, results); err != nil {
			return nil, err
		}
		calls, data = calls[n:], nil
	}
	return results, nil
}

// launch lets a stopped task begin calls, as many as fit the table of its arena.
func launch(pid int, k *task, calls []tracee.Call, data []byte) error {
	text, ranges := k.arena.load(nil, nil, calls, data)
	if err := kernel.WriteMemory(pid, text, ranges); err != nil {
		return err
	}
	return k.begin(len(calls))
}

// load appends what is to be written so that calls can be made in an arena, and where.
func (g *arena) load(text []byte, ranges []kernel.RemoteRange, calls []tracee.Call, data []byte) ([]byte, []kernel.RemoteRange) {
	ranges = append(ranges, kernel.RemoteRange{Address: g.table, Length: uint64(len(calls) * entryBytes)})
	if len(data) > 0 {
		ranges = append(ranges, kernel.RemoteRange{Address: g.data, Length: uint64(len(data))})
	}
	return append(encodeCalls(text, calls), data...), ranges
}

// begin lets a stopped task make the first n calls of its arena's table.
func (k *task) begin(n int) error {
	regs, g := k.base, &k.arena
	regs.RIP, regs.RBX, regs.R12 = g.interpreter, g.table, g.table+uint64(n*entryBytes)
	if err := kernel.SetRegisters(k.tid, &regs); err != nil {
		return err
	}
	return release(k, kernel.Continue)
}

// land waits until a task has made n calls that it was launched with, and appends their
// results.
func (t *tracer) land(pid int, k *task, n int, results []uint64) ([]uint64, error) {
	if err := t.arrive(k, kernel.Continue, trapped); err != nil {
		return nil, err
	}
	table := make([]byte, n*entryBytes)
	if err := kernel.ReadMemory(pid, table, []kernel.RemoteRange{{Address: k.arena.table, Length: uint64(len(table))}}); err != nil {
		return nil, err
	}
	return appendResults(results, table), nil
}

// step makes one call in a stopped task by any `syscall` instruction.
func (t *tracer) step(k *task, gadget uint64, call tracee.Call) (uint64, error) {
	regs := k.base
	regs.RIP, regs.RAX = gadget, call.Number
	regs.RDI, regs.RSI, regs.RDX = call.Args[0], call.Args[1], call.Args[2]
	regs.R10, regs.R8, regs.R9 = call.Args[3], call.Args[4], call.Args[5]
	if err := kernel.SetRegisters(k.tid, &regs); err != nil {
		return 0, err
	}
	for range 2 {
		if err := t.resume(k, kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
			return 0, err
		}
	}
	if err := kernel.GetRegisters(k.tid, &regs); err != nil {
		return 0, err
	}
	return regs.RAX, call.Err(regs.RAX)
}

// settle brings stopped tasks into a stop from which they go on with the registers that
// they have, also should the tracer die: a signal that a task has stopped for would then
// be delivered. They execute nothing.
func (t *tracer) settle(tasks []*task) error {
	for _, k := range tasks {
		if err := kernel.Interrupt(k.tid); err != nil {
			return err
		}
	}
	for _, k := range tasks {
		k.stopped = false
		if err := kernel.Continue(k.tid, 0); err != nil {
			return err
		}
	}
	for _, k := range tasks {
		if err := t.awaitStop(k); err != nil {
			return err
		}
		if k.status.Event() != kernel.EventStop {
			return fmt.Errorf("thread %d stopped with signal %d instead of at rest", k.tid, k.status.Signal())
		}
	}
	return nil
}

// kill ends the process of a task and all of its threads.
func (t *tracer) kill(pid int, tids ...int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	tids = append(tids, pid)
	alive := func() bool {
		for _, tid := range tids {
			if t.tasks[tid] != nil {
				return true
			}
		}
		return false
	}
	for deadline := time.Now().Add(defaultPatient); alive(); {
		if _, err := t.wait(); errors.Is(err, syscall.ECHILD) {
			return nil
		} else if errors.Is(err, kernel.ErrTimeout) && time.Now().Before(deadline) {
			continue
		} else if err != nil {
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		}
	}
	return nil
}
