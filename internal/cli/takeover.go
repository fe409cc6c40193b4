package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/virtualizing-os/vos/internal/api"
)

// A takeover is the words of a command that lets another build take over.
type takeover struct {
	done    api.Outcome
	verb    string // to do it
	past    string // it was done
	clean   string // why a module needs nothing
	nothing string // there was no module to look at
}

var (
	replacing = takeover{
		done: api.Replaced, verb: "replace", past: "replaced",
		clean: "that build runs already", nothing: "no module is outdated",
	}
	rollingBack = takeover{
		done: api.RolledBack, verb: "roll back", past: "rolled back",
		clean: "not replaced", nothing: "no module is replaced",
	}
)

// takeOver carries out vos replace or vos rollback and prints what comes back.
func (a *app) takeOver(words takeover, target api.Target, run func(tell func(api.Progress), emit func(api.Operation) error) error) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 1},
		column{title: "MODULE", elastic: true},
		column{title: "OUTCOME"},
		column{title: "FROM→TO", spare: 3},
		column{title: "FUNCTIONS", right: true, spare: 2},
		column{title: "STOPPED", right: true},
		column{title: "BORROWED", right: true, spare: 4},
		column{title: "TOTAL", right: true, spare: 5})
	n := takeoverCount{words: words, outcomes: map[api.Outcome]int{}, processes: map[int]bool{}, seen: map[int]bool{}, told: map[string]int{}}
	a.startProgress()
	inspected := 0
	err := run(func(p api.Progress) {
		inspected = p.Inspected
		a.stderr.report(func() string { return planningProgress(p) })
	}, func(op api.Operation) error {
		n.add(op)
		a.explainTakeover(op, n.told)
		switch {
		case a.json:
			op.Residual, op.Refusals = list(op.Residual), list(op.Refusals)
			return a.printJSON(op)
		case op.Outcome != api.Clean || a.verbose || target.Module != "":
			a.addTakeover(t, op)
		}
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	nothing := n.modules == 0 && err == nil
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		// Processes that had no such module are as they should be, where others
		// could not be looked into.
		n.good += max(0, inspected-len(n.seen))
	}
	err = a.settle(n.tally, err)
	switch {
	case n.modules > 0:
		a.stderr.notef("%s", n.summary())
	case nothing:
		a.stderr.notef("nothing %s: %s", words.past, words.nothing)
	}
	return err
}

// planningProgress says how far planning has come, and then how far carrying out.
func planningProgress(p api.Progress) string {
	if p.Settled > 0 {
		return fmt.Sprintf("carried out %d of %s …", p.Settled, count(p.Planned, "plan"))
	}
	return fmt.Sprintf("looked into %d of %s, %s planned …", p.Inspected, count(p.Processes, "process"), count(p.Planned, "module"))
}

// alikeShown is how many refusals of one code, and how many calls that stay in
// the old code, are told of a module without -v.
const alikeShown = 3

// explainTakeover explains an operation, and without -v in brief: two builds
// have many differences of one kind, and all processes of a program the same.
func (a *app) explainTakeover(op api.Operation, told map[string]int) {
	const residual = "stays in the old code"
	if a.verbose {
		a.noteFinishing(op)
		a.explain(op, residual)
		return
	}
	a.noteFinishing(op)
	where := place(op.Module, op.PID)
	if len(op.Refusals)+len(op.Residual) > 0 {
		key := fmt.Sprintf("%q %q %q %q", op.Program, op.Path, op.Refusals, op.Residual)
		if first, ok := told[key]; ok {
			if len(op.Refusals) > 0 {
				a.stderr.line(warn, "refused: ", fmt.Sprintf("%s: as in %d", where, first))
			} else {
				a.stderr.notef("%s: %s as in %d", where, residual, first)
			}
			op.Refusals, op.Residual = nil, nil
		} else {
			told[key] = op.PID
		}
	}
	op.Refusals = fewOfEach(op.Refusals)
	more := len(op.Residual) - alikeShown
	if more > 0 {
		op.Residual = op.Residual[:alikeShown]
	}
	a.explain(op, residual)
	if more > 0 {
		a.stderr.notef("%s: %s: %d more; --verbose names them", where, residual, more)
	}
}

// noteFinishing tells what became of threads that were within the build before.
func (a *app) noteFinishing(op api.Operation) {
	switch where, were := place(op.Module, op.PID), count(op.Finishing, "thread"); {
	case op.Remaining > 0:
		a.stderr.notef("%s: of %s within the build before %d may still be, and finish there", where, were, op.Remaining)
	case op.DrainedUS > 0 && a.verbose:
		a.stderr.notef("%s: all of %s within the build before had left it after %s", where, were, pause(op.DrainedUS))
	}
}

// fewOfEach returns the first refusals of each code; the last of them says that
// there are more.
func fewOfEach(all []api.Refusal) []api.Refusal {
	var few []api.Refusal
	last := map[api.Code]int{}
	count := map[api.Code]int{}
	for _, r := range all {
		switch count[r.Code]++; {
		case count[r.Code] <= alikeShown:
			last[r.Code] = len(few)
			few = append(few, r)
		case count[r.Code] == alikeShown+1:
			few[last[r.Code]].Detail += " (and more like this; --verbose names them)"
		}
	}
	return few
}

func (a *app) addTakeover(t *table, op api.Operation) {
	styles := map[api.Outcome]style{
		api.Replaced: good, api.RolledBack: good, api.Planned: bold, api.Refused: warn, api.Failed: bad,
	}
	functions := "-"
	if op.Functions > 0 {
		functions = strconv.Itoa(op.Functions)
	}
	t.add(
		text(strconv.Itoa(op.PID)),
		text(quoted(op.Program)),
		text(quoted(op.Module)),
		cell{quoted(string(op.Outcome)), styles[op.Outcome]},
		text(fromTo(op.From, op.To)),
		text(functions),
		text(pauseOrNone(op.PauseUS)),
		text(pauseOrNone(op.BorrowUS)),
		text(pauseOrNone(op.TotalUS)),
	)
	if a.verbose {
		if op.From != op.To {
			t.note("from build-id " + known(quoted(op.From)))
		}
		t.note(fmt.Sprintf("to build-id %s, generation %d", known(quoted(op.To)), op.Generation))
	}
	for _, step := range op.Steps {
		t.note(escaped(step))
	}
}

// pairedBuildID is how many digits of a build-id are shown where two stand in
// one column.
const pairedBuildID = 8

// fromTo names the builds before and after by the begin of their build-ids.
func fromTo(from, to string) string {
	short := func(id string) string { return known(quoted(id[:min(len(id), pairedBuildID)])) }
	switch {
	case from == to && from == "":
		return ""
	case from == to:
		return short(from)
	}
	return short(from) + "→" + short(to)
}

// A takeoverCount is what the summary of vos replace or vos rollback says.
type takeoverCount struct {
	tally
	words     takeover
	modules   int
	outcomes  map[api.Outcome]int
	functions int            // of what was, or would be, done
	processes map[int]bool   // with a module done or planned
	seen      map[int]bool   // with an operation
	told      map[string]int // by what was said of a module: of which process first
	cost      cost
}

func (n *takeoverCount) add(op api.Operation) {
	n.modules++
	n.outcomes[op.Outcome]++
	n.seen[op.PID] = true
	n.cost.add(op)
	switch op.Outcome {
	case n.words.done, api.Planned:
		n.good++
		n.functions += op.Functions
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

func (n *takeoverCount) summary() string {
	done, planned := n.outcomes[n.words.done], n.outcomes[api.Planned]
	var s string
	switch where := count(len(n.processes), "process"); {
	case planned > 0:
		s = fmt.Sprintf("would %s %s in %s; nothing was touched", n.words.verb, count(planned, "module"), where)
	case done > 0:
		s = fmt.Sprintf("%s %s in %s", n.words.past, count(done, "module"), where)
		if n.functions > 0 {
			s += fmt.Sprintf(" (%s)", count(n.functions, "function"))
		}
		s += "; " + n.cost.String()
	default:
		s = "nothing " + n.words.past
		if n.cost != (cost{}) {
			s += "; " + n.cost.String()
		}
	}
	if clean := n.outcomes[api.Clean]; clean > 0 {
		s += fmt.Sprintf("; %d clean: %s", clean, n.words.clean)
	}
	return s + n.troubles()
}
