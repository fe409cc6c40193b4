package match

import (
	"cmp"
	"debug/elf"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/x86"
)

// A FunctionKind says how the extent of a function is known.
type FunctionKind uint8

// The kinds. Only unwind tables give an exact extent; code without them is
// found by following control flow, and what nothing leads to is taken for data.
const (
	FromFDE  FunctionKind = iota // an FDE, cut at exported symbols inside of it
	FromFlow                     // a gap between FDEs, reached by control flow
)

// A Function is one piece of code: a function, or a part of one that the
// compiler placed elsewhere (.cold).
type Function struct {
	dso.Range
	Kind  FunctionKind
	Names []string // all names of its first byte, exported ones first; none where stripped

	// Opaque tells that the code can't be decoded wholly: it is compared by its
	// raw bytes, and what it refers to is not known.
	Opaque bool

	Exported     bool // by .dynsym
	IFUNC        bool // some name of it is one: the code is a resolver
	AddressTaken bool // by a lea or a relocated word
	DirectCalled bool // by a call or jump from another function

	// EntryBranch tells that the function jumps into its own first 5 bytes.
	EntryBranch bool

	// Startup tells that only the loader's calls to constructors and destructors
	// lead here, from code without unwind tables (crtbegin.o and the like). It
	// does not run in a replacement.
	Startup bool

	hash        uint64 // of the normalised bytes and the positions of references
	rich        uint64 // and of the names and constants referred to
	first, last int32  // in Build.References
	count       int32  // instructions
	lsda        uint64 // its exception table, 0 for none
	first5      uint64 // bytes up to the end of the instruction that has byte 4
}

// entryBytes is what a jump to the replacement takes of a function.
const entryBytes = 5

// An Export is a function or object of .dynsym that others can bind to.
type Export struct {
	dso.Symbol
	Key      string // name@version
	Function int    // in Build.Functions, -1 where it is none
}

var hashSeed = maphash.MakeSeed()

// maxFunctions bounds the work on hostile objects.
const maxFunctions = 1 << 20

// split finds the functions: first those of unwind tables, then those that
// control flow reaches in the gaps.
func (b *Build) split() error {
	b.code = make([][]byte, len(b.im.segments))
	for i := range b.im.segments {
		if s := &b.im.segments[i]; s.Flags&elf.PF_X != 0 {
			b.code[i] = slices.Clone(s.bytes)
		}
	}
	symbols, err := b.Object.DynamicSymbols()
	if err != nil {
		return err
	}
	var starts []uint64 // of exported code
	for s := range symbols.All() {
		if !s.Exported() || s.IsTLS() || s.Section == elf.SHN_ABS {
			continue
		}
		b.Exports = append(b.Exports, Export{s, symbolKey(s), -1})
		if b.im.region(b.Object, s.Value) == Text && s.Type != elf.STT_OBJECT {
			starts = append(starts, s.Value)
		}
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)

	fdes, err := b.Object.FDEs()
	if err != nil {
		return err
	}
	end := uint64(0)
	for _, f := range fdes {
		if b.wordlessGap(f.Start) || f.Start < end || uint64(len(b.im.at(f.Start))) < f.Size {
			continue // stubs of the PLT, and records that overlap
		}
		end = f.Start + f.Size
		at := f.Start
		i := sort.Search(len(starts), func(i int) bool { return starts[i] > at })
		for ; i < len(starts) && starts[i] < end; i++ {
			b.Functions = append(b.Functions, Function{Range: dso.Range{Addr: at, Size: starts[i] - at}, lsda: f.LSDA})
			at = starts[i]
		}
		b.Functions = append(b.Functions, Function{Range: dso.Range{Addr: at, Size: end - at}, lsda: f.LSDA})
		if len(b.Functions) > maxFunctions {
			return fmt.Errorf("split %d functions: %w", len(b.Functions), dso.ErrLimit)
		}
	}
	var s scanner
	for i := range b.Functions {
		b.scan(&s, i)
	}
	b.splitGaps(&s, starts)
	return nil
}

// wordlessGap tells an address of the PLT: its FDE covers all stubs at once.
func (b *Build) wordlessGap(addr uint64) bool {
	p := b.im.placeAt(addr)
	return p != nil && isPLT(p.name)
}

// gap is the code between two functions of unwind tables.
type gap struct {
	from, to uint64
	reached  []bool   // starts of instructions, by offset
	covered  []bool   // bytes of them
	broken   []uint64 // what control flow led to and can't be decoded
	indirect []uint64 // jumps by a register: a table may decide where they lead
}

// whole tells that what begins at from was followed to its ends: nothing in it
// failed to decode, and no jump of it may lead to bytes before next that were
// not reached.
func (g *gap) whole(im *image, from, next uint64) bool {
	if anyIn(g.broken, from, next) {
		return false
	}
	if !anyIn(g.indirect, from, next) {
		return true
	}
	code := im.at(from)
	for at := from; at < next; {
		if g.covered[at-g.from] {
			at++
			continue
		}
		n := padding(code[at-from : next-from])
		if n == 0 {
			return false
		}
		at += uint64(n)
	}
	return true
}

// sort makes the gap ready for whole, after all flow was followed.
func (g *gap) sort() {
	slices.Sort(g.broken)
	slices.Sort(g.indirect)
}

// anyIn tells whether a sorted list has an address of [from, to).
func anyIn(sorted []uint64, from, to uint64) bool {
	i, _ := slices.BinarySearch(sorted, from)
	return i < len(sorted) && sorted[i] < to
}

// padding returns the length of the padding that code begins with: one zero,
// int3 or no-operation.
func padding(code []byte) int {
	if code[0] == 0 || code[0] == 0xcc {
		return 1
	}
	i, err := x86.Decode(code)
	if err != nil || !i.IsNop() {
		return 0
	}
	return i.Len
}

// splitGaps follows control flow into the gaps until nothing new is found, and
// cuts what was reached at the places that something leads to.
func (b *Build) splitGaps(s *scanner, exported []uint64) {
	gaps := b.gaps()
	if len(gaps) == 0 {
		return
	}
	find := func(addr uint64) *gap {
		i := sort.Search(len(gaps), func(i int) bool { return gaps[i].from > addr }) - 1
		if i < 0 || addr >= gaps[i].to {
			return nil
		}
		return &gaps[i]
	}
	roots := map[uint64]bool{}
	startup := map[uint64]bool{} // found from startup code only
	var todo []uint64
	add := func(addr uint64, begins bool) {
		if roots[addr] || find(addr) == nil || b.stubAt(addr) != nil {
			return
		}
		if begins {
			roots[addr] = true
		}
		todo = append(todo, addr)
	}
	follow := func() {
		for len(todo) > 0 {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			g := find(at)
			if g.reached == nil {
				g.reached, g.covered = make([]bool, g.to-g.from), make([]bool, g.to-g.from)
			}
			for _, target := range s.flow(b.im.at(g.from)[:g.to-g.from], g, at) {
				add(target, true)
			}
		}
	}
	for _, r := range b.References {
		if r.Mode == Call || r.Mode == Jump {
			add(r.Target, true)
		}
	}
	for _, a := range exported {
		add(a, true)
	}
	for _, a := range b.labels.functions {
		add(a, true)
	}
	arrays := b.startupWords()
	for i := range b.words {
		if w := &b.words[i]; w.target != 0 && !arrays[w.at] && !w.isSlot() && b.im.region(b.Object, w.target) == Text {
			add(w.target, true)
		}
	}
	follow()
	// What only the loader calls comes last: the rest is startup code.
	ordinary := make(map[uint64]bool, len(roots))
	for a := range roots {
		ordinary[a] = true
	}
	for i := range b.words {
		if w := &b.words[i]; arrays[w.at] {
			add(w.target, true)
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_INIT, elf.DT_FINI} {
		if v, ok := b.Object.Dyn(tag); ok {
			add(v, true)
		}
	}
	follow()
	for a := range roots {
		if !ordinary[a] {
			startup[a] = true
		}
	}
	sorted := make([]uint64, 0, len(roots))
	for a := range roots {
		sorted = append(sorted, a)
	}
	slices.Sort(sorted)
	for i := range gaps {
		gaps[i].sort()
	}
	scanned := len(b.Functions)
	for i, a := range sorted {
		g := find(a)
		end := g.to
		if i+1 < len(sorted) && sorted[i+1] < end {
			end = sorted[i+1]
		}
		// It ends behind its last instruction: padding and data follow.
		last := a
		for at := a; at < end; at++ {
			if g.covered[at-g.from] {
				last = at + 1
			}
		}
		if last > a {
			b.Functions = append(b.Functions, Function{Range: dso.Range{Addr: a, Size: last - a}, Kind: FromFlow, Startup: startup[a], Opaque: !g.whole(b.im, a, end)})
		}
	}
	for i := scanned; i < len(b.Functions); i++ {
		f := &b.Functions[i]
		g := find(f.Addr)
		b.scanReached(s, i, g)
	}
	b.reorder()
}

// startupWords are the words that only the loader reads: constructors and
// destructors.
func (b *Build) startupWords() map[uint64]bool {
	all := map[uint64]bool{}
	for _, p := range startupArrays(b.Object) {
		for _, w := range b.wordsIn(p.Addr, p.End()) {
			all[w.at] = true
		}
	}
	return all
}

// startupArrays returns where DT_INIT_ARRAY, DT_FINI_ARRAY and
// DT_PREINIT_ARRAY are.
func startupArrays(o *dso.Object) []dso.Range {
	var all []dso.Range
	for _, t := range [][2]elf.DynTag{{elf.DT_INIT_ARRAY, elf.DT_INIT_ARRAYSZ}, {elf.DT_FINI_ARRAY, elf.DT_FINI_ARRAYSZ}, {elf.DT_PREINIT_ARRAY, elf.DT_PREINIT_ARRAYSZ}} {
		at, ok := o.Dyn(t[0])
		size, _ := o.Dyn(t[1])
		if ok && size <= dso.MaxTable && at+size >= at {
			all = append(all, dso.Range{Addr: at, Size: size})
		}
	}
	return all
}

// gaps returns the ranges of executable segments without an FDE, PLTs apart.
func (b *Build) gaps() []gap {
	var all []gap
	next := 0
	for i := range b.im.segments {
		if b.code[i] == nil {
			continue
		}
		s := &b.im.segments[i]
		at, end := s.Vaddr, s.Vaddr+uint64(len(s.bytes))
		for next < len(b.Functions) && b.Functions[next].Addr < at {
			next++
		}
		for ; next < len(b.Functions) && b.Functions[next].Addr < end; next++ {
			f := &b.Functions[next]
			if f.Addr > at {
				all = append(all, gap{from: at, to: f.Addr})
			}
			at = f.End()
		}
		if at < end {
			all = append(all, gap{from: at, to: end})
		}
	}
	return all
}

// reorder sorts the functions by address, and their references with them.
func (b *Build) reorder() {
	slices.SortFunc(b.Functions, func(x, y Function) int { return cmp.Compare(x.Addr, y.Addr) })
	all := make([]Reference, 0, len(b.References))
	for i := range b.Functions {
		f := &b.Functions[i]
		from := int32(len(all))
		all = append(all, b.References[f.first:f.last]...)
		f.first, f.last = from, int32(len(all))
	}
	b.References = all
}

// name gives functions the names of the symbol tables.
func (b *Build) name() {
	for i := range b.Exports {
		e := &b.Exports[i]
		b.exportAt[e.Key] = i
		if e.Type == elf.STT_OBJECT || b.im.region(b.Object, e.Value) != Text {
			continue
		}
		at := b.FunctionAt(e.Value)
		if at < 0 || b.Functions[at].Addr != e.Value {
			continue
		}
		f := &b.Functions[at]
		e.Function = at
		f.Exported = true
		f.IFUNC = f.IFUNC || e.IsIFUNC()
		f.Names = append(f.Names, e.Key)
	}
	for i := range b.Functions {
		f := &b.Functions[i]
		slices.Sort(f.Names)
		exported := f.Names
		for _, l := range b.labels.at(f.Addr) {
			if l.code && !containsName(exported, l.name) {
				f.Names = append(f.Names, l.name)
			}
		}
	}
}

// containsName tells whether a name is there, with or without a version.
func containsName(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		return n == name || len(n) > len(name) && n[len(name)] == '@' && n[:len(name)] == name
	})
}

// Name is what to call a function in messages.
func (b *Build) Name(i int) string {
	f := &b.Functions[i]
	if len(f.Names) > 0 {
		return f.Names[0]
	}
	return fmt.Sprintf("function at %#x", f.Addr)
}
