package handle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Redirection is a wish to bind a descriptor to something else.
type Redirection struct {
	FD       int
	To       string // as parseResource reads it
	Back     bool   // to what it was bound to before the first redirection
	Forget   bool   // give up what is kept of before
	AsCaller bool   // open files by vOS's own rights, not by the program user's
	AtRest   bool   // of a connection, wait until nothing is under way on it
	DryRun   bool
	Steps    bool

	// Grown reports whether a process that was started meanwhile takes part as
	// well. The redirection then ends with ErrGrown, and nothing was done.
	Grown func(pid int) bool
}

// ErrGrown is that the program has started a process meanwhile.
var ErrGrown = errors.New("the program has started another process")

// lookTries and tryAgain bound how often a program is looked at that changes its
// descriptors, or waits in a way in which it can't be done.
const (
	lookTries = 40
	tryAgain  = 10 * time.Millisecond // at first, and longer by and by
)

// Redirect binds a descriptor to another resource, in all of the processes that
// have the same description open: all of its duplicates, in all of them or in none.
// The first process that has the descriptor open decides which description it is.
//
// It emits nothing: the results are of the processes that take part, by what was
// done or why nothing was. An error is about the whole.
func Redirect(ctx context.Context, processes []*procfs.Process, r Redirection) (results []api.Redirection, err error) {
	begin := time.Now()
	w := &redirecting{Redirection: r, begin: begin}
	defer func() { err = errors.Join(err, w.close()) }()
	if !r.Back && !r.Forget {
		if w.to, err = parseResource(r.To); err != nil {
			return nil, err
		}
	}
	if err := w.open(ctx, processes); err != nil {
		return nil, err
	}
	if r.Forget {
		return w.forget(ctx)
	}
	for n := range lookTries {
		results, err = w.try(ctx)
		if !errors.Is(err, errChanging) {
			break
		}
		if w.hasGrown {
			return nil, errors.Join(ErrGrown, w.undoNew())
		}
		if n == lookTries-1 {
			return w.refused(changingRefusal(w.all[0].pid, r.FD, err)), w.undoNew()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), w.undoNew())
		case <-time.After(tryAgain * time.Duration(n/4+1)):
		}
	}
	return results, err
}

func changingRefusal(pid, fd int, err error) error {
	switch {
	case errors.Is(err, errDisarmed):
		return api.Refusal{Code: codeOneshot, Subject: subject(pid, fd),
			Detail: "the program has its registration with EPOLLONESHOT disarmed: it is at work on it",
			Remedy: "try again when it waits for it"}
	case errors.Is(err, errBusy):
		return busyRefusal(pid, fd)
	case errors.Is(err, errSleeping):
		return atOnce(pid, errSleeping)
	}
	return api.Refusal{Code: codeChanging, Subject: subject(pid, fd),
		Detail: "the program kept changing its descriptors", Remedy: "try again"}
}

// redirecting is one redirection under way.
type redirecting struct {
	Redirection
	to       resource
	begin    time.Time
	all      []*member // processes that may take part
	members  []*member // that do
	old      *description
	new      *opened
	from     string
	remarks  []string
	settled  []string
	hasGrown bool
}

func (w *redirecting) close() error {
	w.closeDescriptions()
	var errs []error
	for _, m := range w.all {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

// undoNew takes out a file that was made in vain.
func (w *redirecting) undoNew() error {
	if w.new == nil {
		return nil
	}
	return w.new.undo()
}

func (w *redirecting) closeDescriptions() {
	w.old.close()
	if w.new != nil {
		w.new.close()
	}
	w.old, w.new = nil, nil
}

// open locks the processes, and settles what an earlier vOS has left in them.
func (w *redirecting) open(ctx context.Context, processes []*procfs.Process) error {
	// In one order, so that two that want the same processes don't wait for each other.
	byPID := slices.Clone(processes)
	slices.SortFunc(byPID, func(a, b *procfs.Process) int { return a.PID() - b.PID() })
	for _, p := range byPID {
		if isOwn(p.PID()) || w.DryRun {
			continue
		}
		if err := p.Lock(ctx); err != nil && (!gone(err) || len(processes) == 1) {
			return err
		}
	}
	for _, p := range processes {
		if isOwn(p.PID()) {
			continue
		}
		m, err := newMember(p)
		if gone(err) && len(processes) > 1 {
			continue
		}
		if err != nil {
			return err
		}
		w.all = append(w.all, m)
	}
	if len(w.all) == 0 {
		return fmt.Errorf("redirect a descriptor: %w", procfs.ErrGone)
	}
	if w.DryRun {
		return nil
	}
	var err error
	w.settled, err = settle(ctx, w.all)
	return err
}

func gone(err error) bool { return errors.Is(err, procfs.ErrGone) }

// try looks, plans, and carries out. errChanging is worth another try.
func (w *redirecting) try(ctx context.Context) ([]api.Redirection, error) {
	before := w.old
	w.old = nil
	err := w.look()
	if before != nil && w.new != nil && (err != nil || w.Back || w.old.identity() != before.identity() || w.old.flags != before.flags) {
		err = errors.Join(err, w.new.undo())
		w.new.close()
		w.new = nil
	}
	before.close()
	if err != nil {
		return w.refusedOr(err)
	}
	for _, m := range w.members {
		if len(m.refusals) > 0 {
			return w.refused(nil), nil
		}
	}
	if w.new == nil {
		if err := w.openNew(ctx); err != nil {
			return w.refusedOr(err)
		}
	}
	if w.DryRun {
		return w.results(api.Planned, nil), nil
	}
	if err := w.checkIdle(); err != nil {
		return nil, err
	}
	x, err := w.exchange()
	if err == nil {
		err = x.carryOut(ctx)
	}
	if err == nil {
		outcome := api.Redirected
		if w.Back {
			outcome = api.Restored
		}
		return w.results(outcome, x), nil
	}
	ctx = context.WithoutCancel(ctx)
	_, left := settle(ctx, w.all)
	if gone(left) {
		left = nil
	}
	if errors.Is(err, errChanging) && left == nil {
		return nil, err // what is open can be used in the next try
	}
	return w.refusedOr(errors.Join(err, left, w.new.undo()))
}

// refusedOr returns results for an error that is refusals alone.
func (w *redirecting) refusedOr(err error) ([]api.Redirection, error) {
	if errors.Is(err, errChanging) || len(api.Refusals(err)) == 0 {
		return nil, err
	}
	return w.refused(err), nil
}

// look finds the description and those who have it.
func (w *redirecting) look() error {
	w.members, w.remarks = nil, nil
	for _, m := range w.all {
		if err := m.findStanding(w.FD); err != nil && !gone(err) {
			return err
		}
	}
	for _, m := range w.all {
		d, err := m.take(w.FD)
		if err == nil {
			w.old = d
			if err := m.notOurs(w.FD); err != nil {
				return err
			}
			if err := d.replaceable(m.pid, w.FD); err != nil {
				return err
			}
			break
		}
		if !isClosed(err) && !gone(err) {
			return err
		}
	}
	if w.old == nil {
		if alive := slices.ContainsFunc(w.all, func(m *member) bool { return m.p.Alive() }); !alive {
			return fmt.Errorf("redirect descriptor %d: %w", w.FD, procfs.ErrGone)
		}
		return closedRefusal(w.all[0].pid, w.FD)
	}
	w.from = w.old.link
	for _, m := range w.all {
		m.remarks, m.plain = nil, nil
		err := m.look(w.old)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if len(m.bound) == 0 {
			continue
		}
		w.members = append(w.members, m)
		if err := errors.Join(m.check(w.old), m.checkLocks(w.old)); err != nil {
			return err
		}
		if _, _, err := m.room(2); err != nil {
			m.refuse(err)
		}
		if w.Back && m.standing == nil {
			m.refuse(notRedirectedRefusal(m.pid, w.FD))
		}
	}
	if len(w.members) == 0 {
		return errChanging
	}
	return w.findOutside()
}

func notRedirectedRefusal(pid, fd int) error {
	return api.Refusal{Code: codeNotRedirected, Subject: subject(pid, fd),
		Detail: "it is bound to nothing that vOS has bound it to", Remedy: "none is needed"}
}

// notOurs refuses what vOS itself has put there.
func (m *member) notOurs(fd int) error {
	records, err := recordsIn(m.p, m.take)
	if err != nil {
		return err
	}
	for _, r := range records {
		if fd == r.at || r.finished() && fd == r.Kept && m.has(fd, r.Old) {
			return api.Refusal{Code: codeWrongType, Subject: subject(m.pid, fd),
				Detail: "it is vOS's own, and the program does not know it",
				Remedy: fmt.Sprintf("vos redirect --back or --forget is about descriptor %d", r.Number)}
		}
	}
	return nil
}

// findStanding finds the record of a redirection of a descriptor that still stands.
func (m *member) findStanding(fd int) error {
	m.standing, m.recordAt = nil, -1
	records, err := recordsIn(m.p, m.take)
	if err != nil {
		return err
	}
	for _, r := range records {
		if !r.finished() || !m.has(r.Kept, r.Old) {
			continue
		}
		for _, b := range append([]int{fd}, r.Bound...) {
			order, err := kernel.CompareFiles(m.pid, b, m.pid, fd)
			if err == nil && order == 0 && slices.Contains(r.Bound, b) && m.has(b, r.New) {
				m.standing, m.recordAt = r.redirectRecord, r.at
				return nil
			}
		}
	}
	return nil
}

// openNew opens what the description is to be exchanged for, and refuses what the
// program could not use in its place. A dry run opens only what is open already.
func (w *redirecting) openNew(ctx context.Context) error {
	origin := w.members[0]
	isRegistered := slices.ContainsFunc(w.members, func(m *member) bool { return len(m.registered) > 0 })
	switch {
	case w.Back:
		d, err := origin.take(origin.standing.Kept)
		if err != nil {
			return err
		}
		w.new = &opened{description: d}
		for _, m := range w.members[1:] {
			if same, err := d.is(m.pid, m.standing.Kept); err != nil || !same {
				return errors.Join(err, api.Refusal{Code: codeRebound, Subject: subject(m.pid, w.FD),
					Detail: fmt.Sprintf("what is kept of before is not what process %d keeps", origin.pid),
					Remedy: "name the processes one by one"})
			}
		}
		return kernel.SetFileFlags(d.file, d.flags&statusFlags&^nonblock|w.old.flags&nonblock)
	case w.DryRun && w.to.kind != toFD:
		return nil
	}
	o, err := w.to.open(ctx, origin.p, w.old, w.AsCaller)
	if err != nil {
		return err
	}
	w.new = o
	err = o.standsFor(w.old, origin.pid, w.FD, isRegistered)
	if o.foreign {
		err = errors.Join(err, w.checkForeign(origin))
	}
	for _, m := range w.members {
		err = errors.Join(err, m.checkLocks(o.description))
		err = errors.Join(err, refusalsError(m.refusals))
	}
	if err != nil {
		return errors.Join(err, o.undo())
	}
	return nil
}

const nonblock = int(FlagNonblock)

// checkForeign refuses what another process has open in a way that the program does
// not expect: its flags are that process's, too, and stay.
func (w *redirecting) checkForeign(origin *member) error {
	if (w.old.flags^w.new.flags)&nonblock != 0 {
		return api.Refusal{Code: codeBlocking, Subject: subject(w.to.pid, w.to.fd),
			Detail: "one of the two waits for what is not ready, and the other does not (O_NONBLOCK)",
			Remedy: "bind it to one that is open in the same way"}
	}
	if w.old.flags&async != 0 {
		return api.Refusal{Code: codeShared, Subject: subject(origin.pid, w.FD),
			Detail: "the program is told of its readiness by signal (O_ASYNC), which what others have open can't do",
			Remedy: "bind it to a new connection instead"}
	}
	return nil
}

// findOutside remarks on processes that have the description as well and take no
// part.
func (w *redirecting) findOutside() error {
	pids, err := procfs.Processes()
	if err != nil {
		return err
	}
	var names []string
	for _, pid := range pids {
		if isOwn(pid) || slices.ContainsFunc(w.members, func(m *member) bool { return m.pid == pid }) {
			continue
		}
		p, err := procfs.Open(pid)
		if err != nil {
			continue
		}
		if has, name := hasDescription(p, w.old); has {
			names = append(names, fmt.Sprintf("%s (%d)", name, pid))
		}
		p.Close()
	}
	if len(names) == 0 {
		return nil
	}
	if w.old.flags&async != 0 {
		return api.Refusal{Code: codeShared, Subject: subject(w.members[0].pid, w.FD),
			Detail: fmt.Sprintf("readiness is told by signal (O_ASYNC), and other processes have it open, too: %s", strings.Join(names, ", ")),
			Remedy: "name all of them, or use --all"}
	}
	w.remarks = append(w.remarks, fmt.Sprintf("other processes have it open as well and keep it as it is: %s", strings.Join(names, ", ")))
	return nil
}

// hasDescription reports whether a process has a description open. Those that can't
// be looked into count as not.
func hasDescription(p *procfs.Process, d *description) (bool, string) {
	links, err := p.Descriptors()
	if err != nil {
		return false, ""
	}
	for fd, link := range links {
		if link != d.link {
			continue
		}
		if same, err := d.is(p.PID(), fd); err == nil && same {
			stat, err := p.Stat()
			return err == nil, stat.Command
		}
	}
	return false, ""
}

// checkIdle returns errChanging where a stop would only show that the program is at
// work on the descriptor.
func (w *redirecting) checkIdle() error {
	for _, m := range w.members {
		if slices.ContainsFunc(m.registered, registered.disarmed) {
			return errDisarmed
		}
	}
	if w.AtRest && w.old.class == classConnection {
		now, err := kernel.RestOf(w.old.file)
		if err != nil {
			return err
		}
		if (rest{now}).busy() {
			return errBusy
		}
	}
	return nil
}

// exchange is what is to be carried out.
func (w *redirecting) exchange() (*exchange, error) {
	x := &exchange{members: w.members, old: w.old, new: w.new, to: w.to, known: make(map[int]bool)}
	for _, m := range w.all {
		x.known[m.pid] = true
	}
	x.atRest = w.AtRest && w.old.class == classConnection
	if w.Grown != nil {
		x.grown = func(pid int) bool {
			w.hasGrown = !isOwn(pid) && w.Grown(pid)
			return w.hasGrown
		}
	}
	x.record = redirectRecord{Begun: time.Now(), New: w.new.identity(), Back: w.Back, Number: w.FD,
		Others: x.others(), From: w.from, To: w.toText()}
	if len(x.record.Others) > maxTogether {
		return nil, fmt.Errorf("redirect in %d processes: at most %d", len(x.record.Others), maxTogether)
	}
	_, err := rand.Read(x.record.ID[:])
	return x, err
}

func (w *redirecting) toText() string {
	if w.Back && w.new != nil {
		return w.new.link
	}
	return w.To
}

// isClosed reports whether an error says that a descriptor is not open.
func isClosed(err error) bool { return errors.Is(err, os.ErrNotExist) || isBadDescriptor(err) }
