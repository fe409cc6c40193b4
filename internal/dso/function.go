package dso

import (
	"cmp"
	"slices"
	"sort"
)

// A function is one entry of the index by address.
type function struct {
	addr, size uint64
	ends       uint64 // the furthest end of this one and those before
	symbol     uint32
	static     bool // of .symtab, otherwise of .dynsym
}

// A Location is an object address as a function and a distance.
type Location struct {
	Function Symbol
	Offset   uint64 // from the function's first byte
	Beyond   bool   // behind the symbol's size: the nearest, but not its code
}

// FunctionAt returns the function that an object address is in, by .symtab and
// .dynsym, or the nearest before it in the same section (segment, where there
// are no sections); LocateFunction tells which of the two. Names are as in the
// object, C++ not demangled. ok is false where there is none.
//
// Symbol tables that can't be read count as empty; DynamicSymbols and
// StaticSymbols return their errors.
func (o *Object) FunctionAt(vaddr uint64) (name string, offset uint64, ok bool) {
	l, ok := o.LocateFunction(vaddr)
	return l.Function.Name, l.Offset, ok
}

// LocateFunction is FunctionAt with the symbol, and whether its size covers the
// address.
func (o *Object) LocateFunction(vaddr uint64) (Location, bool) {
	index, _ := o.functions.get(func() ([]function, error) { return o.indexFunctions(), nil })
	i := sort.Search(len(index), func(i int) bool { return index[i].addr > vaddr }) - 1
	if i < 0 {
		return Location{}, false
	}
	// A function may lie inside of another (labels in assembly): where the
	// nearest ends before the address, an earlier one may still cover it.
	const nested = 64
	best, covers := i, false
	for k, n := i, 0; k >= 0 && n < nested && index[k].ends > vaddr; k, n = k-1, n+1 {
		if vaddr-index[k].addr < index[k].size {
			best, covers = k, true
			break
		}
	}
	f := index[best]
	if !covers && f.addr != vaddr && !o.samePlace(f.addr, vaddr) {
		return Location{}, false
	}
	return Location{Function: o.symbolOf(f), Offset: vaddr - f.addr, Beyond: !covers && (f.size != 0 || f.addr != vaddr)}, true
}

// samePlace tells whether two object addresses are in the same section, derived
// or not.
func (o *Object) samePlace(a, b uint64) bool {
	s, ok := o.SectionAt(a)
	t, also := o.SectionAt(b)
	return ok && also && s.Addr == t.Addr
}

func (o *Object) symbolOf(f function) Symbol {
	table, err := o.DynamicSymbols()
	if f.static {
		table, err = o.StaticSymbols()
	}
	if err != nil {
		return Symbol{}
	}
	s, _ := table.At(f.symbol)
	return s
}

// indexFunctions collects the defined functions by address. Of several names of
// one place it keeps the best: see preferred.
func (o *Object) indexFunctions() []function {
	var index []function
	collect := func(t *SymbolTable, err error, static bool) {
		if err != nil {
			return
		}
		for s := range t.All() {
			if s.IsFunction() && s.Defined() && s.Name != "" && o.image.load(s.Value) != nil {
				index = append(index, function{addr: s.Value, size: s.Size, symbol: s.Index, static: static})
			}
		}
	}
	t, err := o.DynamicSymbols()
	collect(t, err, false)
	t, err = o.StaticSymbols()
	collect(t, err, true)
	// Names are compared once for each symbol, not in the sort: there may be as
	// many of one place as the object likes, and each as long as maxName.
	slices.SortStableFunc(index, func(a, b function) int { return cmp.Compare(a.addr, b.addr) })
	kept := 0
	var best Symbol
	for i, f := range index {
		s := o.symbolOf(f)
		if i > 0 && index[kept-1].addr == f.addr {
			if preferred(s, best) < 0 {
				index[kept-1], best = f, s
			}
			continue
		}
		index[kept], best = f, s
		kept++
	}
	index = slices.Clone(index[:kept])
	end := uint64(0)
	for i := range index {
		end = max(end, index[i].addr+min(index[i].size, 1<<62))
		index[i].ends = end
	}
	return index
}

// preferred orders the names of one place: with a size before without, global
// before local, default version before hidden, then without leading
// underscores, short, alphabetical.
func preferred(x, y Symbol) int {
	return cmp.Or(
		yes(x.Size == 0)-yes(y.Size == 0),
		yes(!x.Exported())-yes(!y.Exported()),
		yes(x.Hidden)-yes(y.Hidden),
		underscores(x.Name)-underscores(y.Name),
		len(x.Name)-len(y.Name),
		cmp.Compare(x.Name, y.Name),
	)
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

func underscores(name string) int {
	n := 0
	for n < min(len(name), 8) && name[n] == '_' {
		n++
	}
	return n
}
