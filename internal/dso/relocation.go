package dso

import (
	"debug/elf"
	"iter"
)

// A RelocationTable is where a relocation comes from.
type RelocationTable uint8

// The tables of the dynamic section.
const (
	FromRELA   RelocationTable = iota // DT_RELA, usually .rela.dyn
	FromJMPREL                        // DT_JMPREL, usually .rela.plt
	FromRELR                          // DT_RELR: packed RELATIVE relocations
)

func (t RelocationTable) String() string {
	switch t {
	case FromRELA:
		return "DT_RELA"
	case FromJMPREL:
		return "DT_JMPREL"
	case FromRELR:
		return "DT_RELR"
	}
	return "unknown"
}

// A Relocation is what the loader does to one place of the object (x86-64
// psABI, "Relocation Types").
type Relocation struct {
	Offset  uint64 // object address of the place
	Type    elf.R_X86_64
	Symbol  uint32 // index into .dynsym, 0 for none
	Name    string // the symbol's
	Version string // and its version, "" where it has none
	Table   RelocationTable

	// Addend of the record. Of DT_RELR it is the word at Offset: of a file the
	// link-time address; of memory what the word is now less the bias, which is
	// the same unless the program has changed it.
	Addend int64

	// Text tells that the place is in a segment that is not writable.
	Text bool
}

// Width is the number of bytes that the relocation writes: 0 for COPY (the
// symbol's size) and NONE, 16 for TLSDESC.
func (r Relocation) Width() int {
	switch r.Type {
	case elf.R_X86_64_NONE, elf.R_X86_64_COPY:
		return 0
	case elf.R_X86_64_TLSDESC:
		return 16
	case elf.R_X86_64_32, elf.R_X86_64_32S, elf.R_X86_64_PC32, elf.R_X86_64_PLT32, elf.R_X86_64_GOT32,
		elf.R_X86_64_DTPOFF32, elf.R_X86_64_TPOFF32, elf.R_X86_64_SIZE32, elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPC32:
		return 4
	case elf.R_X86_64_16, elf.R_X86_64_PC16:
		return 2
	case elf.R_X86_64_8, elf.R_X86_64_PC8:
		return 1
	}
	return 8
}

// Relocations yields the relocations of DT_RELA, DT_JMPREL and DT_RELR, in this
// order. An error is the last thing that it yields: it wraps ErrMalformed for
// tables that overlap, that are larger than their segment or that relocate
// places outside of the segments, ErrUnsupported for DT_REL, which x86-64 does
// not use.
//
// Where several relocations of one place follow each other, all are yielded.
func (o *Object) Relocations() iter.Seq2[Relocation, error] {
	return func(yield func(Relocation, error) bool) {
		var symbols *SymbolTable
		for r, err := range o.rawRelocations() {
			if err == nil && r.Symbol != 0 {
				if symbols == nil {
					symbols, err = o.DynamicSymbols()
				}
				if err == nil {
					s, ok := symbols.At(r.Symbol)
					if !ok {
						err = malformed("relocations", r.Offset, "symbol %d of %d", r.Symbol, symbols.Len())
					}
					r.Name, r.Version = s.Name, s.Version
				}
			}
			if err != nil {
				yield(Relocation{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// rawRelocations is Relocations without the symbols' names.
func (o *Object) rawRelocations() iter.Seq2[Relocation, error] {
	return func(yield func(Relocation, error) bool) {
		tables, err := o.relocationTables()
		if err != nil {
			yield(Relocation{}, err)
			return
		}
		for _, t := range tables {
			walk := o.walkRela
			if t.from == FromRELR {
				walk = o.walkRelr
			}
			more, err := walk(t, func(r Relocation) bool { return yield(r, nil) })
			if err != nil {
				yield(Relocation{}, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

// relocationTable is one table that the dynamic section points at.
type relocationTable struct {
	from RelocationTable
	at   Range
}

// relocationTables returns the tables that are not empty, checked against each
// other.
func (o *Object) relocationTables() ([]relocationTable, error) {
	const what = "relocations"
	if n := o.dyn(elf.DT_RELSZ); n != 0 {
		return nil, readError(what, o.dyn(elf.DT_REL), ErrUnsupported)
	}
	if kind, ok := o.Dyn(elf.DT_PLTREL); ok && elf.DynTag(kind) != elf.DT_RELA && o.dyn(elf.DT_PLTRELSZ) != 0 {
		return nil, readError(what, o.dyn(elf.DT_JMPREL), ErrUnsupported)
	}
	rela := Range{o.dyn(elf.DT_RELA), o.dyn(elf.DT_RELASZ)}
	jmprel := Range{o.dyn(elf.DT_JMPREL), o.dyn(elf.DT_PLTRELSZ)}
	relr := Range{o.dyn(DT_RELR), o.dyn(DT_RELRSZ)}
	if n, ok := o.Dyn(elf.DT_RELAENT); ok && n != relaSize && rela.Size != 0 {
		return nil, malformed(what, rela.Addr, "entries of %d bytes", n)
	}
	if n, ok := o.Dyn(DT_RELRENT); ok && n != 8 && relr.Size != 0 {
		return nil, malformed(what, relr.Addr, "packed entries of %d bytes", n)
	}
	// Linkers may count the PLT's relocations to both tables (glibc
	// elf/dynamic-link.h, _ELF_DYNAMIC_DO_RELOC).
	if rela.Size >= jmprel.Size && jmprel.Size != 0 && rela.Addr+rela.Size == jmprel.Addr+jmprel.Size {
		rela.Size -= jmprel.Size
	}
	var tables []relocationTable
	for _, t := range []relocationTable{{FromRELA, rela}, {FromJMPREL, jmprel}, {FromRELR, relr}} {
		if t.at.Size == 0 {
			continue
		}
		entry := uint64(relaSize)
		if t.from == FromRELR {
			entry = 8
		}
		if t.at.Size%entry != 0 {
			return nil, malformed(what, t.at.Addr, "%s has %d bytes in entries of %d", t.from, t.at.Size, entry)
		}
		if left := o.image.backed(t.at.Addr); t.at.Size > left {
			return nil, malformed(what, t.at.Addr, "%s has %d bytes, its segment has %d more", t.from, t.at.Size, left)
		}
		for _, other := range tables {
			if t.at.Addr < other.at.End() && other.at.Addr < t.at.End() {
				return nil, malformed(what, t.at.Addr, "%s overlaps %s", t.from, other.from)
			}
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// relocationChunk is how many bytes of a table are read at a time: a multiple
// of both entries' sizes.
const relocationChunk = 24 << 10

func (o *Object) walkRela(t relocationTable, yield func(Relocation) bool) (more bool, err error) {
	var buf [relocationChunk]byte
	var place *Segment
	for done := uint64(0); done < t.at.Size; {
		p := buf[:min(relocationChunk, t.at.Size-done)]
		if err := o.image.read(p, t.at.Addr+done, "relocations"); err != nil {
			return false, err
		}
		for i := 0; i < len(p); i += relaSize {
			info := le.Uint64(p[i+8:])
			r := Relocation{
				Offset: le.Uint64(p[i:]),
				Type:   elf.R_X86_64(uint32(info)),
				Symbol: uint32(info >> 32),
				Addend: int64(le.Uint64(p[i+16:])),
				Table:  t.from,
			}
			if r.Type != elf.R_X86_64_NONE {
				if place == nil || r.Offset < place.Vaddr || r.Offset-place.Vaddr >= place.Memsz {
					place = o.image.load(r.Offset)
				}
				if place == nil || uint64(r.Width()) > place.Memsz-(r.Offset-place.Vaddr) {
					return false, malformed("relocations", t.at.Addr+done+uint64(i), "the place %#x is in no segment", r.Offset)
				}
				r.Text = place.Flags&elf.PF_W == 0
			}
			if !yield(r) {
				return false, nil
			}
		}
		done += uint64(len(p))
	}
	return true, nil
}

// walkRelr decodes packed relocations: an even word is the address of one
// place, an odd word a bitmap of the 63 words that follow the last place (gABI,
// "RELR Relocation Table"). Each word of the file can be relocated once, which
// bounds what a small table may expand to.
func (o *Object) walkRelr(t relocationTable, yield func(Relocation) bool) (more bool, err error) {
	const what = "packed relocations"
	left := uint64(0)
	for _, s := range o.image.loads {
		left += s.Filesz / 8
	}
	places := window{image: &o.image, what: what}
	next, begun := uint64(0), false
	var buf [relocationChunk]byte
	place := func(at uint64) (bool, error) {
		if left == 0 {
			return false, malformed(what, t.at.Addr, "more places than the segments have words")
		}
		left--
		p, err := places.at(at, 8)
		if err != nil {
			return false, err
		}
		r := Relocation{Offset: at, Type: elf.R_X86_64_RELATIVE, Table: FromRELR, Addend: int64(le.Uint64(p) - o.image.bias)}
		r.Text = o.image.load(at).Flags&elf.PF_W == 0
		return yield(r), nil
	}
	for done := uint64(0); done < t.at.Size; {
		p := buf[:min(relocationChunk, t.at.Size-done)]
		if err := o.image.read(p, t.at.Addr+done, what); err != nil {
			return false, err
		}
		for i := 0; i < len(p); i += 8 {
			entry := le.Uint64(p[i:])
			if entry&1 == 0 {
				if more, err := place(entry); err != nil || !more {
					return false, err
				}
				next, begun = entry+8, true
				continue
			}
			if !begun {
				return false, malformed(what, t.at.Addr+done+uint64(i), "a bitmap before any place")
			}
			for at, bits := next, entry>>1; bits != 0; at, bits = at+8, bits>>1 {
				if bits&1 == 0 {
					continue
				}
				if more, err := place(at); err != nil || !more {
					return false, err
				}
			}
			next += 63 * 8
		}
		done += uint64(len(p))
	}
	return true, nil
}
