package dso

import (
	"bytes"
	"cmp"
	"debug/elf"
	"slices"
	"sort"
)

// An FDE is a function, or a part of one, as the unwind tables know it: a frame
// description entry of .eh_frame.
type FDE struct {
	Start  uint64 // object address of the first instruction
	Size   uint64
	LSDA   uint64 // object address of its exception table, 0 where it has none
	Signal bool   // a signal frame (augmentation 'S'): unwinding goes on at, not before, the return address
	Record uint64 // object address of the entry
}

// Range is the code that the entry covers.
func (f FDE) Range() Range { return Range{f.Start, f.Size} }

// FDEs returns the functions of .eh_frame by ascending address; none where the
// object has no unwind tables.
//
// The table is found by PT_GNU_EH_FRAME, or by its section header (a static
// ET_EXEC has only that, so in memory it has no FDEs), and read
// from its begin to the terminator, the end of the section, or, where a linker
// wrote no terminator and there are no section headers, to the first record
// that is none after as many as .eh_frame_hdr counts. Encodings other than
// those that code for Linux uses, and entries of what is not in an executable
// segment, fail with ErrMalformed; entries of code that the linker has thrown
// away are left out.
func (o *Object) FDEs() ([]FDE, error) {
	f, err := o.frames.get(o.readFrames)
	return f.all, err
}

// FDEAt returns the FDE whose code has an object address.
func (o *Object) FDEAt(vaddr uint64) (FDE, bool, error) {
	all, err := o.FDEs()
	if err != nil {
		return FDE{}, false, err
	}
	i := sort.Search(len(all), func(i int) bool { return all[i].Start > vaddr })
	if i == 0 || !all[i-1].Range().Contains(vaddr) {
		return FDE{}, false, nil
	}
	return all[i-1], true, nil
}

// Pointer encodings (LSB core, "DWARF Exception Header Encoding").
const (
	peAbsptr  = 0x00
	peUleb128 = 0x01
	peUdata2  = 0x02
	peUdata4  = 0x03
	peUdata8  = 0x04
	peSleb128 = 0x09
	peSdata2  = 0x0a
	peSdata4  = 0x0b
	peSdata8  = 0x0c

	pePcrel    = 0x10
	peDatarel  = 0x30
	peIndirect = 0x80
	peOmit     = 0xff
)

// frames is what .eh_frame has, and where it turned out to be.
type frames struct {
	all   []FDE
	table Range
}

// frameTable is where .eh_frame stands and what is known of its size.
type frameTable struct {
	at    uint64
	end   uint64 // the table ends here at the latest
	sized bool   // end is the section's, not the segment's
	count uint64 // FDEs by .eh_frame_hdr, 0 where unknown
}

// findFrames returns the table, false where the object has none.
func (o *Object) findFrames() (frameTable, bool, error) {
	var t frameTable
	for _, s := range o.Segments {
		if s.Type != elf.PT_GNU_EH_FRAME || s.Filesz == 0 {
			continue
		}
		const what = ".eh_frame_hdr"
		raw, err := o.image.table(s.Vaddr, min(s.Filesz, 64), what)
		if err != nil {
			return t, false, err
		}
		if len(raw) < 4 || raw[0] != 1 {
			return t, false, malformed(what, s.Vaddr, "not of version 1")
		}
		f := frameReader{buf: raw, vaddr: s.Vaddr, pos: 4, hdr: s.Vaddr}
		at, ok := f.pointer(raw[1])
		if !ok || raw[1] == peOmit {
			return t, false, malformed(what, s.Vaddr, "pointer to .eh_frame with encoding %#x", raw[1])
		}
		t.at = o.image.object(at)
		if raw[2] != peOmit {
			if t.count, ok = f.pointer(raw[2]); !ok {
				return t, false, malformed(what, s.Vaddr, "count with encoding %#x", raw[2])
			}
		}
		break
	}
	all, err := o.Sections()
	if err == nil {
		for _, s := range all {
			if s.Name == ".eh_frame" && s.Type != elf.SHT_NOBITS && s.Flags&elf.SHF_ALLOC != 0 && (t.at == 0 || s.Addr == t.at) {
				t.at, t.end, t.sized = s.Addr, s.Addr+s.Size, true
				break
			}
		}
	}
	if t.at == 0 {
		return t, false, nil
	}
	limit := t.at + o.image.backed(t.at)
	if limit == t.at {
		return t, false, malformed(".eh_frame", t.at, "not in a loaded segment")
	}
	if !t.sized || t.end > limit || t.end < t.at {
		t.end, t.sized = limit, false
	}
	return t, true, nil
}

// frameReader walks a piece of unwind tables that is in buf.
type frameReader struct {
	buf   []byte
	vaddr uint64 // of buf[0]
	pos   int
	hdr   uint64 // base of datarel, 0 where there is none
}

// u reads n bytes, little-endian; false where they are not there.
func (f *frameReader) u(n int) (uint64, bool) {
	if n > len(f.buf)-f.pos {
		return 0, false
	}
	p := f.buf[f.pos:]
	f.pos += n
	switch n {
	case 1:
		return uint64(p[0]), true
	case 2:
		return uint64(le.Uint16(p)), true
	case 4:
		return uint64(le.Uint32(p)), true
	}
	return le.Uint64(p), true
}

// leb reads a LEB128 number of at most 64 bits.
func (f *frameReader) leb(signed bool) (uint64, bool) {
	v := uint64(0)
	for shift := 0; shift < 64; shift += 7 {
		if f.pos >= len(f.buf) {
			return 0, false
		}
		b := f.buf[f.pos]
		f.pos++
		v |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			if signed && b&0x40 != 0 && shift+7 < 64 {
				v |= ^uint64(0) << (shift + 7)
			}
			return v, true
		}
	}
	return 0, false
}

// value reads a number in the format that an encoding's low bits name.
func (f *frameReader) value(encoding byte) (uint64, bool) {
	switch encoding & 0x0f {
	case peAbsptr, peUdata8, peSdata8:
		return f.u(8)
	case peUdata4:
		return f.u(4)
	case peSdata4:
		v, ok := f.u(4)
		return uint64(int64(int32(v))), ok
	case peUdata2:
		return f.u(2)
	case peSdata2:
		v, ok := f.u(2)
		return uint64(int64(int16(v))), ok
	case peUleb128:
		return f.leb(false)
	case peSleb128:
		return f.leb(true)
	}
	return 0, false
}

// pointer reads an encoded pointer; of an indirect one where the pointer is.
func (f *frameReader) pointer(encoding byte) (uint64, bool) {
	if encoding == peOmit {
		return 0, true
	}
	here := f.vaddr + uint64(f.pos)
	v, ok := f.value(encoding)
	if !ok || v == 0 && encoding&0x70 != peDatarel {
		return 0, ok // 0 is no pointer, whatever it is relative to
	}
	switch encoding & 0x70 {
	case peAbsptr:
		return v, true
	case pePcrel:
		return here + v, true
	case peDatarel:
		return f.hdr + v, f.hdr != 0
	}
	return 0, false
}

// cie is what of a common information entry its FDEs need.
type cie struct {
	pointers byte // encoding of FDE addresses
	lsda     byte // encoding of exception tables, peOmit for none
	sized    bool // augmentation 'z': FDEs have augmentation data
	signal   bool
}

func (o *Object) readFrames() (frames, error) {
	const what = ".eh_frame"
	t, ok, err := o.findFrames()
	if err != nil || !ok {
		return frames{}, err
	}
	b := frameBuffer{image: &o.image, at: t.at, end: t.end}
	if t.sized {
		if err := b.need(t.end - t.at); err != nil {
			return frames{}, err
		}
	}
	const least = 16 // bytes of an FDE, to bound what the count allocates
	all := make([]FDE, 0, min(t.count, (t.end-t.at)/least, 1<<16))
	cies := map[uint64]cie{}
	var last cie // of the FDE before: nearly always the same
	lastAt, walked := ^uint64(0), uint64(0)
	end := uint64(0)  // of the last record
	var code *Segment // of the FDE before
	sorted := true
	for at := uint64(0); at+4 <= t.end-t.at; {
		err := b.need(at + 4)
		if err != nil {
			return frames{}, err
		}
		head, size := uint64(4), uint64(le.Uint32(b.buf[at:]))
		if size == 0 {
			if walked < t.count {
				at += 4 // a terminator amidst the table, of a partial link
				continue
			}
			break
		}
		if size == 0xffffffff && at+12 <= t.end-t.at {
			if err := b.need(at + 12); err != nil {
				return frames{}, err
			}
			head, size = 12, le.Uint64(b.buf[at+4:])
		}
		next := at + head + size
		wrong := ""
		if size < 4 || size > t.end-t.at-at-head {
			wrong = "a record runs out of the table"
		} else if err := b.need(next); err != nil {
			return frames{}, err
		}
		var record frameReader
		var link, cieAt uint64
		if wrong == "" {
			record = frameReader{buf: b.buf[:next], vaddr: t.at, pos: int(at + head)}
			link, _ = record.u(4)
			if cieAt = at + head - link; link != 0 && link > at+head {
				wrong = "an FDE's CIE lies before the table"
			}
		}
		switch {
		case wrong != "":
		case link == 0:
			c, problem := record.cie()
			if wrong = problem; wrong == "" {
				cies[at], last, lastAt = c, c, at
			}
		default:
			if cieAt != lastAt {
				c, known := cies[cieAt]
				if !known {
					wrong = "an FDE without its CIE"
					break
				}
				last, lastAt = c, cieAt
			}
			f, ok := record.fde(last)
			f.Start = o.image.object(f.Start)
			f.Record = t.at + at
			if !ok {
				wrong = "an FDE whose fields run out of it, or whose encoding is not known"
				break
			}
			// An FDE of code that the linker threw away begins at 0.
			kept := f.Size > 0 && f.Start != 0
			if kept && (code == nil || f.Start < code.Vaddr || f.Start-code.Vaddr >= code.Memsz) {
				code = o.image.load(f.Start)
			}
			if kept && (code == nil || code.Flags&elf.PF_X == 0 || f.Size > code.Memsz-(f.Start-code.Vaddr)) {
				wrong = "an FDE of what is not code"
				break
			}
			walked++
			if kept {
				sorted = sorted && (len(all) == 0 || all[len(all)-1].Start <= f.Start)
				all = append(all, f)
			}
		}
		if wrong != "" {
			if !t.sized && t.count != 0 && walked >= t.count {
				break // what follows the table, not the table
			}
			return frames{}, malformed(what, t.at+at, "%s", wrong)
		}
		at, end = next, next
	}
	if !sorted {
		slices.SortStableFunc(all, func(a, b FDE) int { return cmp.Compare(a.Start, b.Start) })
	}
	return frames{slices.Clip(all), Range{t.at, end}}, nil
}

// cie reads a CIE behind its id (LSB core, "The Common Information Entry
// Format"). problem is "" where it could.
func (f *frameReader) cie() (c cie, problem string) {
	const short = "a CIE whose fields run out of it"
	c.lsda = peOmit
	version, ok := f.u(1)
	if !ok {
		return c, short
	}
	if version != 1 && version != 3 {
		return c, "a CIE of an unknown version"
	}
	n := bytes.IndexByte(f.buf[f.pos:], 0)
	if n < 0 || n > 16 {
		return c, "a CIE whose augmentation has no end"
	}
	augmentation := f.buf[f.pos : f.pos+n]
	f.pos += n + 1
	_, ok1 := f.leb(false) // code alignment
	_, ok2 := f.leb(true)  // data alignment
	var ok3 bool           // return address register
	if version == 1 {
		_, ok3 = f.u(1)
	} else {
		_, ok3 = f.leb(false)
	}
	if !ok1 || !ok2 || !ok3 {
		return c, short
	}
	if len(augmentation) == 0 {
		return c, ""
	}
	if augmentation[0] != 'z' {
		return c, "a CIE with an unknown augmentation"
	}
	c.sized = true
	if size, ok := f.leb(false); !ok || size > uint64(len(f.buf)-f.pos) {
		return c, short
	}
	for _, letter := range augmentation[1:] {
		var v uint64
		ok := true
		switch letter {
		case 'R':
			v, ok = f.u(1)
			c.pointers = byte(v)
		case 'L':
			v, ok = f.u(1)
			c.lsda = byte(v)
		case 'P':
			if v, ok = f.u(1); ok {
				_, ok = f.pointer(byte(v))
			}
		case 'S':
			c.signal = true
		default:
			return c, "a CIE with an unknown augmentation"
		}
		if !ok {
			return c, short
		}
	}
	return c, ""
}

// fde reads an FDE behind its link to the CIE.
func (f *frameReader) fde(c cie) (FDE, bool) {
	if c.pointers&peIndirect != 0 {
		return FDE{}, false
	}
	start, ok := f.pointer(c.pointers)
	if !ok {
		return FDE{}, false
	}
	size, ok := f.value(c.pointers)
	if !ok {
		return FDE{}, false
	}
	d := FDE{Start: start, Size: size, Signal: c.signal}
	if !c.sized {
		return d, true
	}
	n, ok := f.leb(false)
	if !ok || n > uint64(len(f.buf)-f.pos) {
		return FDE{}, false
	}
	if c.lsda != peOmit && n > 0 {
		if d.LSDA, ok = f.pointer(c.lsda); !ok {
			return FDE{}, false
		}
	}
	return d, true
}

// frameBuffer reads a table whose size is not known, as far as it is needed.
type frameBuffer struct {
	image   *image
	at, end uint64
	buf     []byte
}

// need makes sure that the first n bytes are in buf.
func (b *frameBuffer) need(n uint64) error {
	have := uint64(len(b.buf))
	if n <= have {
		return nil
	}
	const step = 64 << 10
	n = min(max(n, 2*have, step), max(n, b.end-b.at))
	if n > b.image.limit() {
		return readError(".eh_frame", b.at, ErrLimit)
	}
	more, err := b.image.table(b.at+have, n-have, ".eh_frame")
	if err != nil {
		return err
	}
	if have == 0 {
		b.buf = more
		return nil
	}
	b.buf = append(b.buf, more...)
	return nil
}
