package restore

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A batch is system calls that are made together, each with what it is for.
type batch struct {
	process *process
	task    *task
	calls   []tracee.Call
	aims    []aim
}

// An aim says what a call is for: "map memory at" 0x7f….
type aim struct {
	what    string
	at      uint64 // an address or number that belongs to it, if it has one
	hasAt   bool
	mayFail bool
}

func (p *process) batch() *batch { return &batch{process: p, task: p.main} }

// batchIn is a batch of calls of one thread.
func (p *process) batchIn(k *task) *batch { return &batch{process: p, task: k} }

// add adds a call that must not fail.
func (b *batch) add(what string, number uint64, args ...uint64) {
	b.append(aim{what: what}, number, args)
}

// addAt is add with an address for the message.
func (b *batch) addAt(what string, at uint64, number uint64, args ...uint64) {
	b.append(aim{what: what, at: at, hasAt: true}, number, args)
}

// try adds a call that may fail.
func (b *batch) try(number uint64, args ...uint64) { b.append(aim{mayFail: true}, number, args) }

func (b *batch) append(a aim, number uint64, args []uint64) {
	c := tracee.Call{Number: number}
	copy(c.Args[:], args)
	b.calls = append(b.calls, c)
	b.aims = append(b.aims, a)
}

// place puts data where calls that are added next can read and write it. Where there is
// no more room, what was added so far is run first.
func (b *batch) place(data []byte) (uint64, error) {
	at, err := b.process.Place(data)
	if !errors.Is(err, remote.ErrNoRoom) || len(b.calls) == 0 {
		return at, err
	}
	if _, err := b.run(); err != nil {
		return 0, err
	}
	return b.process.Place(data)
}

// run makes the calls and returns their results. The error is that of the first that
// failed and must not.
func (b *batch) run() ([]uint64, error) {
	calls, aims := b.calls, b.aims
	b.calls, b.aims = b.calls[:0], b.aims[:0]
	if len(calls) == 0 {
		return nil, nil
	}
	results, err := b.process.runIn(b.task, calls)
	if err != nil {
		return nil, err
	}
	return results, b.check(aims, results)
}

// check returns the error of the first call that failed and must not.
func (b *batch) check(aims []aim, results []uint64) error {
	for i, a := range aims {
		if a.mayFail {
			continue
		}
		if errno := errnoOf(results[i]); errno != 0 {
			return &StepError{PID: b.process.pid, TID: b.task.tid, What: a.text(), Errno: errno}
		}
	}
	return nil
}

func (a *aim) text() string {
	if a.hasAt {
		return fmt.Sprintf("%s %#x", a.what, a.at)
	}
	return a.what
}

// errnoOf is the error that a system call's result stands for, or 0.
func errnoOf(result uint64) syscall.Errno {
	if errno := -int64(result); errno > 0 && errno < 4096 {
		return syscall.Errno(errno)
	}
	return 0
}

// A StepError is that the process could not do to itself what building it takes. It has
// been killed.
type StepError struct {
	PID, TID int
	What     string // "map memory at 0x7f1200000000"
	Errno    syscall.Errno
}

func (e *StepError) Error() string {
	text := fmt.Sprintf("build process %d: %s: %v", e.PID, e.What, e.Errno)
	if e.TID != e.PID {
		text = fmt.Sprintf("build thread %d of process %d: %s: %v", e.TID, e.PID, e.What, e.Errno)
	}
	if remedy := remedies[e.Errno]; remedy != "" {
		text += "; " + remedy
	}
	return text
}

// Unwrap returns the error number.
func (e *StepError) Unwrap() error { return e.Errno }

var remedies = map[syscall.Errno]string{
	syscall.EPERM:  "run vos as root with all capabilities, outside of a container",
	syscall.EACCES: "run vos as root with all capabilities; a file that is executed may not lie on a mount with noexec",
	syscall.ENOMEM: "free memory; look at vm.overcommit_memory, vm.max_map_count and the memory limit of the control group of vos",
	syscall.EAGAIN: "raise the limits of processes and locked memory of vos (ulimit -u, -l)",
	syscall.ENOSYS: "use a newer kernel",
	syscall.EMFILE: "raise the limit of open files of vos (ulimit -n)",
}
