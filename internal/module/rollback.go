package module

import "context"

// PlanRollback plans to let the generation take over that ran before the one
// that runs was let take over. So one rollback after the other leads to each that
// ran, and at last to the build that the program loaded.
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
	r.Generation = r.before.Before(m.Generation)
	p.planSwitch(r)
	return r, nil
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
	if r.before != nil {
		back.vin.TakeOrder(r.before)
	}
	_, err := p.CommitReplacement(ctx, back)
	return err
}
