package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A takeover is one module of one process that is to reach another generation.
type takeover struct {
	process *module.Process
	plan    *module.Replacement
	done    module.Replaced
	planned time.Duration
	changed bool
	err     error
}

// Replace implements api.Executive.
func (Machine) Replace(ctx context.Context, r api.ReplaceRequest, emit func(api.Operation) error) error {
	var with *module.Build
	opt := match.Options{}
	w := takeovers{target: r.Target, partial: r.Partial, dryRun: r.DryRun, steps: r.Steps || r.DryRun, outcome: api.Replaced, emit: emit}
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
	w.choose = func(m *module.Module) bool { return !m.Staged() && (!r.Outdated || m.Outdated() && m.IsObject()) }
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
	w := takeovers{target: r.Target, partial: r.Partial, dryRun: r.DryRun, steps: r.Steps || r.DryRun, outcome: api.RolledBack, emit: emit}
	w.prepare = func(*module.Store) error { return nil }
	w.choose = func(m *module.Module) bool { return !m.Staged() && (r.Target.Module != "" || m.Generation > 0) }
	w.plan = func(_ context.Context, p *module.Process, m *module.Module) (*module.Replacement, error) {
		return p.PlanRollback(m)
	}
	return w.run(ctx)
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

	prepare func(*module.Store) error
	choose  func(*module.Module) bool
	plan    func(context.Context, *module.Process, *module.Module) (*module.Replacement, error)

	store *module.Store
	all   []*takeover
	errs  []error
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
	var opened []*module.Process
	defer func() {
		for _, p := range opened {
			err = errors.Join(err, p.Close())
		}
	}()
	matched := false
	for _, process := range processes {
		if !w.dryRun {
			// Held until it is closed: what is planned is what is found.
			if err := process.Lock(ctx); err != nil {
				w.fail(errors.Join(err, process.Close()))
				continue
			}
		}
		p, err := module.Inspect(w.store, process)
		if err != nil {
			w.fail(err)
			continue
		}
		opened = append(opened, p)
		for _, m := range selected(p, w.target) {
			matched = matched || !m.Staged()
			if !w.choose(m) {
				continue
			}
			if err := w.planOne(ctx, p, m); err != nil {
				w.fail(err)
			}
		}
	}
	if !matched && len(w.errs) == 0 && w.target.Module != "" && !w.target.All {
		return fmt.Errorf("find module %s of %s: %w: no process of the program has it mapped", w.target.Module, w.target.Program, api.ErrGone)
	}
	if !w.dryRun {
		w.commit(ctx)
	}
	for _, t := range w.all {
		if err := w.emit(w.operation(t)); err != nil {
			return errors.Join(append(w.errs, err)...)
		}
	}
	return errors.Join(w.errs...)
}

// fail notes that a process could not be looked at. Those of a whole machine
// come and go.
func (w *takeovers) fail(err error) {
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
	return nil
}

// group is what is done wholly or not at all: one module of one program.
func (t *takeover) group() string { return t.process.Name + "\x00" + t.plan.Module.Name }

// commit carries the plans out.
func (w *takeovers) commit(ctx context.Context) {
	broken := map[string]*takeover{} // by group: why nothing of it may stay
	for _, t := range w.all {
		if len(t.plan.Refusals) > 0 && !w.partial && broken[t.group()] == nil {
			broken[t.group()] = t
		}
	}
	for _, t := range w.all {
		if len(t.plan.Refusals) > 0 || t.plan.Empty() || broken[t.group()] != nil {
			continue
		}
		t.done, t.err = t.process.CommitReplacement(ctx, t.plan)
		t.changed = t.err == nil
		if t.err != nil && !w.partial && !errors.Is(t.err, procfs.ErrGone) {
			broken[t.group()] = t
			w.goBack(t)
		}
	}
	for _, t := range w.all {
		if because := broken[t.group()]; because != nil && because != t && !t.changed && t.err == nil && len(t.plan.Refusals) == 0 {
			t.plan.Refusals = append(t.plan.Refusals, api.Refusal{
				Code: codeAllOrNone, Subject: t.plan.Module.Name,
				Detail: fmt.Sprintf("process %d of the program can't be done", because.process.PID()),
				Remedy: "see to that process, or use --partial",
			})
		}
	}
}

const codeAllOrNone api.Code = "all_or_none"

// goBack takes back what was done of a group, the last first. It goes on when
// the request is cancelled.
func (w *takeovers) goBack(failed *takeover) {
	for _, t := range slices.Backward(w.all) {
		if !t.changed || t.group() != failed.group() {
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
		Generation: t.plan.Generation, Functions: t.plan.Redirected(),
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
