package menu

import (
	"bytes"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Plan is what is to be done to a process's menu bars. It is made while the
// process runs, and touches nothing.
type Plan struct {
	Remove   bool
	Refusals []api.Refusal // where there are any, nothing is done

	items     []Item
	functions map[string]uint64
	image     []byte
	present   *mapped            // the menu that is there
	leftover  []procfs.PageRange // of one that was never used
}

// PlanAttach plans to add the item, with these entries, to all menu bars that the
// program has, and will show. Those that have one already keep it, unless their entries differ.
func PlanAttach(p *module.Process, items []Item) (*Plan, error) {
	plan := &Plan{items: items}
	err := plan.look(p)
	if err == nil {
		var never bool
		if never, err = neverHadMenuBar(p, plan.functions["gtk_menu_bar_get_type"]); err == nil && never {
			err = noMenuBar(p.PID())
		}
	}
	if err == nil {
		plan.image, err = makeImage(plan.functions, items)
	}
	return plan.refused(err)
}

// PlanRemove plans to take the item out of all menu bars.
func PlanRemove(p *module.Process) (*Plan, error) {
	plan := &Plan{Remove: true}
	m, leftover, err := find(p)
	plan.present, plan.leftover = m, leftover
	if err == nil && m != nil {
		plan.functions, err = findFunctions(p)
	}
	return plan.refused(err)
}

func (a *Plan) look(p *module.Process) (err error) {
	if a.functions, err = findFunctions(p); err != nil {
		return err
	}
	a.present, a.leftover, err = find(p)
	return err
}

// refused turns an error that is a refusal into a plan that says so.
func (a *Plan) refused(err error) (*Plan, error) {
	if refusals := api.Refusals(err); len(refusals) > 0 {
		a.Refusals = refusals
		return a, nil
	}
	return a, err
}

// Empty tells that there is nothing to do.
func (a *Plan) Empty() bool {
	return len(a.Refusals) > 0 || a.Remove && a.present == nil && len(a.leftover) == 0
}

// Steps tells the plan, a line a step.
func (a *Plan) Steps() (steps []string) {
	add := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	if a.Empty() {
		return nil
	}
	for _, r := range a.leftover {
		add("unmap 0x%x-0x%x, which an interrupted vos left", r.Start, r.End)
	}
	switch {
	case a.Remove && a.present == nil:
	case a.Remove:
		add("let the main loop destroy the item %q in every menu bar", title)
		add("unmap %s when nothing leads there any more", a.present.span())
	default:
		if a.present != nil && !a.current() {
			add("take out the menu that is there: its entries differ")
		}
		if !a.current() {
			add("map %d bytes as %s: code, and one page to write", len(a.image), memfd)
		}
		add("let the main loop add an item %q to every menu bar that has none, and to those shown later", title)
		for _, i := range a.items {
			add("with an entry %q that starts %s", i.Label, i.Command)
		}
	}
	return steps
}

// current tells that the menu that is there is the one that is planned.
func (a *Plan) current() bool {
	return a.present != nil && bytes.Equal(a.present.code, a.image[:len(a.image)-procfs.PageSize])
}
