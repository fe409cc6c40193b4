package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// refresh is `vos refresh`.
func (a *app) refresh() *cobra.Command {
	var all, full, dryRun bool
	cmd := &cobra.Command{
		Use:   "refresh TARGET | --all",
		Short: "Heal running code and constants from their files, in place",
		Long: `Heal the modules of a running program: text pages that differ from the file are
given back to it, relocated constants that differ are written anew, and all is
verified afterwards. The program goes on; as a rule nobody is stopped, and one
thread is borrowed for some microseconds.

What can't be done safely is refused with the reason and a remedy, and then
nothing was touched. If vOS is interrupted, what it has begun is undone.

The table shows modules that needed something; --verbose shows the clean ones
too. With --dry-run the very plan is printed that would be carried out, and the
exit code is 10 if there is one.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos refresh nginx
  vos refresh nginx:libz.so.1 --dry-run
  vos refresh --all --timeout 2m --json`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.targetOrAll(cmd, args, all)
			if err != nil {
				return err
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.refreshModules(ctx, x, api.RefreshRequest{Target: t, DryRun: dryRun, Full: full, Steps: a.verbose})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every program of this machine")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be done, and do nothing")
	cmd.Flags().BoolVar(&full, "full", false, "compare every page first, not only the process's own")
	return cmd
}

func (a *app) refreshModules(ctx context.Context, x api.Executive, r api.RefreshRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 7},
		column{title: "MODULE", elastic: true},
		column{title: "OUTCOME"},
		column{title: "PAGES", right: true},
		column{title: "WORDS", right: true},
		column{title: "STOPPED", right: true, spare: 1},
		column{title: "BORROWED", right: true, spare: 2},
		column{title: "TOTAL", right: true, spare: 3})
	n := refreshCount{outcomes: map[api.Outcome]int{}, processes: map[int]bool{}}
	a.startProgress()
	err := x.Refresh(ctx, r, func(op api.Operation) error {
		n.add(op)
		a.stderr.report(func() string {
			return fmt.Sprintf("looked at %s in %s, %d refreshed …",
				count(n.modules, "module"), count(len(n.seen), "process"), n.outcomes[api.Refreshed])
		})
		a.explain(op, "still differs")
		switch {
		case a.json:
			op.Residual, op.Refusals = list(op.Residual), list(op.Refusals)
			return a.printJSON(op)
		case op.Outcome != api.Clean || a.verbose || r.Target.Module != "":
			addOperation(t, op)
		}
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	err = a.settle(n.tally, err)
	if n.modules > 0 {
		a.stderr.notef("%s", n.summary())
	}
	return err
}

// explain prints on standard error what a row can't hold: why a module was
// refused or failed, and what is left, which residual says in a word.
func (a *app) explain(op api.Operation, residual string) {
	where := place(op.Module, op.PID)
	for _, r := range op.Refusals {
		a.stderr.refusal(where, r)
	}
	if op.Outcome == api.Failed {
		cause := op.Error
		if cause == "" {
			cause = "no cause was given"
		}
		a.stderr.errorf("%s: %s", where, cause)
	}
	for _, left := range op.Residual {
		a.stderr.notef("%s: %s: %s", where, residual, left)
	}
}

func addOperation(t *table, op api.Operation) {
	styles := map[api.Outcome]style{
		api.Refreshed: good, api.Planned: bold, api.Refused: warn, api.Failed: bad,
	}
	t.add(
		text(strconv.Itoa(op.PID)),
		text(quoted(op.Program)),
		text(quoted(op.Module)),
		cell{quoted(string(op.Outcome)), styles[op.Outcome]},
		text(strconv.Itoa(op.Pages)),
		text(strconv.Itoa(op.Words)),
		text(pauseOrNone(op.PauseUS)),
		text(pauseOrNone(op.BorrowUS)),
		text(pauseOrNone(op.TotalUS)),
	)
	for _, step := range op.Steps {
		t.note(escaped(step))
	}
}

// A refreshCount is what the summary of vos refresh says.
type refreshCount struct {
	tally
	modules      int
	outcomes     map[api.Outcome]int
	pages, words int          // of what was, or would be, refreshed
	processes    map[int]bool // with a module refreshed or planned
	seen         map[int]bool
	cost         cost
}

func (n *refreshCount) add(op api.Operation) {
	n.modules++
	n.outcomes[op.Outcome]++
	if n.seen == nil {
		n.seen = map[int]bool{}
	}
	n.seen[op.PID] = true
	n.cost.add(op)
	switch op.Outcome {
	case api.Refreshed, api.Planned:
		n.good++
		n.pages += op.Pages
		n.words += op.Words
		n.processes[op.PID] = true
		if op.Outcome == api.Planned {
			n.pending = true
		} else {
			n.changed++
		}
	case api.Clean:
		n.good++
	case api.Refused:
		n.refused++
	default:
		n.failed++
	}
}

func (n *refreshCount) summary() string {
	refreshed, planned := n.outcomes[api.Refreshed], n.outcomes[api.Planned]
	var s string
	switch work := fmt.Sprintf("(%s, %s) in %s", count(n.pages, "page"), count(n.words, "word"),
		count(len(n.processes), "process")); {
	case planned > 0:
		s = fmt.Sprintf("would refresh %s %s; nothing was touched", count(planned, "module"), work)
	case refreshed > 0:
		s = fmt.Sprintf("refreshed %s %s; %s", count(refreshed, "module"), work, n.cost)
	default:
		s = "nothing refreshed"
		if n.cost != (cost{}) {
			s += "; " + n.cost.String()
		}
	}
	if clean := n.outcomes[api.Clean]; clean > 0 {
		s += fmt.Sprintf("; %d clean", clean)
	}
	return s + n.troubles()
}
