package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Redirect implements api.Executive.
func (Machine) Redirect(ctx context.Context, r api.RedirectRequest, emit func(api.Redirection) error) error {
	const tries = 30
	for n := 0; ; n++ {
		results, err := redirect(ctx, r)
		if errors.Is(err, handle.ErrGrown) && ctx.Err() == nil && n < tries {
			// Its new process takes part in the next try.
			time.Sleep(time.Millisecond)
			continue
		}
		for _, o := range results {
			if err := emit(o); err != nil {
				return err
			}
		}
		return classify(err)
	}
}

func redirect(ctx context.Context, r api.RedirectRequest) (_ []api.Redirection, err error) {
	processes, err := resolve(r.Target)
	if err != nil {
		return nil, err
	}
	if r.All {
		processes = withDescendants(processes)
	}
	defer func() {
		for _, p := range processes {
			err = errors.Join(err, p.Close())
		}
	}()
	redirection := handle.Redirection{FD: r.FD, To: r.To, Back: r.Back, Forget: r.Forget, AsCaller: r.AsCaller, AtRest: r.AtRest, DryRun: r.DryRun, Steps: r.Steps}
	if _, single := r.Target.PID(); r.All {
		redirection.Grown = func(int) bool { return true } // it is asked of children
	} else if !single {
		redirection.Grown = func(pid int) bool {
			p, err := procfs.Open(pid)
			if err != nil {
				return false
			}
			defer p.Close()
			return isProgram(p) && matches(p, r.Target.Program)
		}
	}
	results, err := handle.Redirect(ctx, processes, redirection)
	if err != nil && !errors.Is(err, handle.ErrGrown) {
		err = fmt.Errorf("redirect descriptor %d of %s: %w", r.FD, r.Target.Program, err)
	}
	return results, err
}

// withDescendants adds the processes that processes have started, and those that
// these have, each behind the one that started it.
func withDescendants(processes []*procfs.Process) []*procfs.Process {
	known := make(map[int]bool, len(processes))
	for _, p := range processes {
		known[p.PID()] = true
	}
	for i := 0; i < len(processes); i++ {
		pids, err := processes[i].Children()
		if err != nil {
			continue // it has ended
		}
		slices.Sort(pids)
		for _, pid := range pids {
			if known[pid] {
				continue
			}
			if p, err := procfs.Open(pid); err == nil && isProgram(p) {
				known[pid] = true
				processes = append(processes, p)
			} else if err == nil {
				p.Close()
			}
		}
	}
	return processes
}
