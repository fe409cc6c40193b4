package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A takeover is one module of one process that is to reach another generation.
type takeover struct {
	process *module.Process
	program int // pid of the program's first process
	plan    *module.Replacement
	done    module.Replaced
	planned time.Duration
	changed bool
	err     error

	committed time.Time
	drained   time.Duration // from then until nobody was within the build before
	remaining int           // threads that may still be
}

// Replace implements api.Executive.
func (Machine) Replace(ctx context.Context, r api.ReplaceRequest, emit func(api.Operation) error) error {
	var with *module.Build
	opt := match.Options{}
	w := takeovers{target: r.Target, partial: r.Partial, dryRun: r.DryRun, steps: r.Steps || r.DryRun, outcome: api.Replaced, emit: emit, tell: r.Progress}
	w.prepare = func(store *module.Store) (err error) {
		if r.With != "" {
			if with, err = store.OpenBuild(r.With); err != nil {
				return err
			}
		}
		if r.Debug != "" || r.OldDebug != "" {
			opt, err = store.DebugOptions(r.OldDebug, r.Debug)
		}
		return err
	}
	w.choose = func(p *module.Process, m *module.Module) bool {
		return !m.Staged() && (!r.Outdated || m.Outdated() && m.IsObject() && !abandoned(p, m))
	}
	w.plan = func(ctx context.Context, p *module.Process, m *module.Module) (*module.Replacement, error) {
		build := with
		if build == nil {
			var err error
			if build, err = p.SuccessorBuild(m); err != nil {
				return refusedPlan(p, m, err)
			}
		}
		return p.PlanReplace(ctx, m, build, opt)
	}
	return w.run(ctx)
}

// Rollback implements api.Executive.
func (Machine) Rollback(ctx context.Context, r api.RollbackRequest, emit func(api.Operation) error) error {
	w := takeovers{target: r.Target, partial: r.Partial, dryRun: r.DryRun, steps: r.Steps || r.DryRun, outcome: api.RolledBack, emit: emit, tell: r.Progress}
	w.prepare = func(*module.Store) error { return nil }
	w.choose = func(_ *module.Process, m *module.Module) bool {
		return !m.Staged() && (r.Target.Module != "" || m.Generation > 0)
	}
	w.plan = func(_ context.Context, p *module.Process, m *module.Module) (*module.Replacement, error) {
		return p.PlanRollback(m)
	}
	return w.run(ctx)
}

// abandoned reports whether a module was deleted from a folder for temporary
// files: there is no other build of it.
func abandoned(p *module.Process, m *module.Module) bool {
	return m.File.Change == procfs.FileDeleted && isTemporary(pathInRoot(p, m, m.Path))
}

// refusedPlan turns a refusal into a plan that says so.
func refusedPlan(p *module.Process, m *module.Module, err error) (*module.Replacement, error) {
	refusals := api.Refusals(err)
	if len(refusals) == 0 {
		return nil, err
	}
	return &module.Replacement{Module: m, From: p.RunningBuildID(m), Refusals: refusals}, nil
}

// takeovers carries out one request: all processes are planned while they run,
// then done one after the other, and where one fails, those before go back.
type takeovers struct {
	target                 api.Target
	partial, dryRun, steps bool
	outcome                api.Outcome
	emit                   func(api.Operation) error
	tell                   func(api.Progress) // nil where nobody asks

	prepare func(*module.Store) error
	choose  func(*module.Process, *module.Module) bool
	plan    func(context.Context, *module.Process, *module.Module) (*module.Replacement, error)

	store   *module.Store
	opened  []*module.Process
	failed  map[int]bool // pids
	all     []*takeover
	matched bool
	errs    []error
	reached api.Progress
}

// progress notes how far the request has come, and says so.
func (w *takeovers) progress(note func(*api.Progress)) {
	note(&w.reached)
	if w.tell != nil {
		w.tell(w.reached)
	}
}

func (w *takeovers) run(ctx context.Context) (err error) {
	processes, err := resolve(w.target)
	if err != nil {
		return err
	}
	w.store = module.NewStore()
	defer func() { err = errors.Join(err, w.store.Close()) }()
	if err := w.prepare(w.store); err != nil {
		for _, p := range processes {
			p.Close()
		}
		return classify(err)
	}
	defer func() {
		for _, p := range w.opened {
			err = errors.Join(err, p.Close())
		}
	}()
	w.open(ctx, processes)
	if !w.matched && len(w.errs) == 0 && w.target.Module != "" && !w.target.All {
		return fmt.Errorf("find module %s of %s: %w: no process of the program has it mapped", w.target.Module, w.target.Program, api.ErrGone)
	}
	if err := w.work(ctx); err != nil {
		return errors.Join(append(w.errs, err)...)
	}
	return errors.Join(w.errs...)
}

// work plans, carries out and emits, and does so again for processes that were
// started meanwhile: what a process forks before its turn has the build before.
func (w *takeovers) work(ctx context.Context) error {
	const rounds = 5
	done := 0
	for range rounds {
		w.findPrograms()
		broken := w.refuseWhole()
		if !w.dryRun {
			w.commit(ctx, broken)
			w.drain(ctx, done)
		}
		w.explainWhole(broken)
		for ; done < len(w.all); done++ {
			if t := w.all[done]; errors.Is(t.err, procfs.ErrGone) {
				w.fail(t.process.PID(), t.err)
				continue
			}
			if err := w.emit(w.operation(w.all[done])); err != nil {
				return err
			}
		}
		if _, single := w.target.PID(); single || w.dryRun || ctx.Err() != nil {
			return nil
		}
		processes, err := resolve(w.target)
		if err != nil {
			return nil // all have ended
		}
		w.open(ctx, slices.DeleteFunc(processes, func(p *procfs.Process) bool {
			known := slices.ContainsFunc(w.opened, func(o *module.Process) bool { return o.PID() == p.PID() }) || w.failed[p.PID()]
			if known {
				p.Close()
			}
			return known
		}))
		// Those that run the build already say nothing new.
		fresh := slices.DeleteFunc(w.all[done:], func(t *takeover) bool { return t.plan.Empty() })
		w.all = w.all[:done+len(fresh)]
		if len(w.all) == done {
			return nil
		}
	}
	return nil
}

// open inspects processes and plans for their modules.
func (w *takeovers) open(ctx context.Context, processes []*procfs.Process) {
	w.progress(func(p *api.Progress) { p.Processes += len(processes) })
	for _, process := range processes {
		pid := process.PID()
		p, err := inspect(ctx, w.store, process, !w.dryRun) // what is planned is what is found
		if err != nil {
			w.fail(pid, err)
			continue
		}
		w.opened = append(w.opened, p)
		w.progress(func(p *api.Progress) { p.Inspected++ })
		for _, m := range selected(p, w.target) {
			w.matched = w.matched || !m.Staged()
			if !w.choose(p, m) {
				continue
			}
			if err := w.planOne(ctx, p, m); err != nil {
				w.fail(pid, err)
			}
		}
	}
}

// fail notes that a process could not be looked at. Those of a whole machine
// come and go.
func (w *takeovers) fail(pid int, err error) {
	if w.failed == nil {
		w.failed = make(map[int]bool)
	}
	w.failed[pid] = true
	if !w.target.All || !ended(err) {
		w.errs = append(w.errs, classify(err))
	}
}

func (w *takeovers) planOne(ctx context.Context, p *module.Process, m *module.Module) error {
	begin := time.Now()
	plan, err := w.plan(ctx, p, m)
	if err != nil {
		return err
	}
	w.all = append(w.all, &takeover{process: p, plan: plan, planned: time.Since(begin)})
	w.progress(func(p *api.Progress) { p.Planned++ })
	return nil
}

// findPrograms notes which processes are one program: a master and its workers.
func (w *takeovers) findPrograms() {
	var all []api.Process
	for _, p := range w.opened {
		stat, err := p.Stat()
		if err != nil {
			continue // it has ended
		}
		executable, _ := p.Executable() // where it can't be read names must do
		all = append(all, api.Process{PID: p.PID(), PPID: stat.PPID, Name: p.Name, Executable: executable.Path})
	}
	first := make(map[int]int)
	for _, program := range group(all) {
		for _, p := range program.Processes {
			first[p.PID] = program.PID
		}
	}
	for _, t := range w.all {
		t.program = first[t.process.PID()]
	}
}

// A whole is what is done wholly or not at all: one module of one program.
type whole struct {
	program int
	module  string
}

func (t *takeover) whole() whole { return whole{t.program, t.plan.Module.Name} }

// refuseWhole returns of which wholes nothing may be done, and the takeover that
// is the reason.
func (w *takeovers) refuseWhole() map[whole]*takeover {
	broken := make(map[whole]*takeover)
	for _, t := range w.all {
		if len(t.plan.Refusals) > 0 && !w.partial && broken[t.whole()] == nil {
			broken[t.whole()] = t
		}
	}
	return broken
}

// commit carries the plans out.
func (w *takeovers) commit(ctx context.Context, broken map[whole]*takeover) {
	for i, t := range w.all {
		w.progress(func(p *api.Progress) { p.Settled = max(p.Settled, i) })
		if t.changed || t.err != nil || len(t.plan.Refusals) > 0 || t.plan.Empty() || broken[t.whole()] != nil {
			continue
		}
		w.commitOne(ctx, t)
		t.changed, t.committed = t.err == nil && len(t.plan.Refusals) == 0, time.Now()
		if !t.changed && !w.partial && !errors.Is(t.err, procfs.ErrGone) {
			broken[t.whole()] = t
			w.goBack(t)
		}
	}
}

// drain waits, for a while, until the threads have left that were within the
// builds before, as far as that shows without a stop.
func (w *takeovers) drain(ctx context.Context, first int) {
	const patience, longest = 100 * time.Millisecond, 20 * time.Millisecond
	end := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, longest) {
		remaining := 0
		for _, t := range w.all[first:] {
			if !t.changed || len(t.done.Visitors) == 0 || t.drained > 0 {
				continue
			}
			within, err := t.process.StillWithin(t.done)
			switch {
			case errors.Is(err, procfs.ErrGone):
				t.remaining = 0
				continue
			case len(within) == 0:
				t.drained = max(time.Since(t.committed), time.Microsecond)
			}
			t.remaining = len(within)
			remaining += t.remaining
		}
		if remaining == 0 || time.Now().Add(pause).After(end) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// commitOne carries one plan out. It is planned anew where another module of the
// process was changed since, as functions may be reached by other ways now, and
// where the program has mapped something at the planned addresses meanwhile.
func (w *takeovers) commitOne(ctx context.Context, t *takeover) {
	const tries = 5
	stale := slices.ContainsFunc(w.all, func(o *takeover) bool { return o.changed && o.process.PID() == t.process.PID() })
	for range tries {
		if stale {
			if t.err = w.replan(ctx, t); t.err != nil || len(t.plan.Refusals) > 0 || t.plan.Empty() {
				return
			}
		}
		t.done, t.err = t.process.CommitReplacement(ctx, t.plan)
		if !errors.Is(t.err, syscall.EEXIST) {
			return
		}
		stale = true
	}
}

// replan plans anew.
func (w *takeovers) replan(ctx context.Context, t *takeover) error {
	p, err := t.process.Again(ctx, false) // locked by the first look
	if err != nil {
		return err
	}
	w.opened = append(w.opened, p)
	for _, m := range p.Modules {
		if m.Start() != t.plan.Module.Start() {
			continue
		}
		plan, err := w.plan(ctx, p, m)
		if err == nil {
			t.process, t.plan = p, plan
		}
		return err
	}
	return fmt.Errorf("find %s of process %d again: %w", t.plan.Module.Name, p.PID(), procfs.ErrUnmapped)
}

// explainWhole refuses what another process of its program keeps from being done.
func (w *takeovers) explainWhole(broken map[whole]*takeover) {
	for _, t := range w.all {
		because := broken[t.whole()]
		if because == nil || because == t || t.changed || t.err != nil || len(t.plan.Refusals) > 0 || t.plan.Empty() {
			continue
		}
		t.plan.Refusals = append(t.plan.Refusals, api.Refusal{
			Code: codeAllOrNone, Subject: t.plan.Module.Name,
			Detail: fmt.Sprintf("process %d of the program can't be done", because.process.PID()),
			Remedy: "see to that process, or use --partial",
		})
	}
}

const codeAllOrNone api.Code = "all_or_none"

// goBack takes back what was done of a group, the last first. It goes on when
// the request is cancelled.
func (w *takeovers) goBack(failed *takeover) {
	for _, t := range slices.Backward(w.all) {
		if !t.changed || t.whole() != failed.whole() {
			continue
		}
		t.changed = false
		if err := t.process.Undo(context.Background(), t.plan); err != nil && !errors.Is(err, procfs.ErrGone) {
			t.err = fmt.Errorf("take it back, as process %d could not be done: %w", failed.process.PID(), err)
		}
	}
}

// operation tells what became of one.
func (w *takeovers) operation(t *takeover) api.Operation {
	m := t.plan.Module
	o := api.Operation{
		PID: t.process.PID(), Program: t.process.Name, Module: m.Name, Path: m.Path,
		Outcome: w.outcome, From: t.plan.From, To: t.plan.To,
		PauseUS: t.done.Times.Pause.Microseconds(), BorrowUS: t.done.Times.Borrow.Microseconds(),
		TotalUS:    (t.planned + t.done.Total).Microseconds(),
		Generation: t.plan.Generation, Functions: t.plan.Redirected(), Finishing: len(t.done.Visitors),
		DrainedUS: t.drained.Microseconds(), Remaining: t.remaining,
		Residual: slices.Clone(t.plan.Residual), Refusals: slices.Clone(t.plan.Refusals),
	}
	if w.steps {
		o.Steps = t.plan.Steps()
	}
	refusals := api.Refusals(t.err)
	switch {
	case len(refusals) > 0:
		o.Outcome, o.Refusals = api.Refused, append(o.Refusals, refusals...)
	case t.err != nil:
		o.Outcome, o.Error = api.Failed, t.err.Error()
	case len(o.Refusals) > 0:
		o.Outcome = api.Refused
	case t.plan.Empty():
		o.Outcome = api.Clean
	case w.dryRun:
		o.Outcome = api.Planned
	}
	if o.Residual == nil {
		o.Residual = []string{}
	}
	if o.Refusals == nil {
		o.Refusals = []api.Refusal{}
	}
	return o
}
