package dso

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
	"sort"
)

// A Section is one section header of a file (gABI, "Sections"), or a name that
// was derived for a range of addresses.
type Section struct {
	Index   int // in the header table; -1 where derived
	Name    string
	Type    elf.SectionType
	Flags   elf.SectionFlag
	Addr    uint64 // object address, 0 where it is not loaded
	Offset  uint64 // in the file
	Size    uint64
	Link    uint32
	Info    uint32
	Align   uint64
	EntSize uint64

	// Derived tells that there are no section headers, and the name follows
	// from the dynamic section or the segments. Type and Flags are 0 then.
	Derived bool
}

// Sections returns the section headers, with the null section at 0; none in
// memory and where the file has none.
func (o *Object) Sections() ([]Section, error) {
	return o.sections.get(o.readSections)
}

// SectionAt returns the section of an object address. Where there are no
// headers, or the address lies between sections, its name is derived: from the
// dynamic section where that tells, otherwise it is the segment with its
// permissions, "segment 1 (r-x)". False outside of the segments.
//
// Broken section headers count as none: the loader doesn't look at them either.
func (o *Object) SectionAt(vaddr uint64) (Section, bool) {
	placed, _ := o.placed.get(func() ([]Section, error) { return o.placeSections(), nil })
	i := sort.Search(len(placed), func(i int) bool { return placed[i].Addr > vaddr })
	if i > 0 {
		if s := placed[i-1]; vaddr-s.Addr < s.Size {
			return s, true
		}
	}
	seg := o.image.load(vaddr)
	if seg == nil {
		return Section{}, false
	}
	s := Section{Index: -1, Name: fmt.Sprintf("segment %d (%s)", o.loadNumber(seg), seg.Permissions()), Addr: seg.Vaddr, Offset: seg.Offset, Size: seg.Memsz, Derived: true}
	if o.dynamicSegment() != nil && seg.Flags&elf.PF_W != 0 && vaddr-seg.Vaddr >= seg.Filesz {
		s.Name, s.Addr, s.Offset, s.Size = ".bss", seg.Vaddr+seg.Filesz, seg.Offset+seg.Filesz, seg.Memsz-seg.Filesz
	}
	return s, true
}

// loadNumber counts the PT_LOADs before a segment: readers know them by that.
func (o *Object) loadNumber(s *Segment) int {
	for i := range o.image.loads {
		if o.image.loads[i].Index == s.Index {
			return i
		}
	}
	return -1
}

// placeSections returns the sections that have addresses, ascending.
func (o *Object) placeSections() []Section {
	all, _ := o.Sections()
	var placed []Section
	for _, s := range all {
		// .tbss has addresses of what follows it, and takes none itself.
		tbss := s.Flags&elf.SHF_TLS != 0 && s.Type == elf.SHT_NOBITS
		if s.Flags&elf.SHF_ALLOC != 0 && s.Size != 0 && !tbss && s.Addr+s.Size > s.Addr {
			placed = append(placed, s)
		}
	}
	if len(placed) == 0 {
		return o.deriveSections()
	}
	slices.SortStableFunc(placed, func(a, b Section) int { return cmp.Compare(a.Addr, b.Addr) })
	return placed
}

func (o *Object) readSections() ([]Section, error) {
	const what = "section headers"
	im, h := &o.image, o.ehdr
	if im.memory || h.shoff == 0 {
		return nil, nil
	}
	if h.shentsize != shdrSize {
		return nil, malformed(what, h.shoff, "entries of %d bytes", h.shentsize)
	}
	n, names := uint64(h.shnum), uint32(h.shstrndx)
	if n == 0 || h.shstrndx == uint16(elf.SHN_XINDEX) {
		// More than fit the header's fields: the null section has the numbers.
		null, err := im.readTable(h.shoff, shdrSize, what)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			n = le.Uint64(null[32:])
		}
		if h.shstrndx == uint16(elf.SHN_XINDEX) {
			names = le.Uint32(null[40:])
		}
	}
	if n > maxSections {
		return nil, readError(what, h.shoff, ErrLimit)
	}
	if n == 0 {
		return nil, nil
	}
	raw, err := im.readTable(h.shoff, n*shdrSize, what)
	if err != nil {
		return nil, err
	}
	all := make([]Section, n)
	nameAt := make([]uint32, n)
	for i := range all {
		p := raw[i*shdrSize:]
		nameAt[i] = le.Uint32(p)
		all[i] = Section{
			Index:   i,
			Type:    elf.SectionType(le.Uint32(p[4:])),
			Flags:   elf.SectionFlag(le.Uint64(p[8:])),
			Addr:    le.Uint64(p[16:]),
			Offset:  le.Uint64(p[24:]),
			Size:    le.Uint64(p[32:]),
			Link:    le.Uint32(p[40:]),
			Info:    le.Uint32(p[44:]),
			Align:   le.Uint64(p[48:]),
			EntSize: le.Uint64(p[56:]),
		}
	}
	if names == uint32(elf.SHN_UNDEF) {
		return all, nil
	}
	if uint64(names) >= n {
		return nil, malformed(what, h.shoff, "the names are in section %d of %d", names, n)
	}
	strtab, err := im.readString(all[names].Offset, all[names].Size, "section names")
	if err != nil {
		return nil, err
	}
	table, err := newStringTable(strtab, "section names", all[names].Offset)
	if err != nil {
		return nil, err
	}
	for i := range all {
		name, ok := table.at(uint64(nameAt[i]))
		if !ok {
			return nil, malformed(what, h.shoff+uint64(i)*shdrSize, "a name at offset %#x of %#x bytes of names", nameAt[i], len(table))
		}
		all[i].Name = name
	}
	return all, nil
}

// sectionOfType returns the section of a type that begins at an object address.
func (o *Object) sectionOfType(kind elf.SectionType, vaddr uint64) (Section, bool) {
	all, err := o.Sections()
	if err != nil {
		return Section{}, false
	}
	for _, s := range all {
		if s.Type == kind && s.Addr == vaddr {
			return s, true
		}
	}
	return Section{}, false
}

// debugOnly tells that the file has an object's debugging information and not
// its contents: .dynamic has an address and a size, but no bytes.
func (o *Object) debugOnly() bool {
	all, err := o.Sections()
	if err != nil {
		return false
	}
	for _, s := range all {
		if s.Name == ".dynamic" {
			return s.Type == elf.SHT_NOBITS
		}
	}
	return false
}

// deriveSections names what the dynamic section and the segments tell.
func (o *Object) deriveSections() []Section {
	var all []Section
	add := func(name string, addr, size uint64) {
		if s := o.image.load(addr); size != 0 && s != nil && size <= s.Memsz-(addr-s.Vaddr) {
			all = append(all, Section{Index: -1, Name: name, Addr: addr, Offset: s.Offset + (addr - s.Vaddr), Size: size, Derived: true})
		}
	}
	sized := func(name string, at, size elf.DynTag) {
		if addr, ok := o.Dyn(at); ok {
			add(name, addr, o.dyn(size))
		}
	}
	sized(".dynstr", elf.DT_STRTAB, elf.DT_STRSZ)
	sized(".rela.dyn", elf.DT_RELA, elf.DT_RELASZ)
	sized(".rela.plt", elf.DT_JMPREL, elf.DT_PLTRELSZ)
	sized(".relr.dyn", DT_RELR, DT_RELRSZ)
	sized(".init_array", elf.DT_INIT_ARRAY, elf.DT_INIT_ARRAYSZ)
	sized(".fini_array", elf.DT_FINI_ARRAY, elf.DT_FINI_ARRAYSZ)
	sized(".preinit_array", elf.DT_PREINIT_ARRAY, elf.DT_PREINIT_ARRAYSZ)
	if got, ok := o.Dyn(elf.DT_PLTGOT); ok {
		// Three words of the loader's, then one for each function imported.
		name := ".got.plt"
		if o.RELRO.Contains(got) {
			name = ".got" // with BIND_NOW linkers make one of the two
		}
		add(name, got, (3+min(o.dyn(elf.DT_PLTRELSZ), maxDynamic*relaSize)/relaSize)*8)
	}
	if d, err := o.dynamicSymbols(); err == nil && d.Len() > 0 {
		add(".dynsym", o.dyn(elf.DT_SYMTAB), uint64(len(d.raw)))
		if d.versions != nil {
			add(".gnu.version", o.dyn(elf.DT_VERSYM), uint64(len(d.versions.versym)))
		}
		if d.gnu != nil {
			add(".gnu.hash", o.dyn(elf.DT_GNU_HASH), uint64(16+len(d.gnu.bloom)+len(d.gnu.buckets)+len(d.gnu.chains)))
		}
		if d.sysv != nil {
			add(".hash", o.dyn(elf.DT_HASH), uint64(8+len(d.sysv.buckets)+len(d.sysv.chains)))
		}
	}
	if f, err := o.frames.get(o.readFrames); err == nil {
		add(".eh_frame", f.table.Addr, f.table.Size)
	}
	for _, s := range o.Segments {
		switch s.Type {
		case elf.PT_DYNAMIC:
			add(".dynamic", s.Vaddr, s.Filesz)
		case elf.PT_INTERP:
			add(".interp", s.Vaddr, s.Filesz)
		case elf.PT_NOTE:
			add(".note", s.Vaddr, s.Filesz)
		case elf.PT_GNU_EH_FRAME:
			add(".eh_frame_hdr", s.Vaddr, s.Filesz)
		case elf.PT_TLS:
			add(".tdata", s.Vaddr, s.Filesz)
		}
	}
	slices.SortStableFunc(all, func(a, b Section) int { return cmp.Compare(a.Addr, b.Addr) })
	// What an untrusted size makes overlap is cut to where the next one begins.
	for i := 0; i+1 < len(all); i++ {
		all[i].Size = min(all[i].Size, all[i+1].Addr-all[i].Addr)
	}
	return slices.DeleteFunc(all, func(s Section) bool { return s.Size == 0 })
}
