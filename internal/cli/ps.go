package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// ps is `vos ps`.
func (a *app) ps() *cobra.Command {
	var quick bool
	cmd := &cobra.Command{
		Use:   "ps [PROGRAM]",
		Short: "List running programs: age, memory, modules outdated or corrupted",
		Long: `List running programs, one a row: a process together with those of its
descendants that run the same executable, such as nginx's master and workers.

OUTDATED counts modules whose file was replaced or deleted on disk since they
were mapped. CORRUPT counts modules whose running text differs from the file, by
the quick check; vos verify says where. MEMORY is the proportional set size.

A value that may not be read is shown as ?, one of which a part could be read
with a +, one that was not looked at as -. With --verbose every process is shown
below its program, with the reasons. A zombie or a thread of the kernel that is
named by its pid is refused.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported, exitGone, exitRefused, exitInterrupted),
		Example: `  vos ps
  vos ps nginx --verbose
  vos ps --json | jq -r 'select(.corrupt > 0) | .name'`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.ProgramsRequest{Target: api.Target{All: true}, Quick: quick}
			if len(args) > 0 {
				t, err := a.target(args[0])
				if err != nil {
					return err
				}
				if t.Module != "" {
					return usagef("ps takes a program, not a module; vos modules %s shows modules", t)
				}
				r.Target = t
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.listPrograms(ctx, x, r)
			})
		},
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "leave out memory and corruption, which cost most")
	return cmd
}

func (a *app) listPrograms(ctx context.Context, x api.Executive, r api.ProgramsRequest) error {
	right := func(title string, spare int) column { return column{title: title, right: true, spare: spare} }
	t := newTable(
		right("PID", 0), column{title: "PROGRAM", elastic: true}, right("AGE", 2), right("PROCS", 4),
		right("THREADS", 5), right("MEMORY", 1), right("MODULES", 3), right("OUTDATED", 0), right("CORRUPT", 0))
	var done tally
	var unread unreadCount
	err := x.Programs(ctx, r, func(p api.Program) error {
		done.good++
		unread.add(p)
		if a.json {
			p.Processes = list(p.Processes)
			return a.printJSON(p)
		}
		a.addProgram(t, p, r.Quick)
		return nil
	})
	t.print(a.stdout)
	err = a.settle(done, err)
	for _, note := range unread.notes(count(done.good, "program")) {
		a.stderr.notef("%s", note)
	}
	return err
}

// An unreadCount counts programs that could be read only in part, by what would
// help.
type unreadCount struct {
	forbidden, other int
	refused          map[string]int // by why
}

func (n *unreadCount) add(p api.Program) {
	if !p.Partial {
		return
	}
	isForbidden := func(reason string) bool { return strings.HasSuffix(reason, ": "+api.UnreadNotPermitted) }
	known := len(p.Refusals) > 0
	if known {
		if n.refused == nil {
			n.refused = map[string]int{}
		}
		r := p.Refusals[0]
		n.refused[fmt.Sprintf("%s (%s)", r.Detail, r.Code)]++
	}
	if slices.ContainsFunc(p.Unread, isForbidden) {
		n.forbidden++
		known = true
	}
	if !known {
		n.other++
	}
}

func (n *unreadCount) notes(of string) (notes []string) {
	if n.forbidden > 0 {
		notes = append(notes, fmt.Sprintf("%d of %s could be read only in part; run as root to see all", n.forbidden, of))
	}
	for _, why := range slices.Sorted(maps.Keys(n.refused)) {
		notes = append(notes, fmt.Sprintf("%d of %s could be read only in part: %s", n.refused[why], of, why))
	}
	if n.other > 0 {
		notes = append(notes, fmt.Sprintf("%d of %s could be read only in part; --verbose says why", n.other, of))
	}
	return notes
}

func (a *app) addProgram(t *table, p api.Program, quick bool) {
	partial := p.Partial || len(p.Unread) > 0
	t.add(
		text(strconv.Itoa(p.PID)),
		text(quoted(p.Name)),
		text(age(p.AgeMS)),
		text(strconv.Itoa(len(p.Processes))),
		text(strconv.Itoa(p.Threads)),
		measured(byteSize(p.PSSBytes), p.PSSBytes != 0, !quick, partial, plain),
		measured(strconv.Itoa(p.Modules), p.Modules > 0, true, partial, plain),
		measured(strconv.Itoa(p.Outdated), p.Outdated > 0, true, partial, warn),
		measured(strconv.Itoa(p.Corrupt), p.Corrupt > 0, !quick, partial, bad),
	)
	if !a.verbose {
		return
	}
	if len(p.Processes) == 1 {
		describeProcess(t, p.Processes[0])
		return
	}
	for _, q := range p.Processes {
		addProcess(t, q, quick)
		describeProcess(t, q)
	}
}

func addProcess(t *table, q api.Process, quick bool) {
	partial := len(q.Unread) > 0
	t.add(
		text(strconv.Itoa(q.PID)),
		text("  "+quoted(q.Name)),
		text(age(q.AgeMS)),
		text(""),
		text(strconv.Itoa(q.Threads)),
		measured(byteSize(q.PSSBytes), q.PSSBytes != 0, !quick, partial, plain),
		measured(strconv.Itoa(q.Modules), q.Modules > 0, true, partial, plain),
		measured(strconv.Itoa(len(q.OutdatedModules)), len(q.OutdatedModules) > 0, true, partial, warn),
		measured(strconv.Itoa(len(q.CorruptModules)), len(q.CorruptModules) > 0, !quick, partial, bad),
	)
}

// describeProcess notes below the last row what a row can't hold.
func describeProcess(t *table, q api.Process) {
	t.note(fmt.Sprintf("%s, uid %d, parent %d, state %s", quoted(q.Executable), q.UID, q.PPID, quoted(q.State)))
	noteNames(t, "outdated", q.OutdatedModules)
	noteNames(t, "corrupt", q.CorruptModules)
	for _, reason := range q.Unread {
		t.note("not read: " + escaped(reason))
	}
}

func noteNames(t *table, label string, names []string) {
	var all []string
	for _, n := range names {
		all = append(all, quoted(n))
	}
	if len(all) > 0 {
		t.note(label + ": " + strings.Join(all, ", "))
	}
}

// measured is the cell of a value that may not have been looked at (-), could
// not be read (?), or could be read in part (+). Only something found has a
// style.
func measured(value string, found, asked, partial bool, s style) cell {
	switch {
	case !asked:
		return cell{"-", faint}
	case partial && !found:
		return cell{"?", faint}
	case partial:
		return cell{value + "+", s}
	case !found:
		return text(value)
	}
	return cell{value, s}
}
