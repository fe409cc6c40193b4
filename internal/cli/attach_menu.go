package cli

import (
	"context"
	"strconv"

	"github.com/virtualizing-os/vos/internal/api"
)

// attachMenu carries out vos attach --menu, and prints what comes back.
func (a *app) attachMenu(ctx context.Context, x api.Executive, r api.MenuRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", elastic: true},
		column{title: "OUTCOME"},
		column{title: "MENU BARS", right: true},
		column{title: "CHANGED", right: true},
		column{title: "STOPPED", right: true, spare: 1},
		column{title: "BORROWED", right: true, spare: 2},
		column{title: "TOTAL", right: true, spare: 3})
	var n tally
	err := x.Menu(ctx, r, func(m api.Menu) error {
		where := place(m.Program, m.PID)
		for _, refusal := range m.Refusals {
			a.stderr.refusal(where, refusal)
		}
		for _, left := range m.Residual {
			a.stderr.notef("%s: stays: %s", where, left)
		}
		if m.Mapped != "" && a.verbose {
			a.stderr.notef("%s: %s is the menu's", where, m.Mapped)
		}
		style := good
		switch m.Outcome {
		case api.Refused:
			n.refused, style = n.refused+1, warn
		case api.Failed:
			n.failed, style = n.failed+1, bad
			a.stderr.errorf("%s: %s", where, m.Error)
		case api.Planned:
			n.good, n.pending, style = n.good+1, true, bold
		case api.Clean:
			n.good, style = n.good+1, plain
		default:
			n.good++
			n.changed++
		}
		if a.json {
			m.Residual, m.Refusals = list(m.Residual), list(m.Refusals)
			return a.printJSON(m)
		}
		t.add(
			text(strconv.Itoa(m.PID)),
			text(quoted(m.Program)),
			cell{quoted(string(m.Outcome)), style},
			text(strconv.Itoa(m.MenuBars)),
			text(strconv.Itoa(m.Changed)),
			text(pauseOrNone(m.PauseUS)),
			text(pauseOrNone(m.BorrowUS)),
			text(pauseOrNone(m.TotalUS)),
		)
		for _, step := range m.Steps {
			t.note(escaped(step))
		}
		return nil
	})
	t.print(a.stdout)
	return a.settle(n, err)
}
