package descriptor

import (
	"errors"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// Queues are copies of the ends of a program's pseudo terminals, by which can be seen what
// waits in them.
type Queues struct {
	masters, slaves []kernel.Raw
	holders         map[int]bool // processes that have masters
}

// Queues takes copies; nil if the program has no pseudo terminal. The caller closes them.
// Those that have become something else since Look can do no harm: Dump looks again.
func (f *Found) Queues() (_ *Queues, err error) {
	if len(f.masters) == 0 {
		return nil, nil
	}
	q := &Queues{holders: map[int]bool{}}
	pidfds := map[int]*os.File{}
	defer func() {
		for _, pidfd := range pidfds {
			err = errors.Join(err, pidfd.Close())
		}
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	for at, h := range f.known {
		if f.inherited(&h) || !isMaster(&h) && !isSlave(&h) {
			continue
		}
		if pidfds[at.pid] == nil {
			if pidfds[at.pid], err = kernel.OpenPidfd(at.pid); err != nil {
				delete(pidfds, at.pid)
				if errors.Is(err, syscall.ESRCH) {
					continue // it has ended
				}
				return nil, err
			}
		}
		raw, err := kernel.TakeRaw(pidfds[at.pid], at.fd)
		if errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ESRCH) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if isMaster(&h) {
			q.masters, q.holders[at.pid] = append(q.masters, raw), true
		} else {
			q.slaves = append(q.slaves, raw)
		}
	}
	return q, nil
}

// Holds reports whether a process has a master. Of nil nobody has.
func (q *Queues) Holds(pid int) bool { return q != nil && q.holders[pid] }

// Written reports whether something was written to a terminal that its master has not read.
func (q *Queues) Written() bool { return q != nil && anyWaiting(q.masters) }

// Waiting reports whether something was typed or written, and not read.
func (q *Queues) Waiting() bool { return q.Written() || q != nil && anyWaiting(q.slaves) }

func anyWaiting(all []kernel.Raw) bool {
	for _, raw := range all {
		if n, err := waitingIn(raw); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// waitingIn is how many bytes wait at one end of a terminal. What the kernel has on the way
// there arrives before: asking whether something is there waits for that.
func waitingIn(raw kernel.Raw) (int, error) {
	if _, err := raw.Ready(kernel.EventIn); err != nil {
		return 0, err
	}
	return raw.Waiting()
}

// Close closes the copies; of nil it does nothing.
func (q *Queues) Close() error {
	if q == nil {
		return nil
	}
	var errs []error
	for _, raws := range [][]kernel.Raw{q.masters, q.slaves} {
		for _, raw := range raws {
			errs = append(errs, raw.Close())
		}
	}
	return errors.Join(errs...)
}
