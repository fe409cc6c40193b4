package vex

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/menu"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Menu implements api.Executive.
func (Machine) Menu(ctx context.Context, r api.MenuRequest, emit func(api.Menu) error) error {
	return eachProcess(ctx, r.Target, !r.DryRun, func(ctx context.Context, p *module.Process, _ []*module.Module) ([]api.Menu, error) {
		begin := time.Now()
		result, err := menuOf(ctx, p, r)
		if errors.Is(err, procfs.ErrGone) {
			return nil, err
		}
		if refusals := api.Refusals(err); len(refusals) > 0 {
			result.Outcome, result.Refusals = api.Refused, refusals
		} else if err != nil {
			result.Outcome, result.Error = api.Failed, err.Error()
		}
		result.TotalUS = time.Since(begin).Microseconds()
		return []api.Menu{result}, nil
	}, emit)
}

func menuOf(ctx context.Context, p *module.Process, r api.MenuRequest) (api.Menu, error) {
	result := api.Menu{PID: p.PID(), Program: p.Name, Outcome: api.Planned, Residual: []string{}, Refusals: []api.Refusal{}}
	plan, err := planMenu(p, r.Remove)
	if err != nil {
		return result, err
	}
	if r.Steps || r.DryRun {
		result.Steps = plan.Steps()
	}
	switch {
	case len(plan.Refusals) > 0:
		result.Outcome, result.Refusals = api.Refused, plan.Refusals
		return result, nil
	case plan.Empty():
		result.Outcome = api.Clean
		return result, nil
	case r.DryRun:
		return result, nil
	}
	done, err := plan.Commit(ctx, p)
	if err != nil {
		return result, err
	}
	result.MenuBars, result.Changed, result.Mapped = done.Bars, done.Changed, done.Mapped
	result.PauseUS, result.BorrowUS = done.Times.Pause.Microseconds(), done.Times.Borrow.Microseconds()
	result.Residual = append(result.Residual, done.Residual...)
	switch {
	case r.Remove:
		result.Outcome = api.Removed
	case done.Changed > 0:
		result.Outcome = api.Added
	default:
		result.Outcome = api.Clean
	}
	return result, nil
}

// detachMenu takes the menu out of a process of which an interceptor was taken out,
// if there was one. It returns an error if the process is gone.
func detachMenu(ctx context.Context, p *module.Process, i *api.Interception, dryRun, steps bool) error {
	begin := time.Now()
	plan, err := menu.PlanRemove(p)
	var done menu.Result
	if err == nil && len(plan.Refusals) > 0 {
		err = plan.Refusals[0]
	}
	if err == nil {
		if plan.Empty() {
			return nil
		}
		if steps {
			i.Steps = append(i.Steps, plan.Steps()...)
		}
		if dryRun {
			if i.Outcome == api.Clean {
				i.Outcome = api.Planned
			}
			return nil
		}
		done, err = plan.Commit(ctx, p)
	}
	i.TotalUS += time.Since(begin).Microseconds()
	i.PauseUS, i.BorrowUS = max(i.PauseUS, done.Times.Pause.Microseconds()), max(i.BorrowUS, done.Times.Borrow.Microseconds())
	i.Residual = append(i.Residual, done.Residual...)
	if err != nil && i.Outcome == api.Detached { // what counts is out, the menu is not
		i.Residual = append(i.Residual, "the item of vOS in its menu bars: "+err.Error())
		return nil
	}
	if err == nil && i.Outcome == api.Clean {
		i.Outcome = api.Detached
	}
	w := attaching{i: i}
	return w.settle(err)
}

func planMenu(p *module.Process, remove bool) (*menu.Plan, error) {
	if remove {
		return menu.PlanRemove(p)
	}
	if err := menu.Served(p); err != nil { // whose reason comes first
		return nil, err
	}
	vos, err := menu.Startable(p)
	if err != nil {
		return nil, err
	}
	status, err := p.Status()
	if err != nil {
		return nil, err
	}
	pid := p.PID()
	if n := len(status.NSPIDs); n > 0 {
		pid = status.NSPIDs[n-1] // by which the command will find it
	}
	command := func(verb api.Verb) string {
		return shellQuoted(vos) + " ctl --show " + strconv.Itoa(pid) + " " + string(verb)
	}
	return menu.PlanAttach(p, []menu.Item{
		{Label: "Status", Command: command(api.VerbStatus)},
		{Label: "Verify", Command: command(api.VerbVerify)},
		{Label: "Refresh now", Command: command(api.VerbRefresh)},
		{Label: "Checkpoint", Command: command(api.VerbCheckpoint)},
	})
}

// shellQuoted quotes an argument as g_shell_parse_argv reads it.
func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
