package dso

// A Mapping is what the loader maps of the file for one PT_LOAD, in whole pages
// (glibc elf/dl-map-segments.h, Linux fs/binfmt_elf.c).
//
// The bytes from Addr to Addr+Exact are the file's from Offset on, also those
// of the first page before p_vaddr and, in a segment without .bss, those of the
// last page behind p_filesz. Where the file ends before, the kernel fills the
// page with zeros. A segment whose p_memsz exceeds p_filesz is exact up to
// p_filesz only: the loader zeroes what follows, and of the last page's rest
// behind p_memsz the kernel does so for an executable, glibc for a library not.
type Mapping struct {
	Segment Segment
	Addr    uint64 // object address, a multiple of a page
	Offset  uint64 // in the file, a multiple of a page
	Size    uint64 // of the file-backed pages
	Exact   uint64 // bytes from Addr on that are as in the file, before relocation
}

// Range is the object addresses that the file determines.
func (m Mapping) Range() Range { return Range{m.Addr, m.Exact} }

// Mappings returns the file-backed mappings, ascending. Check tells whether the
// offsets are such that they can be mapped at all.
func (o *Object) Mappings() []Mapping {
	var all []Mapping
	for _, s := range o.image.loads {
		if s.Filesz == 0 {
			continue
		}
		m := Mapping{Segment: s, Addr: pageDown(s.Vaddr), Offset: pageDown(s.Offset)}
		m.Size = pageUp(s.Vaddr+s.Filesz) - m.Addr
		m.Exact = m.Size
		if s.Memsz > s.Filesz {
			m.Exact = s.Vaddr + s.Filesz - m.Addr
		}
		all = append(all, m)
	}
	return all
}

// ReadMapped fills p with what a fresh, unrelocated mapping has at an object
// address, page rests included: see Mapping. Bytes that no file determines
// (.bss and what follows it in its page) read as zeros. Where two segments
// share a page, the later one has it, as it is mapped over the first.
//
// It fails with ErrNoFile in memory form, with ErrMalformed outside of the
// mapped pages.
func (o *Object) ReadMapped(p []byte, vaddr uint64) error {
	const what = "mapped bytes"
	im := &o.image
	if im.memory {
		return readError(what, vaddr, ErrNoFile)
	}
	for len(p) > 0 {
		s := o.mappedBy(vaddr)
		if s == nil {
			return malformed(what, vaddr, "in no segment's pages")
		}
		end := pageUp(s.Vaddr + s.Memsz) // of the segment's pages, or where the next takes over
		if i := o.loadNumber(s) + 1; i < len(im.loads) {
			end = min(end, pageDown(im.loads[i].Vaddr))
		}
		n := min(uint64(len(p)), end-vaddr)
		exact := pageUp(s.Vaddr + s.Filesz)
		if s.Memsz > s.Filesz {
			exact = s.Vaddr + s.Filesz
		}
		fromFile := uint64(0)
		if vaddr < exact && s.Filesz > 0 {
			fromFile = min(n, exact-vaddr)
		}
		if err := o.readFilePages(p[:fromFile], pageDown(s.Offset)+(vaddr-pageDown(s.Vaddr))); err != nil {
			return err
		}
		clear(p[fromFile:n])
		p, vaddr = p[n:], vaddr+n
	}
	return nil
}

// mappedBy returns the last segment whose pages have an object address.
func (o *Object) mappedBy(vaddr uint64) *Segment {
	for i := len(o.image.loads) - 1; i >= 0; i-- {
		s := &o.image.loads[i]
		if vaddr >= pageDown(s.Vaddr) && vaddr < pageUp(s.Vaddr+s.Memsz) {
			return s
		}
	}
	return nil
}

// readFilePages reads from a file offset what a mapping shows there: zeros
// behind the end of the file, in its last page. A page that is wholly behind it
// can't be touched in a mapping, and is an error.
func (o *Object) readFilePages(p []byte, offset uint64) error {
	im := &o.image
	have := uint64(0)
	if offset < im.size {
		have = min(uint64(len(p)), im.size-offset)
	}
	if offset+uint64(len(p)) > pageUp(im.size) {
		return readError("mapped bytes", offset, ErrTruncated)
	}
	clear(p[have:])
	if have == 0 {
		return nil
	}
	return im.readSource(p[:have], offset, "mapped bytes")
}
