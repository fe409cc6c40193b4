package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// watchEvery is how often vos usage --watch reads.
const watchEvery = 2 * time.Second

// usage is `vos usage`.
func (a *app) usage() *cobra.Command {
	var r api.UsageRequest
	var watch, stop, folded bool
	cmd := &cobra.Command{
		Use:   "usage TARGET",
		Short: "Show what the modules of a running program call, allocate and hold",
		Long: `Show how many functions each module of a running program imports, how many of
them it has called, and how often; with --memory also what it allocated and
freed, and what it owns. Reading costs the program nothing. If its calls are
not counted yet, vos usage attaches first (vos attach says what that means) and
leaves it so: numbers are since then. --stop takes it out again afterwards.

HELD is what a module allocated itself less what it freed itself: it is exact,
and negative of one that frees what others allocate. OWNED is what it allocated
and nobody has freed, whoever might have: it is estimated from samples, one in
512 KiB. GROWS is yes where what a module owns grew in each quarter of the
time, and by more than three standard errors in all: it leaks, or fills a cache
all the while. OPENS and CLOSES count calls that open or close descriptors,
whether they succeed or not.

--for takes several readings, and gives rates. --watch reads every two seconds
until it is interrupted, and adds modules that are loaded meanwhile. --folded
prints where memory was allocated that nobody has freed, as flame graph tools
read it: lines PROGRAM;MODULE;CALLER;FUNCTION BYTES.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitInterrupted),
		Example: `  vos usage nginx --for 10s
  vos usage python3:libxml2.so.2 --memory --for 1m
  vos usage redis-server --functions
  vos usage nginx --for 10s --stop --json
  vos usage nginx --folded | flamegraph.pl --countname bytes >owned.svg`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("usage needs a target, PROGRAM or PROGRAM:MODULE")
			}
			return atMostOneTarget(cmd, args)
		},
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(args[0])
			switch {
			case err != nil:
				return err
			case r.For < 0:
				return usagef("--for %v is negative", r.For)
			case watch && (r.For > 0 || stop || folded):
				return usagef("--watch reads until it is interrupted; leave --for, --stop and --folded out")
			case folded && (a.json || r.Functions):
				return usagef("--folded has a format of its own; leave --json and --functions out")
			}
			if watch {
				r.Every = watchEvery
				a.watches.Store(true)
			}
			r.Target, r.Samples, r.Memory = t, folded, r.Memory || folded
			r.Attach = !stop || r.For > 0
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.showUsage(ctx, x, r, stop)
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.DurationVar(&r.For, "for", 0, "read again after this `duration` (10s, 5m), for rates and growth")
	flags.BoolVar(&watch, "watch", false, "read every two seconds until interrupted")
	flags.BoolVar(&r.Memory, "memory", false, "count the bytes that modules allocate and free, too")
	flags.BoolVar(&r.Functions, "functions", false, "show every function that was called")
	flags.BoolVar(&folded, "folded", false, "print where memory was allocated, for flame graphs")
	flags.BoolVar(&stop, "stop", false, "take out what counts, afterwards")
	return cmd
}

// showUsage prints what was counted, and then takes out what counts if that is asked.
func (a *app) showUsage(ctx context.Context, x api.Executive, r api.UsageRequest, stop bool) error {
	var n tally
	processes := map[int]bool{}
	err := x.Usage(ctx, r, func(report api.UsageReport) error {
		a.noteAttached(&n, report, r.Target, stop)
		for _, i := range report.Interceptions {
			if a.json && (i.Outcome == api.Refused || i.Outcome == api.Failed) {
				i.Residual, i.Refusals = list(i.Residual), list(i.Refusals)
				if err := a.printJSON(i); err != nil {
					return err
				}
			}
		}
		for _, pid := range report.Ended {
			a.stderr.notef("%d has ended meanwhile", pid)
		}
		for _, u := range report.Usages {
			if !processes[u.PID] {
				processes[u.PID] = true
				n.good++
			}
		}
		return a.printUsage(report, r)
	})
	if stop && (err == nil || len(processes) > 0) {
		stopped := x.Detach(context.WithoutCancel(ctx), api.DetachRequest{Target: programOf(r.Target)}, func(i api.Interception) error {
			a.noteDetached(&n, i)
			return nil
		})
		err = errors.Join(err, stopped)
	}
	if len(processes) == 0 && err == nil && n.refused+n.failed == 0 {
		a.stderr.notef("nothing is counted")
	}
	return a.settle(n, err)
}

// programOf is a target without its module.
func programOf(t api.Target) api.Target {
	t.Module = ""
	return t
}

// noteAttached says what was put into processes to count.
func (a *app) noteAttached(n *tally, report api.UsageReport, target api.Target, stop bool) {
	attached, anew, slots, stopped := 0, 0, 0, int64(0)
	for _, i := range report.Interceptions {
		switch i.Outcome {
		case api.Attached:
			n.changed++
			attached++
			slots += i.Slots
			stopped = max(stopped, i.PauseUS)
			if i.Restarted {
				anew++
			}
			continue
		case api.Refused:
			n.refused++
		case api.Failed:
			n.failed++
		}
		a.explainInterception(i)
	}
	if attached == 0 {
		return
	}
	where, cost := count(attached, "process"), pause(stopped)
	switch {
	case report.Round > 0:
		a.stderr.notef("added %s in %s, stopped for %s (worst)", count(slots, "import slot"), where, cost)
	case stop:
		a.stderr.notef("attached %s, stopped for %s (worst)", where, cost)
	default:
		a.stderr.notef("attached %s, stopped for %s (worst); counts go on until vos usage %s --stop", where, cost, quoted(target.Program))
	}
	if anew > 0 {
		a.stderr.notef("counts of %s begin anew, with memory", count(anew, "process"))
	}
}

func (a *app) noteDetached(n *tally, i api.Interception) {
	where := place(i.Program, i.PID)
	i.Uncounted = nil
	a.explainInterception(i)
	switch i.Outcome {
	case api.Refused:
		n.refused++
	case api.Failed:
		n.failed++
	case api.Detached:
		n.good++
		n.changed++
		a.stderr.notef("%s: detached, stopped for %s", where, pause(i.PauseUS))
	default:
		n.good++
	}
}

// printUsage prints one reading.
func (a *app) printUsage(report api.UsageReport, r api.UsageRequest) error {
	switch {
	case r.Samples:
		for _, s := range report.Samples {
			fmt.Fprintf(a.stdout, "%s;%s;%s;%s %d\n", frame(s.Program), frame(s.Module), frame(s.Caller), frame(s.Function), s.Bytes)
		}
	case a.json:
		for _, u := range report.Usages {
			if err := a.printJSON(u); err != nil {
				return err
			}
		}
		return nil
	default:
		switch {
		case r.Every > 0 && a.stdout.terminal && os.Getenv("TERM") != "dumb":
			a.stdout.WriteString("\x1b[H\x1b[2J") // home, clear
		case report.Round > 0:
			a.stdout.WriteString("\n")
		}
		a.usageTable(report, r).print(a.stdout)
	}
	if err := a.stdout.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if r.Every > 0 || r.Samples {
		return nil
	}
	idle := 0
	for _, u := range report.Usages {
		if a.explainUsage(u); a.isIdle(u, r) {
			idle++
		}
	}
	if idle > 0 {
		a.stderr.notef("%s without a call left out; --verbose shows them", count(idle, "module"))
	}
	return nil
}

// isIdle reports a module that a table leaves out.
func (a *app) isIdle(u api.Usage, r api.UsageRequest) bool {
	return u.Calls == 0 && !a.verbose && r.Target.Module == ""
}

// frame is a name as flame graph tools read it: it ends at a semicolon or space.
func frame(name string) string {
	name = strings.ReplaceAll(name, ";", "_")
	if name == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return '_'
		}
		return r
	}, escaped(name))
}

func (a *app) explainUsage(u api.Usage) {
	where := place(u.Module, u.PID)
	if u.Grows {
		a.stderr.notef("%s: what it owns grows by %s a second (standard error %s)", where,
			byteSize(int64(u.OwnedBytesPerSecond)), byteSize(int64(float64(u.OwnedErrorBytes)/(float64(u.ForUS)/1e6))))
	}
	if a.verbose {
		a.explainUncounted(fmt.Sprintf("%s in %d", quoted(u.Program), u.PID), u.Uncounted)
	}
}

func (a *app) usageTable(report api.UsageReport, r api.UsageRequest) *table {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 4},
		column{title: "MODULE", elastic: true},
		column{title: "IMPORTED", right: true, spare: 1},
		column{title: "USED", right: true},
		column{title: "CALLS", right: true},
		column{title: "CALLS/S", right: true, rare: true},
		column{title: "OPENS", right: true, spare: 5},
		column{title: "CLOSES", right: true, spare: 5},
		column{title: "ALLOCATED", right: true, rare: true, spare: 2},
		column{title: "FREED", right: true, rare: true, spare: 3},
		column{title: "HELD", right: true, rare: true},
		column{title: "OWNED", right: true, rare: true},
		column{title: "OWNED/S", right: true, rare: true},
		column{title: "GROWS", rare: true})
	for _, u := range report.Usages {
		if a.isIdle(u, r) {
			continue
		}
		cells := []cell{
			text(strconv.Itoa(u.PID)), text(quoted(u.Program)), text(quoted(u.Module)),
			text(strconv.Itoa(u.Imported)), text(strconv.Itoa(u.Used)), text(strconv.FormatUint(u.Calls, 10)),
			text(""), text(strconv.FormatUint(u.Opens, 10)), text(strconv.FormatUint(u.Closes, 10)),
		}
		if u.ForUS > 0 {
			cells[6] = text(perSecond(u.CallsPerSecond))
		}
		if u.Memory {
			cells = append(cells, text(byteSize(u.AllocatedBytes)), text(byteSize(u.FreedBytes)), text(signedSize(u.HeldBytes)), text(byteSize(u.OwnedBytes)))
			if u.ForUS > 0 {
				grows := text("-")
				if u.Grows {
					grows = cell{"yes", warn}
				}
				cells = append(cells, text(signedSize(int64(u.OwnedBytesPerSecond))), grows)
			}
		}
		t.add(cells...)
		for _, f := range u.Functions {
			t.note(functionNote(u, f))
		}
	}
	return t
}

func functionNote(u api.Usage, f api.FunctionUsage) string {
	s := fmt.Sprintf("%12d", f.Calls)
	if u.ForUS > 0 {
		s += fmt.Sprintf(" %9s/s", perSecond(f.CallsPerSecond))
	}
	s += "  " + quoted(f.Function)
	if f.Of != "" {
		s += " of " + quoted(f.Of)
	}
	if f.AllocatedBytes > 0 {
		s += ", allocated " + byteSize(f.AllocatedBytes)
	}
	if f.FreedBytes > 0 {
		s += ", freed " + byteSize(f.FreedBytes)
	}
	return s
}

// perSecond formats a rate.
func perSecond(v float64) string {
	if v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// signedSize is byteSize of a number that may be negative.
func signedSize(n int64) string {
	if n < 0 {
		return "-" + byteSize(-n)
	}
	return byteSize(n)
}
