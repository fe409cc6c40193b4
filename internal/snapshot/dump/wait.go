package dump

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// waits are threads that wait in a system call for at most a span of time, and what can
// be known of the end of it.
//
// A nanosleep that is interrupted writes the time that is left to its second argument.
// Where it has none, as in poll and futex, only the list of all timers tells when one
// ends, and not whose it is. A thread's own is among those that are gone when it is
// stopped, if it waited when the list was read and ever since: it did if it is in the
// call by restart_syscall, which no other call can look like, and has not waited anew.
// Of several timers that could be a thread's the last is taken. It so never waits for
// less than its time, and for more only where somebody else's wait has ended just then.
type waits struct {
	resumed map[int]resumed // threads in restart_syscall
	timers  []procfs.Wakeup
	stopped time.Duration // when all were, on CLOCK_MONOTONIC
	gone    []procfs.Wakeup
}

// A resumed is a thread in restart_syscall: how often it has waited by then, and the
// number of the call that it goes on with, or 0.
type resumed struct{ waits, number uint64 }

// Waits that are shorter begin anew: they are over soon.
const shortWait = 20 * time.Millisecond

const (
	sysRestart         = syscall.SYS_RESTART_SYSCALL
	futexWait          = 0 // FUTEX_WAIT, whose time is relative
	futexFlags         = 128
	clockRealtime      = 0 // a relative time by it is one by the monotonic clock
	clockMonotonic     = 1
	returnPatience     = 50 * time.Millisecond
	timersRead         = 3
	mostSlack          = time.Second // more than the kernel adds to a limit, but for threads that ask for it
	nanosecondsInMilli = int64(time.Millisecond)
)

// timespec reads a struct timespec of the program: a span of time.
func timespec(m *procfs.Memory, address uint64) (time.Duration, bool) {
	var b [16]byte
	if _, err := m.ReadAt(b[:], int64(address)); err != nil {
		return 0, false
	}
	seconds, nano := word(b[:]), word(b[8:])
	if seconds >= math.MaxInt64/uint64(time.Second) || nano >= uint64(time.Second) {
		return 0, false
	}
	return time.Duration(seconds)*time.Second + time.Duration(nano), true
}

// limit returns the span for which a system call waits at most, if it has one and does
// not tell what is left of it by itself. remaining is where it tells, if anywhere.
func limit(m *procfs.Memory, number uint64, args [6]uint64) (whole time.Duration, remaining uint64, ok bool) {
	switch number {
	case syscall.SYS_NANOSLEEP:
		whole, ok = timespec(m, args[0])
		return whole, args[1], ok
	case syscall.SYS_CLOCK_NANOSLEEP:
		if args[0] != clockRealtime && args[0] != clockMonotonic || args[1] != 0 {
			return 0, 0, false
		}
		whole, ok = timespec(m, args[2])
		return whole, args[3], ok
	case syscall.SYS_POLL:
		milli := int32(args[2])
		return time.Duration(int64(milli) * nanosecondsInMilli), 0, milli > 0
	case syscall.SYS_FUTEX:
		if args[1]&^futexFlags != futexWait || args[3] == 0 {
			return 0, 0, false
		}
		whole, ok = timespec(m, args[3])
		return whole, 0, ok
	}
	return 0, 0, false
}

// lookAtWaits looks for threads whose time can't be read once they are stopped, and reads
// the list of timers. Threads that were not interrupted in their wait before are stopped
// for a moment: the kernel then tells them apart from those that begin another wait.
func (c *commit) lookAtWaits(ctx context.Context) (err error) {
	c.waits = waits{}
	memory, err := c.Process.OpenMemory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	restarted, fresh, found, err := c.timed(memory)
	if err != nil || !found {
		return err
	}
	if fresh {
		if _, err := tracee.Do(ctx, c.Process, tracee.Options{}, (*tracee.Session).StopAll); err != nil {
			return err
		}
		c.awaitResumed(restarted)
	}
	tids, err := c.Process.Threads()
	if err != nil {
		return err
	}
	c.waits.resumed = make(map[int]resumed)
	for _, tid := range tids {
		if call, err := c.Process.Syscall(tid); err != nil || call.Number != sysRestart {
			continue
		}
		if c.waits.resumed[tid], err = c.lookAtResumed(tid); err != nil {
			delete(c.waits.resumed, tid) // it has ended
		}
	}
	for range timersRead {
		timers, err := procfs.Wakeups()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			c.waits.timers = nil // nothing can be known of what is left
			return nil
		}
		if err != nil {
			return err
		}
		c.waits.timers = append(c.waits.timers, timers...)
	}
	return nil
}

// lookAtResumed looks at a thread in restart_syscall. What it goes on with shows in the
// kernel's function in which it waits.
func (c *commit) lookAtResumed(tid int) (r resumed, err error) {
	before, err := c.Process.ThreadStatus(tid)
	if err != nil {
		return r, err
	}
	call, err := c.Process.Syscall(tid)
	if err != nil {
		return r, err
	}
	channel, err := c.Process.WaitChannel(tid)
	if err != nil {
		return r, err
	}
	after, err := c.Process.ThreadStatus(tid)
	if err != nil {
		return r, err
	}
	if r.waits = after.Waits; before.Waits == after.Waits && call.Number == sysRestart {
		r.number = waitsIn(channel)
	}
	return r, nil
}

// waitsIn returns the system call of which a thread waits in a function of the kernel, if
// it is one that restart_syscall goes on with; 0 is not known. That of nanosleep has no
// name there.
func waitsIn(channel string) uint64 {
	switch {
	case strings.HasPrefix(channel, "futex_"):
		return syscall.SYS_FUTEX
	case strings.HasPrefix(channel, "poll_schedule_timeout"):
		return syscall.SYS_POLL
	}
	return 0
}

// interrupted is tracee.Options.Interrupted, by what lookAtWaits saw: the thread has not
// waited for anything since, but for its stop.
func (c *commit) interrupted(tid int) uint64 {
	r, known := c.waits.resumed[tid]
	if !known {
		return 0
	}
	status, err := c.status(tid)
	if err != nil || status.Waits != r.waits+1 {
		return 0
	}
	return r.number
}

// timed returns the threads that a stop lets go on by restart_syscall, whether any of them
// waits for a span of time and was not interrupted since, and whether any does at all.
func (c *commit) timed(memory *procfs.Memory) (restarted []int, fresh, found bool, err error) {
	tids, err := c.Process.Threads()
	if err != nil {
		return nil, false, false, err
	}
	type wait struct{ restarts, fresh, resumed bool }
	waits := make([]wait, len(tids))
	err = procfs.Abreast(len(tids), func(i int) error {
		call, err := c.Process.Syscall(tids[i])
		if err != nil || !call.InCall {
			return nil // it runs, or has ended
		}
		whole, remaining, ok := limit(memory, uint64(call.Number), call.Args)
		waits[i] = wait{restarts(call.Number), ok && remaining == 0 && whole >= shortWait, call.Number == sysRestart}
		return nil
	})
	for i, w := range waits {
		if w.restarts {
			restarted = append(restarted, tids[i])
		}
		fresh = fresh || w.fresh
		found = found || w.fresh || w.resumed
	}
	return restarted, fresh, found, err
}

// restarts reports whether restart_syscall goes on with a system call that is interrupted,
// as it does with some whose end is a point in time, too.
func restarts(number int) bool {
	switch number {
	case syscall.SYS_NANOSLEEP, syscall.SYS_CLOCK_NANOSLEEP, syscall.SYS_POLL, syscall.SYS_FUTEX, sysRestart:
		return true
	}
	return false
}

// awaitResumed waits until threads that were stopped wait again.
func (c *commit) awaitResumed(tids []int) {
	end := time.Now().Add(returnPatience)
	for _, tid := range tids {
		for time.Now().Before(end) {
			call, err := c.Process.Syscall(tid)
			if err != nil || !call.Running {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
}

// lookAtStopped reads the list of timers again, when all threads are stopped.
func (c *commit) lookAtStopped() error {
	w := &c.waits
	if len(w.timers) == 0 {
		return nil
	}
	left, err := procfs.Wakeups()
	if err != nil {
		return err
	}
	now, _, err := kernel.SinceBoot()
	if err != nil {
		return err
	}
	w.stopped = time.Duration(now)
	there := make(map[procfs.Wakeup]bool, len(left))
	for _, t := range left {
		there[t] = true
	}
	for _, t := range w.timers {
		if !there[t] {
			w.gone = append(w.gone, t)
		}
	}
	return nil
}

// restart tells how a thread goes on with the wait that its stop has interrupted, where
// the time that is left of it is known; nil lets it begin anew. The thread has not been
// borrowed yet.
func (c *commit) restart(m *procfs.Memory, state *tracee.ThreadState) (*image.Restart, error) {
	if !state.Timed {
		return nil, nil
	}
	r := &state.Registers
	to := &image.Restart{Number: r.RAX, Args: [6]uint64{r.RDI, r.RSI, r.RDX, r.R10, r.R8, r.R9}}
	whole, remaining, ok := limit(m, to.Number, to.Args)
	if !ok {
		return nil, nil
	}
	if remaining != 0 {
		if to.Left, ok = timespec(m, remaining); !ok {
			return nil, nil
		}
		return to, nil
	}
	before, known := c.waits.resumed[state.TID]
	if !known || !state.Resumed {
		return nil, nil
	}
	status, err := c.status(state.TID)
	if err != nil {
		return nil, err
	}
	if status.Waits != before.waits+1 { // its stop is the one
		return nil, nil
	}
	last, least := time.Duration(0), c.waits.stopped
	for _, t := range c.waits.gone {
		if t.At <= least+whole+mostSlack {
			last = max(last, t.At)
		}
	}
	if last == 0 {
		return nil, nil
	}
	to.Left = min(max(last-least, 0), whole)
	return to, nil
}
