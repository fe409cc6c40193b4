package cli

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/virtualizing-os/vos/internal/api"
)

// An interceptionWords is the words of vos attach or vos detach.
type interceptionWords struct {
	done  api.Outcome
	verb  string // to do it
	clean string // why a process needs nothing
}

var (
	attaching = interceptionWords{done: api.Attached, verb: "attach", clean: "counted already"}
	detaching = interceptionWords{done: api.Detached, verb: "detach", clean: "nothing is counted"}
)

// intercept carries out vos attach or vos detach and prints what comes back.
func (a *app) intercept(words interceptionWords, run func(emit func(api.Interception) error) error) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", elastic: true},
		column{title: "OUTCOME"},
		column{title: "MODULES", right: true, spare: 1},
		column{title: "FUNCTIONS", right: true},
		column{title: "SLOTS", right: true, spare: 2},
		column{title: "MEMORY", spare: 3},
		column{title: "STOPPED", right: true},
		column{title: "BORROWED", right: true, spare: 4},
		column{title: "TOTAL", right: true, spare: 5})
	n := interceptionCount{words: words, outcomes: map[api.Outcome]int{}}
	a.startProgress()
	err := run(func(i api.Interception) error {
		n.add(i)
		a.stderr.report(func() string { return fmt.Sprintf("looked into %s …", count(n.processes, "process")) })
		a.explainInterception(i)
		if a.json {
			i.Residual, i.Refusals = list(i.Residual), list(i.Refusals)
			return a.printJSON(i)
		}
		addInterception(t, i)
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	err = a.settle(n.tally, err)
	if n.processes > 0 {
		a.stderr.notef("%s", n.summary())
	}
	return err
}

// explainInterception prints on standard error what a row can't hold.
func (a *app) explainInterception(i api.Interception) {
	where := place(i.Program, i.PID)
	for _, r := range i.Refusals {
		a.stderr.refusal(where, r)
	}
	if i.Outcome == api.Failed {
		a.stderr.errorf("%s: %s", where, i.Error)
	}
	if i.Restarted && i.Outcome != api.Refused && i.Outcome != api.Failed {
		a.stderr.notef("%s: counts begin anew, with memory", where)
	}
	for _, left := range i.Residual {
		a.stderr.notef("%s: stays: %s", where, left)
	}
	a.explainUncounted(where, i.Uncounted)
}

// explainUncounted says how many functions are not counted; with -v which, and why.
func (a *app) explainUncounted(where string, all []api.Uncounted) {
	functions := 0
	for _, u := range all {
		functions += len(u.Functions)
		if a.verbose {
			for names := range slices.Chunk(u.Functions, 8) {
				a.stderr.notef("%s: not counted in %s, as %s: %s", where, quoted(u.Module), u.Why, quotedList(names))
			}
		}
	}
	if functions > 0 && !a.verbose {
		a.stderr.notef("%s: %s left out; --verbose names them", where, count(functions, "imported function"))
	}
}

func quotedList(names []string) string {
	var s string
	for i, n := range names {
		if i > 0 {
			s += ", "
		}
		s += quoted(n)
	}
	return s
}

func addInterception(t *table, i api.Interception) {
	styles := map[api.Outcome]style{api.Attached: good, api.Detached: good, api.Planned: bold, api.Refused: warn, api.Failed: bad}
	t.add(
		text(strconv.Itoa(i.PID)),
		text(quoted(i.Program)),
		cell{quoted(string(i.Outcome)), styles[i.Outcome]},
		text(strconv.Itoa(i.Modules)),
		text(strconv.Itoa(i.Functions)),
		text(strconv.Itoa(i.Slots)),
		yesNo(i.Memory, plain),
		text(pauseOrNone(i.PauseUS)),
		text(pauseOrNone(i.BorrowUS)),
		text(pauseOrNone(i.TotalUS)),
	)
	for _, step := range i.Steps {
		t.note(escaped(step))
	}
}

// An interceptionCount is what the summary says.
type interceptionCount struct {
	tally
	words     interceptionWords
	processes int
	outcomes  map[api.Outcome]int
	cost      cost
}

func (n *interceptionCount) add(i api.Interception) {
	n.processes++
	n.outcomes[i.Outcome]++
	n.cost.pause, n.cost.borrow = max(n.cost.pause, i.PauseUS), max(n.cost.borrow, i.BorrowUS)
	switch i.Outcome {
	case n.words.done:
		n.good++
		n.changed++
	case api.Planned:
		n.good++
		n.pending = true
	case api.Clean:
		n.good++
	case api.Refused:
		n.refused++
	default:
		n.failed++
	}
}

func (n *interceptionCount) summary() string {
	done, planned := n.outcomes[n.words.done], n.outcomes[api.Planned]
	var s string
	switch {
	case planned > 0:
		s = fmt.Sprintf("would %s %s; nothing was touched", n.words.verb, count(planned, "process"))
	case done > 0:
		s = fmt.Sprintf("%s %s; %s", n.words.done, count(done, "process"), n.cost)
	default:
		s = fmt.Sprintf("nothing %s", n.words.done)
		if n.cost != (cost{}) {
			s += "; " + n.cost.String()
		}
	}
	if clean := n.outcomes[api.Clean]; clean > 0 {
		s += fmt.Sprintf("; %d clean: %s", clean, n.words.clean)
	}
	return s + n.troubles()
}
