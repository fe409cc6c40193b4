package module

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/module/stage"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/vin"
)

// A Replacement is the plan by which another build of a module takes over in one
// process, or an earlier generation does. It is a value: what is printed is what
// is carried out.
//
// The new build's code is mapped beside the old one's and works on the old
// one's data; calls reach it by way of the vIN (package vin). Nothing of the old
// build goes away: frames in flight finish in it.
type Replacement struct {
	Module *Module // as the program loaded it: generation 0
	From   string  // build-id of the generation that runs
	To     string  // build-id of the one that is to run

	Generation int          // its number
	Match      *match.Match // nil where the process has the generation already
	Image      *stage.Image // likewise
	Residual   []string
	Refusals   []api.Refusal // if any, nothing of the rest counts

	vin       *vin.Vin // as it will be, before the selector is set
	before    *vin.Vin // as it is, nil where the module has none
	importers map[uint64][]slot
}

// Empty reports whether there is nothing to do: the build runs already.
func (r *Replacement) Empty() bool { return len(r.Refusals) == 0 && r.vin == nil }

// PlanReplace plans to let a build take a module's place. Nobody is stopped and
// nothing is changed. An error means that the process is gone or that something
// could not be read.
func (p *Process) PlanReplace(ctx context.Context, m *Module, b *Build, opt match.Options) (*Replacement, error) {
	r := &Replacement{Module: m, From: p.RunningBuildID(m), To: b.Object.BuildID}
	if refusals := p.CannotReplace(m); len(refusals) > 0 {
		r.Refusals = refusals
		return r, nil
	}
	if r.Generation = m.Generation; r.To == "" {
		r.refuse(match.CodeNoBuildID, b.Path, "without a build-id nobody can tell which build a process runs", match.Codes()[match.CodeNoBuildID])
		return r, nil
	}
	status, err := p.Status()
	if err != nil {
		return nil, err
	}
	if refusal := b.trust(status.UIDs.Effective); refusal != nil {
		r.Refusals = append(r.Refusals, *refusal)
		return r, nil
	}
	r.before = p.vins[m]
	if r.From == r.To && (r.before == nil || r.before.Pending() == (vin.Pending{})) {
		return r, nil
	}
	if refusal, err := p.intact(ctx, m); err != nil || refusal != nil {
		if refusal != nil {
			r.Refusals = append(r.Refusals, *refusal)
		}
		return r, err
	}
	if r.before != nil {
		for n, g := range r.before.Generations() {
			if g.BuildID == r.To {
				r.Generation = n
				p.planSwitch(r)
				return r, r.vin.Follow(n)
			}
		}
		if r.before.Generations()[m.Generation].Flags&hasOwnData != 0 {
			r.refuse(codeAddedData, m.Name, fmt.Sprintf("generation %d has variables that the first build lacks, and a third one would not see their values", m.Generation), askRestart)
			return r, nil
		}
	}
	old, err := p.files.open(p.Process, m.mapping)
	if err != nil {
		return nil, err
	}
	r.Match, err = p.files.match(old, b, opt)
	switch {
	case errors.Is(err, dso.ErrTruncated), errors.Is(err, dso.ErrMalformed):
		r.refuse(match.CodeMalformed, b.Path, err.Error(), match.Codes()[match.CodeMalformed])
		return r, nil
	case err != nil:
		return nil, err
	}
	if r.Match.Same {
		return r, nil
	}
	if r.Refusals = slices.Clone(r.Match.Refusals); len(r.Refusals) > 0 {
		return r, nil
	}
	for _, residual := range r.Match.Residual {
		r.Residual = append(r.Residual, residual.Function+": "+residual.Reason)
	}
	for _, residual := range r.Match.Startup {
		r.Residual = append(r.Residual, residual.Function+": "+residual.Reason)
	}
	return r, p.planStage(r, b)
}

// CannotReplace returns what speaks against replacing a module by any build.
func (p *Process) CannotReplace(m *Module) []api.Refusal {
	if len(m.Obstacles) > 0 {
		return slices.Clone(m.Obstacles)
	}
	refuse := func(detail, remedy string) []api.Refusal {
		return []api.Refusal{{Code: codeKind, Subject: m.Name, Detail: detail, Remedy: remedy}}
	}
	if len(p.vinErrors) > 0 {
		return []api.Refusal{{Code: codeVIN, Subject: m.Name, Detail: errors.Join(p.vinErrors...).Error(), Remedy: restart}}
	}
	switch {
	case m.Kind == VDSO:
		return refuse("the kernel gave it to the program", "none is known")
	case m.Kind == Loader:
		return refuse("the loader and the C library depend on each other's builds", askRestart)
	case m.Kind == Executable:
		return refuse("it is the executable; libraries can be replaced", askRestart)
	case m.Staged():
		return refuse("vos mapped it itself", "name the module that the program loaded")
	}
	return nil
}

// intact refuses a module whose running text is not what its file says: the file
// is what builds are compared by.
func (p *Process) intact(ctx context.Context, m *Module) (*api.Refusal, error) {
	if refusal, err := p.checkIdentity(m, &Comparison{Module: m}); err != nil || refusal != nil {
		return refusal, err
	}
	c, err := p.Compare(ctx, m, false)
	if err != nil || !c.Corrupt() {
		return nil, err
	}
	return &api.Refusal{Code: codeCorrupt, Subject: m.Name,
		Detail: fmt.Sprintf("it differs from its file in %d places", len(c.Runs)+len(c.Bad)),
		Remedy: fmt.Sprintf("vos refresh %d:%s, then try again", p.PID(), m.Name)}, nil
}

// planStage plans to map the new build and all that leads to it.
func (p *Process) planStage(r *Replacement, b *Build) error {
	m, o := r.Module, b.Object
	low, high := o.Span()
	low, high = low&^(procfs.PageSize-1), (high+procfs.PageSize-1)&^(procfs.PageSize-1)
	size := high - low + stage.Spare
	table, code := uint64(0), uint64(0)
	if r.before == nil {
		table, code = vin.Size(r.capacity())
	}
	at, ok := findRoom(p.maps, m.start, m.end, table+code+size)
	if !ok {
		r.refuse(codeNoRoom, m.Name, fmt.Sprintf("no %d KiB of addresses are free within 2 GiB of it", (table+code+size)>>10), askRestart)
		return nil
	}
	bias := at + table + code - low
	imports, err := p.readImports(m, o, bias)
	if err != nil {
		return err
	}
	r.Image, err = stage.Make(stage.Input{Match: r.Match, File: b.bytes, OldBias: m.Bias, NewBias: bias, Word: imports.word})
	switch {
	case errors.Is(err, errImport):
		r.refuse(codeImport, m.Name, err.Error(), askRestart)
		return nil
	case errors.Is(err, stage.ErrUnsupported), errors.Is(err, stage.ErrRange):
		r.refuse(codeStaging, m.Name, err.Error(), askRestart)
		return nil
	case err != nil:
		return err
	}
	return p.planEntries(r, at, bias)
}

// hasOwnData is the flag of a generation that has writable data that the first
// build lacks.
const hasOwnData = 1 << 32

// capacity returns for how many functions, and import slots, of the module a vIN
// has room: for all that may ever be redirected.
func (r *Replacement) capacity() (entries, slots int) {
	for i := range r.Match.Old.Functions {
		if f := &r.Match.Old.Functions[i]; f.Exported || f.AddressTaken {
			entries++
		}
	}
	return entries, maxSlots
}

const maxSlots = 1024

// planEntries puts the generation into the vIN.
func (p *Process) planEntries(r *Replacement, at, bias uint64) error {
	m := r.Module
	var err error
	if r.before != nil {
		r.vin = r.before.Clone()
	} else {
		entries, slots := r.capacity()
		r.vin, err = vin.New(vin.Config{
			Base: at, Entries: entries, Slots: slots,
			Module: vin.Identity{Soname: m.Name, BuildID: m.BuildID(), Bias: m.Bias, Start: m.start, End: m.end},
		})
		if err != nil {
			return err
		}
	}
	g := vin.Generation{BuildID: r.To, Name: r.Module.Name, Bias: bias, Start: r.Image.Start, End: r.Image.Start + r.Image.Size,
		Digest: sha256.Sum256(r.Image.File)}
	if r.Match.Figures.Objects[match.Added.String()] > 0 {
		g.Flags |= hasOwnData
	}
	r.Generation, err = r.vin.AddGeneration(g)
	if errors.Is(err, vin.ErrFull) {
		r.refuse(codeGenerations, m.Name, fmt.Sprintf("%d generations of it are in the process", vin.MaxGenerations), askRestart)
		return nil
	}
	if err == nil {
		err = r.vin.Follow(r.Generation)
	}
	if err != nil {
		return err
	}
	for _, e := range r.Match.Entries {
		pair := r.Match.Pairs[e.Pair]
		function := r.Match.Old.Functions[pair.Old].Addr + m.Bias
		target := r.Match.New.Functions[pair.New].Addr + bias
		index, err := p.planEntry(r, e, function)
		if err != nil {
			return err
		}
		if index < 0 {
			continue
		}
		if err := r.vin.SetTarget(r.Generation, index, target); err != nil {
			return err
		}
	}
	if len(r.Refusals) > 0 {
		return nil
	}
	return r.planMerges()
}

// planEntry finds or makes the entry of a function; -1 where it stays as it is.
func (p *Process) planEntry(r *Replacement, e match.Entry, function uint64) (int, error) {
	if index, ok := r.vin.Find(function); ok {
		return index, nil
	}
	exported := r.Match.Old.Functions[r.Match.Pairs[e.Pair].Old].Exported
	if e.Kind == match.Veneer {
		code, err := r.Module.Object.Bytes(function-r.Module.Bias, e.Bytes)
		if err != nil {
			return 0, err
		}
		index, err := r.vin.AddVeneer(function, code)
		switch {
		case err == nil:
			return index, nil
		case !errors.Is(err, vin.ErrCannotMove):
			return 0, fmt.Errorf("lead %s to the new build: %w", e.Name, err)
		case !exported:
			r.refuse(codeEntryMoved, e.Name, err.Error(), askRestart)
			return -1, nil
		}
		r.Residual = append(r.Residual, fmt.Sprintf("%s: redirected by GOT only, as its first instructions can't be moved: pointers to it that the program took lead to the old code", e.Name))
	}
	index, err := r.vin.AddSlotEntry(function)
	if err != nil {
		return 0, err
	}
	return index, p.planSlots(r, index, function)
}

func (r *Replacement) refuse(code api.Code, subject, detail, remedy string) {
	r.Refusals = append(r.Refusals, api.Refusal{Code: code, Subject: subject, Detail: detail, Remedy: remedy})
}

// Steps tells the plan in words, a step a line.
func (r *Replacement) Steps() []string {
	if r.Empty() || len(r.Refusals) > 0 {
		return nil
	}
	var steps []string
	say := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	if m := r.Match; m != nil {
		f := m.Figures
		say("%d functions of the running build, %d of the new one: %d the same, %d with other references, %d changed, %d added, %d gone",
			f.OldFunctions, f.NewFunctions, f.Identical, f.Referring, f.Changed, f.Added, f.Gone)
		for _, by := range sortedKeys(f.Paired) {
			say("pairs by %s: %d", by, f.Paired[by])
		}
		for _, proof := range sortedKeys(f.Objects) {
			say("addresses of writable data that the new code uses, proved by %s: %d", proof, f.Objects[proof])
		}
		say("map generation %d at 0x%x-0x%x (%d KiB): %d displacements and %d words lead to the running build", r.Generation,
			r.Image.Start, r.Image.Start+r.Image.Size, r.Image.Size>>10, len(m.Displacements), len(m.Words))
	}
	jumps, slots := 0, 0
	entries := r.vin.Entries()
	for _, i := range redirected(r.vin, r.Generation) {
		if entries[i].Kind == vin.Veneer {
			jumps++
		}
	}
	slots = len(r.vin.Slots())
	say("redirect %d functions: %d by a jump at their entry, %d by %d import slots", r.Redirected(), jumps, r.Redirected()-jumps, slots)
	for _, w := range r.vin.Merges(r.Generation) {
		say("write %x over %x at 0x%x where the program has not changed it: an initial value", w.After, w.Before, w.Address)
	}
	say("set the selector at 0x%x: generation %d runs", r.vin.SelectorAddress(), r.Generation)
	return steps
}

func sortedKeys(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
