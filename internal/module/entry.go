package module

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

// planSlots notes the import slots by which other modules, and the module
// itself, call a function whose first bytes stay as they are.
func (p *Process) planSlots(r *Replacement, index int, function uint64) error {
	if r.importers == nil {
		var err error
		if r.importers, err = p.importers(r.Module); err != nil {
			return err
		}
	}
	for _, slot := range r.importers[function] {
		if err := r.vin.AddSlot(index, slot.Address, slot.Value); err != nil {
			return err
		}
	}
	return nil
}

// A slot is an import slot and what it holds.
type slot struct{ Address, Value uint64 }

// importers returns, by the function's address, the slots that calls of the
// module's exports go through. A slot that is not bound yet counts by the
// function that it will be bound to.
func (p *Process) importers(of *Module) (map[uint64][]slot, error) {
	memory, err := p.openMemory()
	if err != nil {
		return nil, err
	}
	order, err := p.searchOrder()
	if err != nil {
		return nil, err
	}
	all := make(map[uint64][]slot)
	for _, m := range p.Modules { // staged ones, too
		if m.Object == nil {
			continue
		}
		symbols, err := m.Object.DynamicSymbols()
		if err != nil {
			return nil, err
		}
		words := &wordReader{memory: memory}
		for r, err := range m.Object.Relocations() {
			if err != nil {
				return nil, err
			}
			if r.Type != elf.R_X86_64_JMP_SLOT {
				continue
			}
			value, err := words.read(r.Offset + m.Bias)
			if err != nil {
				return nil, err
			}
			value = p.behindInterceptor(value)
			function := value
			if m.unbound(r, value) {
				s, _ := symbols.At(r.Symbol)
				if function, err = firstDefinition(order, s); err != nil {
					return nil, err
				}
			}
			if of.Contains(function) {
				all[function] = append(all[function], slot{r.Offset + m.Bias, value})
			}
		}
	}
	return all, nil
}

// firstDefinition returns the address that the loader would bind a symbol to, 0
// where nothing defines it.
func firstDefinition(order []*Module, s dso.Symbol) (uint64, error) {
	for _, m := range order {
		found, ok, err := m.Object.Lookup(s.Name, s.Version)
		if err != nil {
			return 0, fmt.Errorf("look up %s in %s: %w", s.Name, m.Name, err)
		}
		if ok && !found.IsTLS() && !found.IsIFUNC() {
			return m.Bias + found.Value, nil
		}
	}
	return 0, nil
}

// planMerges notes which initial values are to follow the new build where the
// program has not changed them.
func (r *Replacement) planMerges() error {
	m := r.Match
	for _, c := range m.Initial {
		merge := vin.Merge{Address: c.Old + r.Module.Bias}
		var err error
		if c.Pointer {
			before, known, err := r.pointerBefore(c.Old)
			if err != nil {
				return err
			}
			if !known {
				r.Residual = append(r.Residual, fmt.Sprintf("%s: its initial value, an import, stays the running build's", orNone(c.Name)))
				continue
			}
			after, err := r.pointerAfter(c.New)
			if err != nil {
				return err
			}
			merge.Before, merge.After = word(before), word(after)
		} else if merge.Before, err = m.Old.Object.Bytes(c.Old, c.Size); err != nil {
			return err
		} else if merge.After, err = m.New.Object.Bytes(c.New, c.Size); err != nil {
			return err
		}
		if err := r.addMerge(merge); errors.Is(err, vin.ErrFull) {
			r.refuse(codeMerges, r.Module.Name, fmt.Sprintf("%d initial values differ, more than can be taken back", len(m.Initial)), askRestart)
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// addMerge adds a merge, in as many parts as it takes.
func (r *Replacement) addMerge(m vin.Merge) error {
	for len(m.After) > 0 {
		n := min(len(m.After), vin.MergeSize)
		if err := r.vin.AddMerge(r.Generation, vin.Merge{Address: m.Address, Before: m.Before[:n], After: m.After[:n]}); err != nil {
			return err
		}
		m = vin.Merge{Address: m.Address + uint64(n), Before: m.Before[n:], After: m.After[n:]}
	}
	return nil
}

// pointerBefore returns what the loader stored at a word of the running build.
func (r *Replacement) pointerBefore(at uint64) (value uint64, known bool, err error) {
	target, name, ok := r.Match.Old.Pointer(at)
	switch {
	case ok && name != "":
		return 0, false, nil
	case ok:
		return target + r.Module.Bias, true, nil
	}
	raw, err := r.Match.Old.Object.Bytes(at, 8)
	if err != nil {
		return 0, false, err
	}
	return binary.LittleEndian.Uint64(raw), true, nil
}

// pointerAfter returns what a word of the new build is to be in the shared data:
// what both builds have is the running one's.
func (r *Replacement) pointerAfter(at uint64) (uint64, error) {
	target, name, ok := r.Match.New.Pointer(at)
	if !ok || name != "" {
		raw, err := r.Image.Bytes(r.Match.New.Object, at, 8)
		if err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint64(raw), nil
	}
	if old, _, ok := r.Match.Data.Old(target); ok {
		return old + r.Module.Bias, nil
	}
	if g := r.Match.New.FunctionAt(target); g >= 0 && r.Match.New.Functions[g].Addr == target {
		for _, q := range r.Match.Pairs {
			if q.New == g && q.Trust >= match.Likely {
				return r.Match.Old.Functions[q.Old].Addr + r.Module.Bias, nil
			}
		}
	}
	return target + r.Image.Bias, nil
}

// Redirected returns how many functions the generation redirects.
func (r *Replacement) Redirected() int {
	if r.vin == nil {
		return 0
	}
	return len(redirected(r.vin, r.Generation))
}

// redirected returns the entries that a generation leads elsewhere than the
// build that the program loaded.
func redirected(v *vin.Vin, generation int) []int {
	var all []int
	for i, e := range v.Entries() {
		if v.Target(generation, i) != e.Trampoline {
			all = append(all, i)
		}
	}
	return all
}

// entryWrites returns what is to be written at entries and import slots, with all
// threads stopped: jumps and stubs where the generation needs them, and all of
// the program's own bytes for generation 0.
func (p *Process) entryWrites(s *tracee.Session, text *textPages, r *Replacement) ([]Write, error) {
	wanted := make(map[int]bool)
	for _, i := range redirected(r.vin, r.Generation) {
		wanted[i] = true
	}
	var writes []Write
	entries := r.vin.Entries()
	for i, e := range entries {
		if e.Kind != vin.Veneer || !wanted[i] && r.Generation > 0 {
			continue
		}
		veneer, ok := r.vin.Veneer(i)
		if !ok {
			return nil, fmt.Errorf("the entry at 0x%x: %w", e.Function, vin.ErrRange)
		}
		original := e.Original[:len(veneer)]
		bytes, other := veneer[:], original
		if r.Generation == 0 {
			bytes, other = original, veneer[:]
		}
		w, err := text.changeTo(e.Function, bytes, other)
		if err != nil {
			return nil, fmt.Errorf("the entry at 0x%x: %w", e.Function, err)
		}
		writes = append(writes, w...)
	}
	for _, slot := range r.vin.Slots() {
		stub, before := word(entries[slot.Entry].Stub), word(slot.Before)
		if !wanted[slot.Entry] && r.Generation > 0 {
			continue
		}
		if r.Generation == 0 {
			stub, before = before, stub
		}
		w, err := changeTo(s, slot.Address, stub, before)
		if errors.Is(err, errChanged) && r.Generation > 0 { // the loader may have bound it meanwhile
			w, err = changeTo(s, slot.Address, stub, word(entries[slot.Entry].Function))
		}
		if errors.Is(err, errChanged) && r.Generation > 0 { // or its calls are counted
			w, err = p.changeCounted(s, slot.Address, stub, entries[slot.Entry].Function)
		}
		if errors.Is(err, errChanged) || errors.Is(err, procfs.ErrAddress) {
			continue // its module is gone
		}
		if err != nil {
			return nil, err
		}
		writes = append(writes, w...)
	}
	slices.SortFunc(writes, func(a, b Write) int { return cmp.Compare(a.Address, b.Address) })
	return writes, nil
}

// changeCounted is changeTo for a slot that an interceptor's stub for the function
// stands in: its calls are not counted any more.
func (p *Process) changeCounted(s *tracee.Session, address uint64, wanted []byte, function uint64) ([]Write, error) {
	found := make([]byte, len(wanted))
	if _, err := s.Memory().ReadAt(found, int64(address)); err != nil {
		return nil, err
	}
	if p.behindInterceptor(binary.LittleEndian.Uint64(found)) != function {
		return nil, errChanged
	}
	return changeFrom(address, found, wanted, found)
}

// changeTo returns the write that puts bytes where other stands; none where they
// are there already.
func changeTo(s *tracee.Session, address uint64, wanted, other []byte) ([]Write, error) {
	found := make([]byte, len(wanted))
	if _, err := s.Memory().ReadAt(found, int64(address)); err != nil {
		return nil, err
	}
	return changeFrom(address, found, wanted, other)
}

// unoccupied makes sure that no thread is within, or will come back into, the
// instructions that are to be overwritten. At the first of them it may be.
// It returns the threads that are within code of the build before, and finish
// there.
func unoccupied(s *tracee.Session, r *Replacement, writes []Write, before tracee.Range, maps []procfs.Mapping) (visitors []int, err error) {
	written := make(map[uint64]bool, len(writes))
	for _, w := range writes {
		written[w.Address] = true
	}
	var ranges []tracee.Range
	for _, e := range r.vin.Entries() {
		if e.Kind == vin.Veneer && written[e.Function] {
			ranges = append(ranges, tracee.Range{Start: e.Function + 1, End: e.Function + uint64(len(e.Original))})
		}
	}
	slices.SortFunc(ranges, func(a, b tracee.Range) int { return cmp.Compare(a.Start, b.Start) })
	o, visitors, found, err := s.Occupied(ranges, before, maps)
	if err == nil && found {
		err = &occupied{o}
	}
	return visitors, err
}

// code returns the process addresses of a module's executable segments, as one
// range.
func (m *Module) code() tracee.Range {
	r := tracee.Range{Start: m.end, End: m.start}
	for _, s := range m.Object.Segments {
		if s.Type == elf.PT_LOAD && s.Flags&elf.PF_X != 0 {
			r.Start, r.End = min(r.Start, s.Vaddr+m.Bias), max(r.End, s.Vaddr+s.Memsz+m.Bias)
		}
	}
	return r
}

// flip merges initial values and sets the selector. The vIN's journal says in
// between what is under way.
func (p *Process) flip(s *tracee.Session, r *Replacement) error {
	from := 0
	if r.before != nil {
		from = r.before.Current()
	}
	merges, err := mergeWrites(s, r, from)
	if err != nil {
		return err
	}
	pending := func(n vin.Pending) error { return s.Write(r.vin.PendingAddress(), word(n.Word())) }
	if len(merges) > 0 {
		if err := pending(vin.Pending{Generation: r.Generation, Phase: vin.Merging}); err != nil {
			return err
		}
	}
	for _, w := range merges {
		if err := s.Write(w.Address, w.Bytes); err != nil {
			return err
		}
	}
	if err := s.Write(r.vin.SelectorAddress(), word(r.vin.SelectorFor(r.Generation))); err != nil {
		return err
	}
	return pending(vin.Pending{})
}

// mergeWrites returns the writes by which initial values follow the generation:
// those of the one that runs, and of one that was interrupted, are taken back,
// where the program still has them.
func mergeWrites(s *tracee.Session, r *Replacement, from int) ([]Write, error) {
	leaving := whole(r.vin.Merges(from))
	if r.before != nil {
		if pending := r.before.Pending(); pending.Phase == vin.Merging && pending.Generation != from {
			leaving = append(leaving, whole(r.vin.Merges(pending.Generation))...)
		}
	}
	var writes []Write
	taken := make(map[uint64][]byte) // what will stand there
	for _, m := range leaving {
		w, err := changeTo(s, m.Address, m.Before, m.After)
		if err != nil && !errors.Is(err, errChanged) {
			return nil, err
		}
		if len(w) > 0 {
			taken[m.Address] = m.Before
		}
		writes = append(writes, w...)
	}
	for _, m := range whole(r.vin.Merges(r.Generation)) {
		if bytes.Equal(taken[m.Address], m.Before) {
			writes = append(writes, Write{Address: m.Address, Bytes: m.After})
			continue
		}
		w, err := changeTo(s, m.Address, m.After, m.Before)
		if err != nil && !errors.Is(err, errChanged) {
			return nil, err
		}
		writes = append(writes, w...)
	}
	return writes, nil
}

// whole puts the parts of merges together: a value is merged as a whole or not.
func whole(parts []vin.Merge) []vin.Merge {
	var all []vin.Merge
	for _, m := range parts {
		if n := len(all); n > 0 && len(m.After) > 0 && all[n-1].Address+uint64(len(all[n-1].After)) == m.Address && len(all[n-1].After)%vin.MergeSize == 0 {
			all[n-1].Before = slices.Concat(all[n-1].Before, m.Before)
			all[n-1].After = slices.Concat(all[n-1].After, m.After)
			continue
		}
		all = append(all, m)
	}
	return all
}
