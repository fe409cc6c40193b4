package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/menu"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// show shows lines in a dialog of the program, by its menu.
func show(ctx context.Context, pid int, lines []string) (err error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	store := module.NewStore()
	defer func() { err = errors.Join(err, store.Close()) }()
	p, err := inspect(ctx, store, process, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return menu.Show(ctx, p, lines)
}

// verbs are what a ControlRequest may ask for.
var verbs = map[api.Verb]func(context.Context, Machine, *api.Control) error{
	api.VerbStatus: tellStatus, api.VerbVerify: tellVerify, api.VerbRefresh: tellRefresh,
	api.VerbCheckpoint: tellCheckpoint,
}

// Control implements api.Executive.
func (x Machine) Control(ctx context.Context, r api.ControlRequest, emit func(api.Control) error) error {
	work := verbs[r.Verb]
	if work == nil {
		return fmt.Errorf("%w: there is no verb %q; there are %v", api.ErrUsage, r.Verb, api.Verbs)
	}
	processes, err := resolve(r.Target)
	if err != nil {
		return err
	}
	var pids []int
	for _, p := range processes {
		pids = append(pids, p.PID())
		err = errors.Join(err, p.Close())
	}
	var errs []error
	for _, pid := range pids {
		c := api.Control{PID: pid, Verb: r.Verb, Outcome: api.Done, Refusals: []api.Refusal{}}
		workErr := work(ctx, x, &c)
		if workErr != nil {
			c.Lines = []string{fmt.Sprintf("vos could not do it (%s): %v", r.Verb, workErr)}
		}
		if r.Show {
			if err := show(ctx, pid, c.Lines); err != nil {
				c.Unshown = err.Error()
			} else {
				c.Shown = true
			}
		}
		if workErr != nil {
			if errs = append(errs, workErr); !c.Shown && c.Unshown == "" {
				continue
			}
			c.Outcome = api.Failed
		}
		if err := emit(c); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(append(errs, err)...)
}

func byPID(pid int) api.Target { return api.Target{Program: strconv.Itoa(pid)} }

func tellStatus(ctx context.Context, x Machine, c *api.Control) error {
	return x.Programs(ctx, api.ProgramsRequest{Target: byPID(c.PID)}, func(program api.Program) error {
		p := program.Processes[0]
		c.Program = p.Name
		if p.Modules == 0 && len(p.Unread) > 0 {
			return cannotLook(p)
		}
		age := (time.Duration(p.AgeMS) * time.Millisecond).Round(time.Second)
		c.Lines = append(c.Lines, fmt.Sprintf("%s (%d) has run for %v, with %d threads and %d modules.", p.Name, p.PID, age, p.Threads, p.Modules),
			some("The code of no module is corrupted.", "Corrupted", p.CorruptModules),
			some("No module's file was replaced on disk.", "Replaced or deleted on disk", p.OutdatedModules))
		if len(p.Unread) > 0 {
			c.Lines = append(c.Lines, "Not read: "+strings.Join(p.Unread, "; ")+".")
		}
		return nil
	})
}

// cannotLook is why nothing can be said of a process's modules.
func cannotLook(p api.Process) error {
	if len(p.Refusals) > 0 {
		return p.Refusals[0]
	}
	err := errors.New(strings.Join(p.Unread, "; "))
	if slices.ContainsFunc(p.Unread, func(u string) bool { return strings.HasSuffix(u, ": "+api.UnreadNotPermitted) }) {
		err = fmt.Errorf("%w: %w", api.ErrNotPermitted, err)
	}
	return fmt.Errorf("look into process %d: %w", p.PID, err)
}

// some lists names, or says that there are none.
func some(none, what string, names []string) string {
	if len(names) == 0 {
		return none
	}
	return fmt.Sprintf("%s: %s.", what, listed(names))
}

// listed names a few.
func listed(names []string) string {
	const few = 5
	if len(names) > few {
		return strings.Join(names[:few], ", ") + fmt.Sprintf(" and %d more", len(names)-few)
	}
	return strings.Join(names, ", ")
}

func tellVerify(ctx context.Context, x Machine, c *api.Control) error {
	var corrupt, unread []string
	modules := 0
	err := x.Verify(ctx, api.VerifyRequest{Target: byPID(c.PID)}, func(v api.Verification) error {
		c.Program = v.Program
		modules++
		if v.Corrupt {
			corrupt = append(corrupt, v.Module)
		}
		if len(v.Refusals) > 0 {
			unread = append(unread, v.Module)
		}
		return nil
	})
	if len(corrupt) > 0 {
		c.Outcome = api.Corrupt
	}
	c.Lines = append(c.Lines, some(fmt.Sprintf("%d modules of %s (%d) are as their files say.", modules-len(unread), c.Program, c.PID),
		fmt.Sprintf("%d of %d modules of %s (%d) differ from their files", len(corrupt), modules, c.Program, c.PID), corrupt))
	if len(unread) > 0 {
		c.Lines = append(c.Lines, "Not compared: "+listed(unread)+".")
	}
	return err
}

func tellRefresh(ctx context.Context, x Machine, c *api.Control) error {
	var healed, refused, failed []string
	modules, pages, words := 0, 0, 0
	err := x.Refresh(ctx, api.RefreshRequest{Target: byPID(c.PID)}, func(o api.Operation) error {
		c.Program = o.Program
		modules++
		switch o.Outcome {
		case api.Refreshed:
			healed = append(healed, o.Module)
			pages, words = pages+o.Pages, words+o.Words
		case api.Refused:
			refused = append(refused, o.Module)
			c.Refusals = append(c.Refusals, o.Refusals...)
		case api.Failed:
			failed = append(failed, o.Module+" ("+o.Error+")")
		}
		return nil
	})
	switch {
	case len(failed) > 0:
		c.Outcome, c.Error = api.Failed, strings.Join(failed, "; ")
	case len(healed) > 0:
		c.Outcome = api.Refreshed
	case len(refused) > 0:
		c.Outcome = api.Refused
	default:
		c.Outcome = api.Clean
	}
	done := fmt.Sprintf("%d modules are as their files say; nothing was to be refreshed.", modules-len(refused)-len(failed))
	if len(healed) > 0 {
		done = fmt.Sprintf("refreshed %d of %d modules, %d pages and %d words: %s.", len(healed), modules, pages, words, listed(healed))
	}
	c.Lines = append(c.Lines, fmt.Sprintf("%s (%d) at %s: %s", c.Program, c.PID, time.Now().Format(time.TimeOnly), done))
	if len(refused) > 0 {
		c.Lines = append(c.Lines, "Not refreshed: "+listed(refused)+".")
		if len(c.Refusals) > 0 {
			c.Lines = append(c.Lines, c.Refusals[0].Detail+"; "+c.Refusals[0].Remedy+".")
		}
	}
	if len(failed) > 0 {
		c.Lines = append(c.Lines, "Failed: "+listed(failed)+".")
	}
	return err
}
