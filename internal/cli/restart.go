package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// restart is `vos restart`.
func (a *app) restart() *cobra.Command {
	var r api.RestartRequest
	cmd := &cobra.Command{
		Use:   "restart TARGET",
		Short: "Give a running program fresh memory, with its state",
		Long: `Make the memory of a running program anew, in place: heap, stacks of threads and what
else is its own move to fresh pages and fresh mappings; pages of nothing but zeroes
are given back. Its state stays, and so do its process and thread ids, its parent,
children, terminal, descriptors and connections: who supervises it sees nothing.

It goes in rounds of some milliseconds, for which the program is stopped; between two
it runs. If vos is killed meanwhile the program runs on, with a part of its memory
fresh. Text and data of modules are what vos refresh and vos replace are for. What is
shared, locked, watched or of a file stays as it is; --verbose lists it.

Where kernel objects are to be fresh, too, vos checkpoint ends the program and vos
restore builds it again.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos restart redis-server
  vos restart 1234 --dry-run --verbose`,
		Args:              oneProgram,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.programTarget(cmd, args[0])
			if err != nil {
				return err
			}
			r.Target = t
			r.Progress = a.snapshotProgress("fresh")
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.restartPrograms(ctx, x, r) })
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "tell what would be made anew, and change nothing")
	return cmd
}

func (a *app) restartPrograms(ctx context.Context, x api.Executive, r api.RestartRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", elastic: true},
		column{title: "OUTCOME"},
		column{title: "FRESH", right: true},
		column{title: "RESIDENT", spare: 2},
		column{title: "MAPPINGS", spare: 3},
		column{title: "STOPPED", right: true, spare: 1},
		column{title: "TOTAL", right: true})
	var n tally
	a.startProgress()
	err := x.Restart(ctx, r, func(s api.Restart) error {
		a.count(&n, fmt.Sprintf("%s (%d)", quoted(s.Program), s.PID), s.Outcome, s.Refusals, s.Error)
		if a.json {
			s.Left, s.Refusals = list(s.Left), list(s.Refusals)
			return a.printJSON(s)
		}
		a.addRestart(t, s)
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	return a.settle(n, err)
}

func (a *app) addRestart(t *table, s api.Restart) {
	styles := map[api.Outcome]style{api.Restarted: good, api.Planned: bold, api.Refused: warn, api.Failed: bad}
	resident, mappings, stopped := "-", "-", "-"
	if s.Rounds > 0 {
		resident = byteSize(s.Before.ResidentBytes) + " → " + byteSize(s.After.ResidentBytes)
		mappings = fmt.Sprintf("%d → %d", s.Before.Mappings, s.After.Mappings)
		stopped = fmt.Sprintf("%d × ≤ %s", s.Rounds, pauseOrNone(s.FreezeUS))
	}
	t.add(
		text(strconv.Itoa(s.PID)),
		text(quoted(s.Program)),
		cell{quoted(string(s.Outcome)), styles[s.Outcome]},
		text(byteSize(s.Bytes)),
		text(resident),
		text(mappings),
		text(stopped),
		text(pauseOrNone(s.TotalUS)))
	if a.verbose {
		for _, l := range s.Left {
			t.note(fmt.Sprintf("left: %d mappings of %s: %s", l.Mappings, byteSize(l.Bytes), l.Reason))
		}
	}
}
