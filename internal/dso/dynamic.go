package dso

import (
	"bytes"
	"debug/elf"
	"strings"
)

// A Dyn is one entry of the dynamic section. Where the tag's value is a
// pointer, Value is an object address, whatever a loader made of it.
type Dyn struct {
	Tag   elf.DynTag
	Value uint64
}

// Tags of the gABI that debug/elf does not name.
const (
	DT_RELRSZ  elf.DynTag = 35
	DT_RELR    elf.DynTag = 36
	DT_RELRENT elf.DynTag = 37
)

const (
	dynSize  = 16
	symSize  = 24
	relaSize = 24
)

// isPointer tells whether a tag's value is an address of the object (d_ptr).
// DT_DEBUG is one of the process, and stays as it is.
func isPointer(tag elf.DynTag) bool {
	switch tag {
	case elf.DT_PLTGOT, elf.DT_HASH, elf.DT_GNU_HASH, elf.DT_STRTAB, elf.DT_SYMTAB,
		elf.DT_RELA, elf.DT_REL, elf.DT_JMPREL, DT_RELR,
		elf.DT_INIT, elf.DT_FINI, elf.DT_INIT_ARRAY, elf.DT_FINI_ARRAY, elf.DT_PREINIT_ARRAY,
		elf.DT_VERSYM, elf.DT_VERDEF, elf.DT_VERNEED,
		elf.DT_TLSDESC_PLT, elf.DT_TLSDESC_GOT:
		return true
	}
	return false
}

// Dyn returns the value of a tag. Of a tag that is there twice the last one
// counts, as for glibc (elf_get_dynamic_info).
func (o *Object) Dyn(tag elf.DynTag) (value uint64, ok bool) {
	for i := len(o.Dynamic) - 1; i >= 0; i-- {
		if o.Dynamic[i].Tag == tag {
			return o.Dynamic[i].Value, true
		}
	}
	return 0, false
}

// dyn is Dyn with 0 for a tag that is not there.
func (o *Object) dyn(tag elf.DynTag) uint64 {
	v, _ := o.Dyn(tag)
	return v
}

// readDynamic reads PT_DYNAMIC and the names that it refers to.
func (o *Object) readDynamic() error {
	s := o.dynamicSegment()
	if s == nil {
		return nil
	}
	if s.Filesz > maxDynamic {
		return readError("dynamic section", s.Vaddr, ErrLimit)
	}
	err := o.readDynamicEntries(s)
	if err == nil {
		err = o.readDynamicNames()
	}
	if err != nil && o.debugOnly() {
		// What stands where the section was is something else.
		o.Dynamic, o.Soname, o.Needed, o.Rpath, o.Runpath = nil, "", nil, "", ""
		o.Flags, o.Flags1 = 0, 0
		return nil
	}
	return err
}

func (o *Object) dynamicSegment() *Segment {
	for i := range o.Segments {
		if s := &o.Segments[i]; s.Type == elf.PT_DYNAMIC && s.Filesz > 0 {
			return s
		}
	}
	return nil
}

func (o *Object) readDynamicEntries(s *Segment) error {
	raw, err := o.image.table(s.Vaddr, s.Filesz, "dynamic section")
	if err != nil {
		return err
	}
	for i := 0; i+dynSize <= len(raw); i += dynSize {
		d := Dyn{elf.DynTag(le.Uint64(raw[i:])), le.Uint64(raw[i+8:])}
		if d.Tag == elf.DT_NULL {
			return nil
		}
		if isPointer(d.Tag) {
			d.Value = o.image.object(d.Value)
		}
		switch d.Tag {
		case elf.DT_FLAGS:
			o.Flags = elf.DynFlag(d.Value)
		case elf.DT_FLAGS_1:
			o.Flags1 = elf.DynFlag1(d.Value)
		}
		o.Dynamic = append(o.Dynamic, d)
	}
	return malformed("dynamic section", s.Vaddr, "no DT_NULL in its %d bytes", len(raw))
}

// readDynamicNames resolves the entries that are names.
func (o *Object) readDynamicNames() error {
	strtab, size := o.dyn(elf.DT_STRTAB), o.dyn(elf.DT_STRSZ)
	names := dynamicNames{o: o, strtab: strtab, size: size}
	for _, d := range o.Dynamic {
		if isDynamicName(d.Tag) {
			names.expect(d.Value)
		}
	}
	for _, d := range o.Dynamic {
		if !isDynamicName(d.Tag) {
			continue
		}
		name, err := names.name(d.Value)
		if err != nil {
			return err
		}
		switch d.Tag {
		case elf.DT_SONAME:
			o.Soname = name
		case elf.DT_NEEDED:
			o.Needed = append(o.Needed, name)
		case elf.DT_RPATH:
			o.Rpath = name
		case elf.DT_RUNPATH:
			o.Runpath = name
		}
	}
	return nil
}

func isDynamicName(tag elf.DynTag) bool {
	return tag == elf.DT_SONAME || tag == elf.DT_NEEDED || tag == elf.DT_RPATH || tag == elf.DT_RUNPATH
}

// dynamicNames reads a few names of .dynstr without the whole of it: they
// usually stand together. Where they do not, the table is read after all.
type dynamicNames struct {
	o            *Object
	strtab, size uint64
	low, high    uint64 // offsets of the first and last name
	any          bool
	piece        []byte // of .dynstr, from low on
}

func (n *dynamicNames) expect(offset uint64) {
	if !n.any || offset < n.low {
		n.low = offset
	}
	if !n.any || offset > n.high {
		n.high = offset
	}
	n.any = true
}

func (n *dynamicNames) name(offset uint64) (string, error) {
	if offset >= n.size {
		return "", malformed("dynamic section", n.strtab, "a name at offset %#x of %#x bytes of names", offset, n.size)
	}
	const close, longest = 16 << 10, 512
	if n.piece == nil && n.high-n.low <= close {
		end := min(n.high+longest, n.size)
		var err error
		if n.piece, err = n.o.image.table(n.strtab+n.low, end-n.low, "names of the dynamic section"); err != nil {
			return "", err
		}
	}
	if at := offset - n.low; at < uint64(len(n.piece)) {
		if name, _, ok := bytes.Cut(n.piece[at:], []byte{0}); ok {
			return string(name), nil
		}
	}
	all, err := n.o.dynamicStrings()
	if err != nil {
		return "", err
	}
	name, ok := all.at(offset)
	if !ok {
		return "", malformed("dynamic section", n.strtab+offset, "a name without end")
	}
	return name, nil
}

// A stringTable is a string section: names that end in a zero, each at most
// maxName long, so that taking one costs a bounded time.
type stringTable string

// newStringTable checks the table once, so that at need not.
func newStringTable(text, what string, at uint64) (stringTable, error) {
	for from := 0; from < len(text); {
		n := strings.IndexByte(text[from:], 0)
		if n < 0 {
			return "", malformed(what, at, "the last name has no end")
		}
		if n > maxName {
			return "", readError(what, at+uint64(from), ErrLimit)
		}
		from += n + 1
	}
	return stringTable(text), nil
}

// at returns the name at an offset.
func (t stringTable) at(offset uint64) (string, bool) {
	if offset >= uint64(len(t)) {
		return "", offset == 0
	}
	name, _, ok := strings.Cut(string(t[offset:]), "\x00")
	return name, ok
}

// dynamicStrings is .dynstr.
func (o *Object) dynamicStrings() (stringTable, error) {
	return o.dynstr.get(func() (stringTable, error) {
		const what = "dynamic string table"
		strtab, size := o.dyn(elf.DT_STRTAB), o.dyn(elf.DT_STRSZ)
		if size == 0 {
			return "", nil
		}
		at, err := o.image.place(strtab, size, what)
		if err != nil {
			return "", err
		}
		text, err := o.image.readString(at, size, what)
		if err != nil {
			return "", err
		}
		return newStringTable(text, what, strtab)
	})
}
