package vex

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/restart"
)

// Restart implements api.Executive.
func (Machine) Restart(ctx context.Context, r api.RestartRequest, emit func(api.Restart) error) error {
	processes, err := resolve(r.Target)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range processes {
		done, err := restarted(ctx, p, r)
		if err == nil {
			err = emit(done)
		}
		errs = append(errs, err, p.Close())
	}
	return errors.Join(errs...)
}

// restarted restarts one process. That it was refused or failed is in the result, an
// error says that it is gone, or can't be looked at.
func restarted(ctx context.Context, p *procfs.Process, r api.RestartRequest) (api.Restart, error) {
	begin := time.Now()
	plan, err := restart.Look(ctx, p, restart.Options{Progress: counted(r.Progress)})
	if err != nil {
		return api.Restart{}, classify(fmt.Errorf("restart process %d: %w", p.PID(), err))
	}
	a := api.Restart{PID: p.PID(), Program: plan.Program, Outcome: api.Planned, Bytes: int64(plan.Bytes), Left: left(plan.Left), Refusals: plan.Refusals}
	switch {
	case len(plan.Refusals) > 0:
		a.Outcome = api.Refused
	case !r.DryRun:
		var done restart.Result
		done, err = plan.Commit(ctx)
		a.Outcome, a.Left = api.Restarted, left(done.Left)
		a.FreezeUS, a.PausedUS, a.Rounds = done.Longest.Microseconds(), done.Paused.Microseconds(), done.Rounds
		a.Bytes, a.DroppedBytes = int64(done.Copied), int64(done.Dropped)
		a.Before, a.After = memoryState(done.Before), memoryState(done.After)
	}
	a.TotalUS = time.Since(begin).Microseconds()
	switch refusals := api.Refusals(err); {
	case err == nil:
	case errors.Is(err, procfs.ErrGone), errors.Is(err, context.Canceled):
		return a, classify(fmt.Errorf("restart process %d: %w", p.PID(), err))
	case len(refusals) > 0 && a.Bytes == 0:
		a.Outcome, a.Refusals = api.Refused, refusals
	default:
		a.Outcome, a.Error = api.Failed, err.Error()
	}
	return a, nil
}

func left(from []restart.Left) []api.LeftMemory {
	to := make([]api.LeftMemory, len(from))
	for i, l := range from {
		to[i] = api.LeftMemory{Reason: l.Reason, Mappings: l.Mappings, Bytes: int64(l.Bytes)}
	}
	return to
}

func memoryState(m restart.Memory) api.MemoryState {
	return api.MemoryState{Mappings: m.Mappings, ResidentBytes: int64(m.Resident), PageTablesBytes: int64(m.PageTables)}
}
