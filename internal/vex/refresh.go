package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Refresh implements api.Executive.
func (Machine) Refresh(ctx context.Context, r api.RefreshRequest, emit func(api.Operation) error) error {
	return eachProcess(ctx, r.Target, !r.DryRun, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]api.Operation, error) {
		return refresh(ctx, p, modules, r)
	}, emit)
}

// refresh heals the modules of one process: all are planned, then all plans are
// carried out in one session, then what was healed is compared again.
func refresh(ctx context.Context, p *module.Process, modules []*module.Module, r api.RefreshRequest) ([]api.Operation, error) {
	operations := make([]api.Operation, 0, len(modules))
	plans := make([]*module.Plan, 0, len(modules))
	begins := make([]time.Duration, 0, len(modules))
	for _, m := range modules {
		begin := time.Now()
		plan, err := planRefresh(ctx, p, m, r.Full)
		if err != nil {
			return nil, err
		}
		if plan == nil {
			continue // the program has unloaded it
		}
		plans = append(plans, plan)
		begins = append(begins, time.Since(begin))
		operations = append(operations, planned(p, plan, r.Steps || r.DryRun))
	}
	if r.DryRun {
		return operations, nil
	}
	done, err := p.Commit(ctx, plans)
	for i, plan := range plans {
		o := &operations[i]
		if o.Outcome != api.Planned {
			o.TotalUS = begins[i].Microseconds()
			continue
		}
		o.PauseUS, o.BorrowUS = done.Times.Pause.Microseconds(), done.Times.Borrow.Microseconds()
		o.TotalUS = (begins[i] + done.Total).Microseconds()
		if lost := finish(ctx, p, plan, o, err); lost != nil {
			// What is left has ended with the process, and did not fail.
			return operations[:i], lost
		}
	}
	return operations, nil
}

// planRefresh plans a module that the program may unload, and load again, meanwhile.
// It returns nil if the program has it no more.
func planRefresh(ctx context.Context, p *module.Process, m *module.Module, full bool) (*module.Plan, error) {
	for n := 1; ; n++ {
		plan, err := p.Plan(ctx, m, full)
		if !errors.Is(err, procfs.ErrAddress) || n == looks {
			return plan, err
		}
		if loaded, err := stillLoaded(ctx, p, m); err != nil || !loaded {
			return nil, err
		}
	}
}

func stillLoaded(ctx context.Context, p *module.Process, m *module.Module) (bool, error) {
	again, err := p.Again(ctx, false)
	if err != nil {
		return false, err
	}
	return again.Loaded(m) != nil, again.Close()
}

// planned tells a plan as an operation that is still to be carried out.
func planned(p *module.Process, plan *module.Plan, steps bool) api.Operation {
	m := plan.Module
	o := api.Operation{
		PID: p.PID(), Program: p.Name, Module: m.Name, Path: m.Path, Outcome: api.Planned,
		From: plan.BuildID, To: plan.BuildID, Pages: plan.Pages(), Words: plan.Words(),
		Residual: slices.Clone(plan.Residual), Refusals: slices.Clone(plan.Refusals),
	}
	switch {
	case len(plan.Refusals) > 0:
		o.Outcome = api.Refused
	case plan.Empty():
		o.Outcome = api.Clean
	}
	if steps {
		o.Steps = plan.Steps()
	}
	if o.Residual == nil {
		o.Residual = []string{}
	}
	if o.Refusals == nil {
		o.Refusals = []api.Refusal{}
	}
	return o
}

// finish notes how the commit of a plan ended, and looks at the module again. It
// returns an error if the process is gone.
func finish(ctx context.Context, p *module.Process, plan *module.Plan, o *api.Operation, commit error) error {
	if refusals := api.Refusals(commit); len(refusals) > 0 {
		o.Outcome, o.Refusals = api.Refused, append(o.Refusals, refusals...)
		return nil
	}
	var c *module.Comparison
	err := commit
	if err == nil {
		c, err = p.Compare(ctx, plan.Module, false)
		if errors.Is(err, procfs.ErrAddress) {
			var loaded bool
			if loaded, err = stillLoaded(ctx, p, plan.Module); err == nil && !loaded {
				o.Outcome = api.Refreshed // and unloaded since
				return nil
			}
			c, err = p.Compare(ctx, plan.Module, false)
		}
		if err != nil {
			err = fmt.Errorf("healed, but not verified: %w", err)
		}
	}
	switch {
	case errors.Is(err, procfs.ErrGone):
		return err
	case err != nil:
		o.Outcome, o.Error = api.Failed, err.Error()
	case c.Corrupt() && len(plan.Residual) == 0:
		o.Outcome, o.Error = api.Failed, "it differs again: something in the program writes to it"
	default:
		o.Outcome = api.Refreshed
	}
	return nil
}
