package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Attach implements api.Executive.
func (Machine) Attach(ctx context.Context, r api.AttachRequest, emit func(api.Interception) error) error {
	opt := module.AttachOptions{Memory: r.Memory, Pointers: r.Pointers}
	return eachMember(ctx, r.Target, r.DryRun, func(ctx context.Context, p *module.Process) (api.Interception, error) {
		return attach(ctx, p, opt, r.DryRun, r.Steps || r.DryRun)
	}, emit)
}

// Detach implements api.Executive.
func (Machine) Detach(ctx context.Context, r api.DetachRequest, emit func(api.Interception) error) error {
	return eachMember(ctx, r.Target, r.DryRun, func(ctx context.Context, p *module.Process) (api.Interception, error) {
		i, err := detach(ctx, p, r.DryRun, r.Steps || r.DryRun)
		if err == nil {
			err = detachMenu(ctx, p, &i, r.DryRun, r.Steps || r.DryRun)
		}
		return i, err
	}, emit)
}

// eachMember works on each process of a target, and then on those that were started
// meanwhile: what a process forked before its turn is as it was before. One of several
// that ends meanwhile needs nothing any more.
func eachMember(ctx context.Context, t api.Target, dryRun bool,
	work func(context.Context, *module.Process) (api.Interception, error), emit func(api.Interception) error,
) error {
	const rounds = 5
	processes, err := resolve(t)
	if err != nil {
		return err
	}
	var errs []error
	seen := make(map[int]bool)
	each, done := t, 0 // t is resolved again: it must not come to mean all programs
	_, single := t.PID()
	each.All = !single
	for n := range rounds {
		for _, p := range processes {
			seen[p.PID()] = true
		}
		errs = append(errs, eachOf(ctx, each, processes, !dryRun, func(ctx context.Context, p *module.Process, _ []*module.Module) ([]api.Interception, error) {
			i, err := work(ctx, p)
			if err == nil {
				done++
			}
			if err != nil || n > 0 && i.Outcome == api.Clean { // it says nothing new
				return nil, err
			}
			return []api.Interception{i}, nil
		}, emit))
		if single || dryRun || ctx.Err() != nil {
			break
		}
		if processes, err = resolve(t); err != nil {
			break // all have ended
		}
		processes = slices.DeleteFunc(processes, func(p *procfs.Process) bool {
			if seen[p.PID()] {
				p.Close()
			}
			return seen[p.PID()]
		})
		if len(processes) == 0 {
			break
		}
	}
	if err := errors.Join(errs...); err != nil || done > 0 || ctx.Err() != nil {
		return err
	}
	return classify(fmt.Errorf("find program %q: %w", t.Program, procfs.ErrGone)) // all have ended
}

// attach counts the calls of one process, which is locked by its caller. What is
// counted already goes on, and what is new is added; where memory is to be counted
// and is not yet, all begins anew.
func attach(ctx context.Context, p *module.Process, opt module.AttachOptions, dryRun, steps bool) (api.Interception, error) {
	begin := time.Now()
	i := api.Interception{PID: p.PID(), Program: p.Name, Outcome: api.Clean, Residual: []string{}, Refusals: []api.Refusal{}}
	present, on, err := p.Counting()
	if err != nil {
		return i, err
	}
	w := attaching{i: &i, opt: module.AttachOptions{Memory: opt.Memory || on && present.Memory, Pointers: opt.Pointers || on && present.Pointers}, dryRun: dryRun, steps: steps}
	i.Memory, i.Pointers = w.opt.Memory, w.opt.Pointers
	if w.opt.Memory && on && !present.Memory {
		err = w.restart(ctx, p)
	} else {
		err = w.extend(ctx, p)
	}
	i.TotalUS = time.Since(begin).Microseconds()
	return i, w.settle(err)
}

// An attaching is how one process is attached.
type attaching struct {
	i      *api.Interception
	opt    module.AttachOptions
	dryRun bool
	steps  bool
}

// extend attaches what is not counted. Modules may be loaded while it is done, and
// slots be bound: what is new then is seen by a second look.
func (w *attaching) extend(ctx context.Context, p *module.Process) error {
	const tries = 4
	for n := range tries {
		plan, err := p.PlanAttach(w.opt)
		if err != nil {
			return err
		}
		w.planned(p, plan, n == 0)
		if len(plan.Refusals) > 0 || plan.Empty() || w.dryRun {
			return nil
		}
		done, err := p.CommitAttach(ctx, plan)
		w.add(done)
		switch {
		case err == nil:
			w.i.Outcome = api.Attached
		case !errors.Is(err, syscall.EEXIST) || n == tries-1: // else the program has mapped something there meanwhile
			return err
		}
		again, err := p.Again(ctx, false) // locked by the first look
		if err != nil {
			return err
		}
		defer again.Close()
		p = again
	}
	return nil
}

// planned notes what a plan says. A second one that is refused leaves the first.
func (w *attaching) planned(p *module.Process, plan *module.Attachment, first bool) {
	if len(plan.Refusals) > 0 {
		if first || w.i.Outcome != api.Attached {
			w.i.Outcome, w.i.Refusals = api.Refused, slices.Clone(plan.Refusals)
		}
		return
	}
	w.i.Uncounted = plan.Uncounted()
	w.mapped(p, plan.Interceptor)
	if w.steps {
		w.i.Steps = append(w.i.Steps, plan.Steps()...)
	}
	if w.dryRun && !plan.Empty() {
		w.i.Outcome, w.i.Slots = api.Planned, len(plan.Writes)
	}
}

// mapped notes what the process has, once that is mapped which is planned.
func (w *attaching) mapped(p *module.Process, planned *intercept.Interceptor) {
	all := slices.Clone(p.Interceptors())
	if planned != nil {
		all = append(all, planned)
	}
	w.i.Functions, w.i.Mapped = 0, 0
	modules := make(map[uint64]bool)
	for _, in := range all {
		w.i.Functions += len(in.Functions())
		w.i.Mapped += int64(in.Size())
		for _, m := range in.Modules() {
			if m.Name != module.SharedImporter {
				modules[m.Start] = true
			}
		}
	}
	w.i.Modules = len(modules)
}

func (w *attaching) add(done module.Attached) {
	w.i.Slots += done.Slots
	w.i.PauseUS = max(w.i.PauseUS, done.Times.Pause.Microseconds())
	w.i.BorrowUS = max(w.i.BorrowUS, done.Times.Borrow.Microseconds())
}

// restart takes out what counts calls alone, and puts in what counts memory, too. It
// is refused before anything is touched where memory can't be counted.
func (w *attaching) restart(ctx context.Context, p *module.Process) error {
	if plan, err := p.PlanAttach(w.opt); err != nil || len(plan.Refusals) > 0 {
		if err == nil {
			w.planned(p, plan, true)
		}
		return err
	}
	out, err := p.PlanDetach()
	if err != nil {
		return err
	}
	if len(out.Refusals) > 0 {
		w.i.Outcome, w.i.Refusals = api.Refused, slices.Clone(out.Refusals)
		return nil
	}
	w.i.Restarted = true
	if w.steps {
		w.i.Steps = out.Steps()
	}
	if w.dryRun {
		w.i.Outcome, w.i.Slots = api.Planned, len(out.Writes)
		if w.steps {
			w.i.Steps = append(w.i.Steps, "attach again, with memory")
		}
		return nil
	}
	done, err := p.CommitDetach(ctx, out)
	w.add(done)
	if err != nil {
		return err
	}
	w.i.Slots = 0
	again, err := p.Again(ctx, false)
	if err != nil {
		return err
	}
	defer again.Close()
	return w.extend(ctx, again)
}

// settle notes how it ended. It returns an error if the process is gone.
func (w *attaching) settle(err error) error {
	refusals := api.Refusals(err)
	switch {
	case err == nil:
	case errors.Is(err, procfs.ErrGone):
		return err
	case len(refusals) > 0:
		w.i.Outcome, w.i.Refusals = api.Refused, append(w.i.Refusals, refusals...)
	default:
		w.i.Outcome, w.i.Error = api.Failed, err.Error()
	}
	return nil
}

// detach takes out what counts the calls of one process, which is locked by its
// caller.
func detach(ctx context.Context, p *module.Process, dryRun, steps bool) (api.Interception, error) {
	begin := time.Now()
	i := api.Interception{PID: p.PID(), Program: p.Name, Outcome: api.Clean, Residual: []string{}, Refusals: []api.Refusal{}}
	w := attaching{i: &i, dryRun: dryRun, steps: steps}
	plan, err := p.PlanDetach()
	if err != nil {
		return i, err
	}
	if len(plan.Refusals) > 0 {
		i.Outcome, i.Refusals = api.Refused, slices.Clone(plan.Refusals)
		return i, nil
	}
	if steps {
		i.Steps = plan.Steps()
	}
	i.Residual = append(i.Residual, plan.Stays...)
	w.mapped(p, nil)
	switch {
	case plan.Empty():
	case dryRun:
		i.Outcome, i.Slots = api.Planned, len(plan.Writes)
	default:
		var done module.Attached
		done, err = p.CommitDetach(ctx, plan)
		w.add(done)
		if err == nil {
			i.Outcome, i.Residual = api.Detached, append([]string{}, done.Stays...)
			err = w.look(ctx, p)
		}
	}
	i.TotalUS = time.Since(begin).Microseconds()
	return i, w.settle(err)
}

// look notes what the process has left.
func (w *attaching) look(ctx context.Context, p *module.Process) error {
	again, err := p.Again(ctx, false)
	if err != nil {
		return err
	}
	defer again.Close()
	w.mapped(again, nil)
	return nil
}
