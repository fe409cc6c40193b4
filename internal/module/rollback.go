package module

import (
	"context"

	"github.com/virtualizing-os/vos/internal/vin"
)

// PlanRollback plans to let the generation take over that ran before the one
// that runs.
func (p *Process) PlanRollback(m *Module) (*Replacement, error) {
	running := p.RunningBuildID(m)
	r := &Replacement{Module: m, From: running, To: running, Generation: m.Generation, before: p.vins[m]}
	if refusals := p.CannotReplace(m); len(refusals) > 0 {
		r.Refusals = refusals
		return r, nil
	}
	if r.before == nil || m.Generation == 0 {
		r.refuse(codeNoGeneration, m.Name, "the build runs that the program loaded", "none is needed")
		return r, nil
	}
	r.Generation = generationBefore(r.before, m.Generation)
	p.planSwitch(r)
	return r, nil
}

// generationBefore returns the generation that ran when another one was mapped:
// its record's flags say so.
func generationBefore(v *vin.Vin, number int) int {
	all := v.Generations()
	if number >= len(all) || all[number].Flags&beforeMask >= uint64(number) {
		return 0
	}
	return int(all[number].Flags & beforeMask)
}

// planSwitch plans to let a generation take over that the process has.
func (p *Process) planSwitch(r *Replacement) {
	r.To = r.before.Generations()[r.Generation].BuildID
	r.vin = r.before.Clone()
}

// Undo lets the generation take over again that ran before a plan was carried
// out.
func (p *Process) Undo(ctx context.Context, r *Replacement) error {
	number := 0
	if r.before != nil {
		number = r.before.Current()
	}
	back := &Replacement{Module: r.Module, From: r.To, To: r.From, Generation: number, vin: r.vin.Clone(), before: r.vin}
	_, err := p.CommitReplacement(ctx, back)
	return err
}
