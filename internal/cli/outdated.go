package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// outdated is `vos outdated`.
func (a *app) outdated() *cobra.Command {
	return &cobra.Command{
		Use:   "outdated [TARGET]",
		Short: "List programs that run modules whose file was replaced on disk",
		Long: `List the programs that still run a module (executable, library or loader) whose
file was replaced or deleted on disk since it was mapped, as an upgrade does.
Without a target every program of the machine is looked at.

Files are compared as the program sees them: in its own root directory and
mount namespace. A file that was replaced by the same bytes is not listed, nor
is memory that never had a file, nor code that is no ELF object. A module that
was deleted from a folder for temporary files (/tmp, /var/tmp, /dev/shm, /run)
is shown with --verbose only: programs do so with what they unpack for
themselves.

PACKAGE and INSTALLED are what dpkg or else rpm knows below the program's root
directory; RUNNING is what the log of dpkg or dnf says of the time when the
running file was made. In their place stands the begin of the build-id where no
version is known, ? where neither is, and - where nothing took the place of a
deleted file. An rpm database is read by this machine's own rpm, a container's
too. UNIT is the systemd service to restart, where the control group tells it.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos outdated
  vos outdated nginx:libssl.so.3 --verbose
  vos outdated --json | jq -r 'select(.verdict == "restart") | .unit' | sort -u`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.OutdatedRequest{Target: api.Target{All: true}}
			if len(args) > 0 {
				t, err := a.target(args[0])
				if err != nil {
					return err
				}
				r.Target = t
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.listOutdated(ctx, x, r)
			})
		},
	}
}

// An outdatedRow is the same module, outdated in the same way, of all processes
// of a program.
type outdatedRow struct {
	api.OutdatedModule
	pids []int
}

// same reports whether a module of another process belongs in the row.
func (r *outdatedRow) same(m api.OutdatedModule) bool {
	return r.Program == m.Program && r.Unit == m.Unit && r.UserUnit == m.UserUnit && r.Container == m.Container &&
		r.Module == m.Module && r.Path == m.Path && r.Change == m.Change && r.Verdict == m.Verdict &&
		r.RunningVersion == m.RunningVersion && r.InstalledVersion == m.InstalledVersion &&
		r.RunningBuildID == m.RunningBuildID && r.InstalledBuildID == m.InstalledBuildID
}

// An outdatedCount is what the summary of vos outdated says.
type outdatedCount struct {
	tally
	processes, modules int
	outdated           int // processes
	temporary          int // modules deleted from folders for temporary files
	unknown            int // modules that could not be compared
	rows               []outdatedRow
}

func (a *app) listOutdated(ctx context.Context, x api.Executive, r api.OutdatedRequest) error {
	var n outdatedCount
	a.startProgress()
	err := x.Outdated(ctx, r, func(c api.Currency) error {
		n.add(c)
		a.stderr.report(func() string {
			return fmt.Sprintf("looked at %s, %d outdated …", count(n.processes, "process"), n.outdated)
		})
		for i, u := range c.Unknown {
			if n.unknown-len(c.Unknown)+i < errorsShown || a.verbose {
				a.stderr.refusal(place(u.Module, c.PID), u.Refusal)
			}
		}
		if !a.json {
			return nil
		}
		return a.printCurrency(c)
	})
	a.stderr.endProgress()
	if !a.json {
		a.outdatedTable(n.rows).print(a.stdout)
	}
	err = a.settle(n.tally, err)
	if n.unknown > errorsShown && !a.verbose {
		a.stderr.notef("%s could not be compared; --verbose names all", count(n.unknown, "module"))
	}
	if n.temporary > 0 && !a.verbose && !a.json {
		a.stderr.notef("%s that programs deleted from folders for temporary files not shown; --verbose shows them",
			count(n.temporary, "module"))
	}
	if n.processes > 0 {
		a.stderr.notef("%s", n.summary())
	}
	return err
}

func (a *app) printCurrency(c api.Currency) error {
	for _, m := range c.Outdated {
		m.Refusals = list(m.Refusals)
		if err := a.printJSON(m); err != nil {
			return err
		}
	}
	for _, u := range c.Unknown {
		if err := a.printJSON(unverified{c.PID, c.Program, u.Module, u.Path, []api.Refusal{u.Refusal}}); err != nil {
			return err
		}
	}
	return nil
}

func (n *outdatedCount) add(c api.Currency) {
	n.processes++
	n.modules += c.Modules
	n.unknown += len(c.Unknown)
	if len(c.Unknown) > 0 {
		n.refused++
	}
	if len(c.Unknown) < c.Modules {
		n.good++
	}
	work := false
	for _, m := range c.Outdated {
		if m.Verdict == api.VerdictNone {
			n.temporary++
		} else {
			work = true
		}
		i := slices.IndexFunc(n.rows, func(r outdatedRow) bool { return r.same(m) })
		if i < 0 {
			i = len(n.rows)
			n.rows = append(n.rows, outdatedRow{OutdatedModule: m})
		}
		n.rows[i].pids = append(n.rows[i].pids, c.PID)
	}
	if work {
		n.outdated++
		n.pending = true
	}
}

// summary says how much was looked at, and what would help.
func (n *outdatedCount) summary() string {
	looked := fmt.Sprintf("looked at %s in %s: ", count(n.modules, "module"), count(n.processes, "process"))
	if n.outdated == 0 {
		return looked + "nothing outdated" + n.uncertain()
	}
	var units, others, replaceable []string
	for _, r := range n.rows {
		switch {
		case r.Verdict == api.VerdictReplace:
			replaceable = append(replaceable, quoted(r.Program))
		case r.Verdict != api.VerdictRestart:
		case r.Unit != "" && !r.UserUnit:
			units = append(units, quoted(r.Unit))
		default:
			others = append(others, quoted(r.Program))
		}
	}
	s := fmt.Sprintf("%s%s outdated", looked, count(n.outdated, "process"))
	for _, kind := range []struct {
		label string
		names []string
	}{{"; vos replace --outdated helps ", replaceable}, {"; restart the services ", units}, {"; restart ", others}} {
		slices.Sort(kind.names)
		if names := slices.Compact(kind.names); len(names) > 0 {
			s += kind.label + strings.Join(names, " ")
		}
	}
	return s + n.uncertain()
}

func (n *outdatedCount) uncertain() string {
	if n.unknown == 0 {
		return ""
	}
	return fmt.Sprintf("; %s could not be compared", count(n.unknown, "module"))
}

// outdatedTable is a row a module of a program, programs that are to be
// restarted together one below the other.
func (a *app) outdatedTable(rows []outdatedRow) *table {
	t := newTable(
		column{title: "PROGRAM", elastic: true},
		column{title: "PIDS", elastic: true, spare: 2},
		column{title: "UNIT", elastic: true, spare: 1},
		column{title: "MODULE", elastic: true},
		column{title: "PACKAGE", elastic: true, spare: 3},
		column{title: "RUNNING", elastic: true},
		column{title: "INSTALLED", elastic: true},
		column{title: "CHANGE", spare: 4},
		column{title: "HELPS", spare: 5})
	slices.SortStableFunc(rows, func(x, y outdatedRow) int {
		return cmp.Or(strings.Compare(x.Program, y.Program), strings.Compare(x.Unit, y.Unit), strings.Compare(x.Container, y.Container))
	})
	for _, r := range rows {
		if r.Verdict == api.VerdictNone && !a.verbose {
			continue
		}
		t.add(
			text(quoted(r.Program)),
			text(a.pidList(r.pids)),
			text(quoted(r.Unit)),
			text(quoted(r.Module)),
			text(quoted(r.Package)),
			cell{buildName(r.RunningVersion, r.RunningBuildID), warn},
			text(installed(r.OutdatedModule)),
			text(quoted(r.Change)),
			text(quoted(string(r.Verdict))),
		)
		a.noteOutdated(t, r)
	}
	return t
}

func (a *app) noteOutdated(t *table, r outdatedRow) {
	if !a.verbose {
		return
	}
	t.note(quoted(r.Path))
	t.note(fmt.Sprintf("build-id %s, on disk %s", known(quoted(r.RunningBuildID)), known(quoted(r.InstalledBuildID))))
	if r.Container != "" {
		t.note("in container " + quoted(r.Container))
	}
	if r.PackageProblem != "" {
		t.note(escaped("no package: " + r.PackageProblem))
	}
	if r.UserUnit {
		t.note("the unit is one of the user's own: systemctl --user")
	}
	if r.Verdict == api.VerdictNone {
		t.note("deleted from a folder for temporary files: nothing newer exists")
	}
	for _, refusal := range r.Obstacles {
		t.note(escaped(fmt.Sprintf("can't be replaced: %s: %s (%s)", refusal.Subject, refusal.Detail, refusal.Code)))
	}
	for _, refusal := range r.Refusals {
		t.note(escaped(fmt.Sprintf("not read: %s (%s)", refusal.Detail, refusal.Code)))
		if refusal.Remedy != "" {
			t.note(escaped("  remedy: " + refusal.Remedy))
		}
	}
}

// buildName names a build by its version, or else by the begin of its build-id.
func buildName(version, id string) string {
	if version != "" || id == "" {
		return known(quoted(version))
	}
	return quoted(id[:min(len(id), shortBuildID)])
}

// installed names the build that is on disk, "-" where nothing is.
func installed(m api.OutdatedModule) string {
	if m.Change == api.FileDeleted && m.InstalledVersion == "" && m.InstalledBuildID == "" {
		return "-"
	}
	return buildName(m.InstalledVersion, m.InstalledBuildID)
}

func known(s string) string {
	if s == "" {
		return "?"
	}
	return s
}

// pidsShown is how many pids of a program a table shows without -v.
const pidsShown = 4

func (a *app) pidList(pids []int) string {
	var all []string
	for i, pid := range pids {
		if i == pidsShown && !a.verbose {
			all = append(all, fmt.Sprintf("+%d", len(pids)-i))
			break
		}
		all = append(all, strconv.Itoa(pid))
	}
	return strings.Join(all, ",")
}
