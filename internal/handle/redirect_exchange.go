package handle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// An exchange binds all descriptors of one description, in all processes that take
// part, to another one. All threads of all of them are stopped meanwhile, and all
// are done or none.
//
// The order of what is done in each process, and what there is if vOS is killed
// right after it:
//
//	sockets are made        two of vOS's own, by name
//	record and description  likewise, and these, with the old binding
//	come in
//	the old one is kept     likewise
//	the descriptors are     the new binding; a record that is not at its place
//	bound anew
//	sockets and the rest    the new binding, the old one kept, and a record of it
//	are closed
//
// Each step but the third and the last is a run of calls that a thread makes by
// itself. What is there between is settled by the next vOS (redirect_settle.go).
type exchange struct {
	members []*member
	old     *description
	new     *opened
	to      resource
	atRest  bool
	record  redirectRecord         // but for what differs between processes
	grown   func(pid int) bool     // reports whether a process is one that takes part
	known   map[int]bool           // processes that were looked at
	places  map[*member]*exchanged // by member
	meeting *meeting
}

// exchanged is how far an exchange is in one process.
type exchanged struct {
	plan, in placed
	met      bool // the sessions have begun together
	rebound  bool // the descriptors may be bound anew
	times    tracee.Times
	err      error
}

// errChanging is that the program has changed since it was looked at: it is looked
// at again.
var errChanging = errors.New("the program changes its descriptors")

// Errors that are worth another try.
var (
	errDisarmed = fmt.Errorf("a registration with EPOLLONESHOT has fired: %w", errChanging)
	errSleeping = fmt.Errorf("%w: %w", tracee.ErrNotAtOnce, errChanging)
)

// stopTimeout is what the threads of one process get to stop: those of the others
// wait for them.
const stopTimeout = 500 * time.Millisecond

// carryOut does it. The error is of the process that failed; the others have gone
// back.
func (x *exchange) carryOut(ctx context.Context) error {
	x.meeting = newMeeting(len(x.members))
	x.places = make(map[*member]*exchanged, len(x.members))
	for _, m := range x.members {
		x.places[m] = &exchanged{plan: nothingPlaced, in: nothingPlaced}
	}
	// The sessions wait for each other, and none may wait for a processor of Go's.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(x.members) + runtime.NumCPU()))
	var all sync.WaitGroup
	for _, m := range x.members {
		at := x.places[m]
		all.Go(func() {
			at.times, at.err = tracee.Do(ctx, m.p, tracee.Options{Identity: m.identity, StopTimeout: stopTimeout}, func(s *tracee.Session) error {
				return x.inside(s, m, at)
			})
			x.meeting.leave(at.err)
		})
	}
	all.Wait()
	var errs []error
	for _, m := range x.members {
		if err := x.places[m].err; err != nil && !errors.Is(err, errOthers) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && len(x.meeting.errs) > 0 {
		errs = x.meeting.errs
	}
	return errors.Join(errs...)
}

// A step is what an exchange has just done in a process.
type step string

const (
	stepSockets step = "sockets"
	stepPassed  step = "passed"
	stepKept    step = "kept"
	stepBound   step = "bound"
)

// reached is called after each step. Tests die in it.
var reached = func(step, *member) {}

// inside is the session of one process.
func (x *exchange) inside(s *tracee.Session, m *member, at *exchanged) error {
	if err := s.Prepare(); err != nil {
		return err
	}
	if !at.met { // a session may begin anew, where one that died had left something
		at.met = true
		if err := x.meeting.meet(nil, nil); err != nil {
			return err
		}
	}
	if err := s.StopAll(); err != nil {
		return err
	}
	if err := s.Borrow(); err != nil {
		return err
	}
	err := x.begin(s, m, at)
	reached(stepSockets, m)
	if err = x.meeting.meet(err, x.divide); err != nil {
		return errors.Join(err, x.goBack(s, m, at))
	}
	err = x.bringIn(s, m, at)
	if err = x.meeting.meet(err, x.moveOffset); err != nil {
		return errors.Join(err, x.goBack(s, m, at))
	}
	at.rebound = true
	err = rebind(s, m.pid, m.bound, m.registered, at.in.staged, x.asyncFlags(m))
	reached(stepBound, m)
	if err = x.meeting.meet(err, nil); err != nil {
		return errors.Join(err, x.goBack(s, m, at))
	}
	_, err = s.Run(at.in.finishCalls(x.record.Back, m.standing != nil))
	return err
}

// begin looks again, now that nothing moves, and makes the sockets. Whatever it
// refuses, nothing was touched.
func (x *exchange) begin(s *tracee.Session, m *member, at *exchanged) error {
	if err := m.look(x.old); err != nil {
		return err
	}
	if len(m.refusals) > 0 {
		return refusalsError(m.refusals)
	}
	if len(m.bound) == 0 {
		return errChanging
	}
	if slices.ContainsFunc(m.registered, registered.disarmed) {
		return errDisarmed
	}
	if len(m.bound)+2*len(m.registered)+2 > tracee.MaxAtOnce && len(m.registered) > 0 || len(m.bound) > maxBound {
		return tooManyRefusal(m.pid, len(m.bound), len(m.registered))
	}
	if x.atRest {
		if err := m.checkRest(x.old); err != nil {
			return err
		}
	}
	if err := x.checkChildren(m); err != nil {
		return err
	}
	if len(m.registered) > 0 || x.asyncFlags(m) >= 0 {
		if s.AtOnce() != nil {
			return errSleeping
		}
	}
	high := 2
	if m.standing != nil {
		high = 1
	}
	next, upper, err := m.room(high)
	if err != nil {
		return err
	}
	first := 0
	if s.AtOnce() != nil {
		first = 1 // a marker comes first
	}
	at.plan.record, at.plan.staged = next[first+2], next[first+3]
	if st := m.standing; st != nil {
		at.plan.kept, at.plan.recordAt, at.plan.previous = st.Kept, m.recordAt, upper[0]
	} else {
		at.plan.kept, at.plan.recordAt, at.plan.previous = upper[0], upper[1], upper[0]
	}
	if err := permits(s, m); err != nil {
		return err
	}
	return makeSockets(s, m.pid, x.record.ID, next[:], &at.in)
}

// checkChildren returns errChanging where a process was started that takes part.
func (x *exchange) checkChildren(m *member) error {
	if x.grown == nil {
		return nil
	}
	children, err := m.p.Children()
	if err != nil {
		return err
	}
	for _, pid := range children {
		if !x.known[pid] && x.grown(pid) {
			return errChanging
		}
	}
	return nil
}

// asyncFlags are the status flags of a description that tells of readiness by
// signal, in the one process that carries that over, or -1.
func (x *exchange) asyncFlags(m *member) int {
	if x.old.flags&syscall.O_ASYNC == 0 || m != x.members[0] {
		return -1
	}
	return x.new.flags&statusFlags | syscall.O_ASYNC
}

// divide decides which process carries over a registration with an epoll that
// several share.
func (x *exchange) divide() error {
	type place struct {
		m     *member
		epoll int
	}
	seen := make(map[int][]place) // by number, who carries it over
	for _, stale := range []bool{false, true} {
		for _, m := range x.members {
			var kept []registered
			for _, r := range m.registered {
				if r.stale != stale {
					kept = append(kept, r)
					continue
				}
				shared := false
				for _, other := range seen[r.fd] {
					order, err := kernel.CompareFiles(other.m.pid, other.epoll, m.pid, r.epoll)
					if err != nil {
						return err
					}
					shared = shared || order == 0
				}
				if shared {
					continue
				}
				if stale {
					return staleRefusal(m.pid, r)
				}
				seen[r.fd] = append(seen[r.fd], place{m, r.epoll})
				kept = append(kept, r)
			}
			m.registered = kept
		}
	}
	return nil
}

func staleRefusal(pid int, r registered) error {
	return api.Refusal{Code: codeStale, Subject: subject(pid, r.fd),
		Detail: fmt.Sprintf("epoll %d waits for the description under this number, which is closed or bound to something else", r.epoll),
		Remedy: "restart the program instead"}
}

// bringIn brings the new description in, with a record, and keeps the old one.
func (x *exchange) bringIn(s *tracee.Session, m *member, at *exchanged) error {
	r := x.record
	r.Was, r.Old = x.old.identity(), x.old.identity()
	if m.standing != nil {
		r.Old = m.standing.Old
	}
	r.Kept, r.Previous, r.Record, r.Staged = at.plan.kept, at.plan.previous, at.plan.recordAt, at.plan.staged
	for _, b := range m.bound {
		r.Bound = append(r.Bound, b.fd)
	}
	if !slices.Contains(r.Bound, r.Number) {
		r.Number = r.Bound[0]
	}
	content, err := r.encode()
	if err != nil {
		return err
	}
	record, err := kernel.SealedFile(recordName, content)
	if err != nil {
		return err
	}
	err = pass(s, m, record, x.new.file, &at.plan, &at.in)
	if err = errors.Join(err, record.Close()); err != nil {
		return err
	}
	reached(stepPassed, m)
	keep := duplicateCall(m.bound[0].fd, at.plan.previous)
	results, err := s.Run([]tracee.Call{keep})
	if err != nil {
		return err
	}
	if err := keep.Err(results[0]); err != nil {
		return callRefusal(m.pid, "keep the old binding", err)
	}
	reached(stepKept, m)
	at.in.previous, at.in.recordAt = int(results[0]), at.plan.recordAt
	at.in.kept = at.plan.kept
	if m.standing == nil {
		at.in.kept = at.in.previous
	}
	same, err := x.old.is(m.pid, at.in.previous)
	if err == nil && same {
		same, err = x.new.is(m.pid, at.in.staged)
	}
	if err == nil && (!same || at.in.previous != at.plan.previous) {
		err = callRefusal(m.pid, "keep the old binding", errNumbers)
	}
	return err
}

// moveOffset lets the new file begin where the old one is. Nobody uses either.
func (x *exchange) moveOffset() error {
	if x.to.kind != toFile || x.record.Back || !x.old.regular() || !x.new.regular() || x.old.flags&syscall.O_APPEND != 0 {
		return nil
	}
	offset, err := x.old.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	_, err = x.new.file.Seek(offset, io.SeekStart)
	return err
}

// goBack takes out of a process whatever came into it.
func (x *exchange) goBack(s *tracee.Session, m *member, at *exchanged) error {
	if at.rebound {
		async := -1
		if x.asyncFlags(m) >= 0 {
			async = x.old.flags&statusFlags | syscall.O_ASYNC
		}
		if err := rebind(s, m.pid, m.bound, m.registered, at.in.previous, async); err != nil {
			return err // what is left is settled afterwards
		}
	}
	calls := at.in.undoCalls(m.standing != nil)
	if len(calls) == 0 {
		return nil
	}
	_, err := s.Run(calls)
	return err
}

func refusalsError(all []api.Refusal) error {
	errs := make([]error, len(all))
	for i, r := range all {
		errs[i] = r
	}
	return errors.Join(errs...)
}

// others lists the members for their records.
func (x *exchange) others() []otherProcess {
	all := make([]otherProcess, len(x.members))
	for i, m := range x.members {
		all[i] = otherProcess{m.pid, m.start}
	}
	return all
}

// isOwn reports whether vOS itself is meant.
func isOwn(pid int) bool { return pid == os.Getpid() }
