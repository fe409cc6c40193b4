package dso

import (
	"debug/elf"
	"iter"
)

// Values of the GNU ABI that debug/elf does not name.
const (
	STB_GNU_UNIQUE elf.SymBind = 10
)

// A Symbol is one entry of a symbol table (gABI, "Symbol Table").
type Symbol struct {
	Index      uint32 // in its table
	Name       string // not demangled
	Value      uint64 // object address; of a thread-local symbol its offset in PT_TLS
	Size       uint64
	Type       elf.SymType
	Binding    elf.SymBind
	Visibility elf.SymVis
	Section    elf.SectionIndex // SHN_UNDEF for an import, SHN_XINDEX where it does not fit

	// Of .dynsym only.
	Version string // "" where it has none
	Library string // of an import with a version: the DT_NEEDED that has it
	Hidden  bool   // name@version, not the default name@@version
}

// Defined tells that the object itself has what the symbol names.
func (s Symbol) Defined() bool { return s.Section != elf.SHN_UNDEF }

// IsFunction tells that the symbol names code, or an IFUNC's resolver.
func (s Symbol) IsFunction() bool { return s.Type == elf.STT_FUNC || s.Type == elf.STT_GNU_IFUNC }

// IsIFUNC tells that Value is a resolver that returns the function's address.
func (s Symbol) IsIFUNC() bool { return s.Type == elf.STT_GNU_IFUNC }

// IsTLS tells that the symbol is thread-local.
func (s Symbol) IsTLS() bool { return s.Type == elf.STT_TLS }

// IsUnique tells that the process has one definition of it (GNU_UNIQUE): the
// loader keeps the first that it sees.
func (s Symbol) IsUnique() bool { return s.Binding == STB_GNU_UNIQUE }

// Exported tells that other objects can bind to the symbol: the loader's lookup
// considers it (glibc elf/dl-lookup.c, do_lookup_x and check_match).
func (s Symbol) Exported() bool {
	if !s.Defined() || s.Visibility == elf.STV_HIDDEN || s.Visibility == elf.STV_INTERNAL {
		return false
	}
	switch s.Binding {
	case elf.STB_GLOBAL, elf.STB_WEAK, STB_GNU_UNIQUE:
	default:
		return false
	}
	if s.Value == 0 && s.Section != elf.SHN_ABS && s.Type != elf.STT_TLS {
		return false
	}
	switch s.Type {
	case elf.STT_NOTYPE, elf.STT_OBJECT, elf.STT_FUNC, elf.STT_COMMON, elf.STT_TLS, elf.STT_GNU_IFUNC:
		return true
	}
	return false
}

// String returns the name as name@@version, name@version or name.
func (s Symbol) String() string {
	switch {
	case s.Version == "":
		return s.Name
	case s.Hidden || !s.Defined():
		return s.Name + "@" + s.Version
	}
	return s.Name + "@@" + s.Version
}

// A SymbolTable is .dynsym or .symtab. It keeps the table as the object has it
// and makes Symbol values when they are asked for.
type SymbolTable struct {
	raw      []byte
	strings  stringTable
	versions *versionTable // nil for .symtab
}

// Len is the number of symbols, with the null symbol at 0.
func (t *SymbolTable) Len() int {
	if t == nil {
		return 0
	}
	return len(t.raw) / symSize
}

// At returns the symbol at an index; false where the table has none.
func (t *SymbolTable) At(index uint32) (Symbol, bool) {
	if uint64(index) >= uint64(t.Len()) {
		return Symbol{}, false
	}
	p := t.raw[uint64(index)*symSize:][:symSize]
	s := Symbol{
		Index:      index,
		Type:       elf.ST_TYPE(p[4]),
		Binding:    elf.ST_BIND(p[4]),
		Visibility: elf.ST_VISIBILITY(p[5]),
		Section:    elf.SectionIndex(le.Uint16(p[6:])),
		Value:      le.Uint64(p[8:]),
		Size:       le.Uint64(p[16:]),
	}
	s.Name, _ = t.strings.at(uint64(le.Uint32(p)))
	t.versions.apply(&s)
	return s, true
}

// All yields the symbols from index 1 on.
func (t *SymbolTable) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := 1; i < t.Len(); i++ {
			if s, _ := t.At(uint32(i)); !yield(s) {
				return
			}
		}
	}
}

// check makes sure that At need not fail: each name is one of the table's.
func (t *SymbolTable) check(what string, at uint64) error {
	for i := 0; i < len(t.raw); i += symSize {
		if n := le.Uint32(t.raw[i:]); uint64(n) >= uint64(len(t.strings)) && n != 0 {
			return malformed(what, at, "symbol %d has its name at offset %#x of %#x bytes of names", i/symSize, n, len(t.strings))
		}
	}
	return nil
}

// dynamicSymbols is .dynsym with the hash tables that index it.
type dynamicSymbols struct {
	SymbolTable
	gnu  *gnuHash
	sysv *sysvHash
}

// DynamicSymbols returns .dynsym; an empty table where the object has none.
//
// Its size is what the hash tables say, which is exact where the object exports
// anything or has a DT_HASH. A program that only imports may have neither: the
// size then comes from the section header, or in memory from the table that
// follows, and is at least what relocations refer to.
func (o *Object) DynamicSymbols() (*SymbolTable, error) {
	d, err := o.dynamicSymbols()
	if err != nil {
		return nil, err
	}
	return &d.SymbolTable, nil
}

func (o *Object) dynamicSymbols() (*dynamicSymbols, error) {
	return o.dynsym.get(o.readDynamicSymbols)
}

func (o *Object) readDynamicSymbols() (*dynamicSymbols, error) {
	d := &dynamicSymbols{}
	symtab, ok := o.Dyn(elf.DT_SYMTAB)
	if !ok {
		return d, nil
	}
	if n, ok := o.Dyn(elf.DT_SYMENT); ok && n != symSize {
		return nil, malformed("dynamic symbols", symtab, "entries of %d bytes", n)
	}
	count, known := uint32(0), false
	if at, ok := o.Dyn(elf.DT_GNU_HASH); ok {
		h, n, err := o.readGNUHash(at)
		if err != nil {
			return nil, err
		}
		d.gnu, count, known = h, n, n != 0
	}
	if at, ok := o.Dyn(elf.DT_HASH); ok {
		h, err := o.readSysVHash(at)
		if err != nil {
			return nil, err
		}
		d.sysv = h
		if !known {
			count, known = h.symbols(), true
		}
	}
	if !known {
		var err error
		if count, err = o.countImports(symtab); err != nil {
			return nil, err
		}
	}
	var err error
	if d.raw, err = o.image.table(symtab, uint64(count)*symSize, "dynamic symbols"); err != nil {
		return nil, err
	}
	if d.strings, err = o.dynamicStrings(); err != nil {
		return nil, err
	}
	if d.versions, err = o.readVersions(uint32(d.Len())); err != nil {
		return nil, err
	}
	return d, d.check("dynamic symbols", symtab)
}

// countImports finds the size of a .dynsym that no hash table covers.
func (o *Object) countImports(symtab uint64) (uint32, error) {
	const what = "dynamic symbols"
	if s, ok := o.sectionOfType(elf.SHT_DYNSYM, symtab); ok {
		return uint32(min(s.Size/symSize, o.image.backed(symtab)/symSize, 1<<32-1)), nil
	}
	least := uint64(1)
	for r, err := range o.rawRelocations() {
		if err != nil {
			return 0, err
		}
		least = max(least, uint64(r.Symbol)+1)
	}
	end := uint64(0) // where the next table begins
	for _, d := range o.Dynamic {
		if isPointer(d.Tag) && d.Value > symtab && (end == 0 || d.Value < end) {
			end = d.Value
		}
	}
	most := uint64(0)
	if end != 0 {
		most = min(end-symtab, o.image.backed(symtab)) / symSize
	}
	if most <= least {
		return uint32(least), nil
	}
	raw, err := o.image.table(symtab, most*symSize, what)
	if err != nil {
		return 0, err
	}
	// Something that no tag points at may lie between: what does not look like
	// an import is not one.
	names := o.dyn(elf.DT_STRSZ)
	n := least
	for ; n < most; n++ {
		p := raw[n*symSize:]
		if uint64(le.Uint32(p)) >= names || le.Uint32(p) == 0 || elf.ST_BIND(p[4]) == elf.STB_LOCAL || p[5]&^3 != 0 {
			break
		}
	}
	return uint32(n), nil
}

// StaticSymbols returns .symtab of a file; an empty table where it is stripped
// and in memory.
func (o *Object) StaticSymbols() (*SymbolTable, error) {
	return o.symtab.get(o.readStaticSymbols)
}

func (o *Object) readStaticSymbols() (*SymbolTable, error) {
	all, err := o.Sections()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Type != elf.SHT_SYMTAB {
			continue
		}
		const what = ".symtab"
		if s.EntSize != symSize || s.Size%symSize != 0 || s.Size/symSize > 1<<32-1 {
			return nil, malformed(what, s.Offset, "%d bytes in entries of %d", s.Size, s.EntSize)
		}
		if uint64(s.Link) >= uint64(len(all)) || all[s.Link].Type != elf.SHT_STRTAB {
			return nil, malformed(what, s.Offset, "its names are in section %d of %d", s.Link, len(all))
		}
		names := all[s.Link]
		text, err := o.image.readString(names.Offset, names.Size, "names of .symtab")
		if err != nil {
			return nil, err
		}
		t := &SymbolTable{}
		if t.strings, err = newStringTable(text, "names of .symtab", names.Offset); err != nil {
			return nil, err
		}
		if t.raw, err = o.image.readTable(s.Offset, s.Size, what); err != nil {
			return nil, err
		}
		return t, t.check(what, s.Offset)
	}
	return &SymbolTable{}, nil
}
