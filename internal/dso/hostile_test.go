package dso

import (
	"bytes"
	"debug/elf"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"
)

// firstError asks an object for everything and returns the first refusal.
func firstError(raw []byte) error {
	o, err := ReadFile(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return err
	}
	if _, err := o.DynamicSymbols(); err != nil {
		return err
	}
	if _, err := o.StaticSymbols(); err != nil {
		return err
	}
	if _, err := o.Sections(); err != nil {
		return err
	}
	for _, err := range o.Relocations() {
		if err != nil {
			return err
		}
	}
	if _, err := o.FDEs(); err != nil {
		return err
	}
	table, _ := o.DynamicSymbols()
	for s := range table.All() {
		if _, _, err := o.Lookup(s.Name, s.Version); err != nil {
			return err
		}
	}
	return o.Check()
}

// A patch is a file's bytes with its parsed form, to be broken.
type patch struct {
	raw []byte
	o   *Object
}

// at returns the file's bytes from an object address on.
func (p patch) at(vaddr uint64) []byte {
	offset, ok := p.o.FileOffset(vaddr)
	if !ok {
		panic("the fixture has no such address")
	}
	return p.raw[offset:]
}

// tag returns the entry of a tag in .dynamic.
func (p patch) tag(tag elf.DynTag) []byte {
	s := p.o.dynamicSegment()
	for d := p.at(s.Vaddr)[:s.Filesz]; len(d) > 0; d = d[dynSize:] {
		if elf.DynTag(le.Uint64(d)) == tag {
			return d
		}
	}
	panic("the fixture has no such tag")
}

func (p patch) setTag(tag elf.DynTag, value uint64) { le.PutUint64(p.tag(tag)[8:], value) }

// segment returns the program header of the n-th segment of a type.
func (p patch) segment(kind elf.ProgType, n int) []byte {
	for _, s := range p.o.Segments {
		if s.Type == kind {
			if n == 0 {
				return p.raw[le.Uint64(p.raw[32:])+uint64(s.Index)*phdrSize:]
			}
			n--
		}
	}
	panic("the fixture has no such segment")
}

// table returns the file's bytes from a tag's address on.
func (p patch) table(tag elf.DynTag) []byte { return p.at(p.o.dyn(tag)) }

// section returns the header of a section.
func (p patch) section(name string) []byte {
	all, _ := p.o.Sections()
	i := slices.IndexFunc(all, func(s Section) bool { return s.Name == name })
	return p.raw[p.o.ehdr.shoff+uint64(i)*shdrSize:]
}

func TestHostile(t *testing.T) {
	const huge = 1<<63 + 12345
	for _, c := range []struct {
		name    string
		fixture string
		broken  func(p patch)
		want    error
	}{
		{"magic", "gnu", func(p patch) { p.raw[1] = 'e' }, ErrNotELF},
		{"32-bit", "gnu", func(p patch) { p.raw[elf.EI_CLASS] = 1 }, ErrClass},
		{"big-endian", "gnu", func(p patch) { p.raw[elf.EI_DATA] = 2 }, ErrClass},
		{"version", "gnu", func(p patch) { p.raw[elf.EI_VERSION] = 9 }, ErrMalformed},
		{"other machine", "gnu", func(p patch) { le.PutUint16(p.raw[18:], uint16(elf.EM_AARCH64)) }, ErrMachine},
		{"relocatable", "gnu", func(p patch) { le.PutUint16(p.raw[16:], uint16(elf.ET_REL)) }, ErrType},
		{"core", "gnu", func(p patch) { le.PutUint16(p.raw[16:], uint16(elf.ET_CORE)) }, ErrType},
		{"phnum 0", "gnu", func(p patch) { le.PutUint16(p.raw[56:], 0) }, ErrMalformed},
		{"phnum huge", "gnu", func(p patch) { le.PutUint16(p.raw[56:], 0xffff) }, ErrMalformed},
		{"phnum beyond the file", "gnu", func(p patch) { le.PutUint16(p.raw[56:], 1100) }, ErrTruncated},
		{"phentsize", "gnu", func(p patch) { le.PutUint16(p.raw[54:], 0) }, ErrMalformed},
		{"phoff huge", "gnu", func(p patch) { le.PutUint64(p.raw[32:], huge) }, ErrMalformed},
		{"phoff at the end", "gnu", func(p patch) { le.PutUint64(p.raw[32:], uint64(len(p.raw))-8) }, ErrTruncated},
		{"shnum huge", "gnu", func(p patch) { le.PutUint16(p.raw[60:], 0xfeff) }, ErrTruncated},
		{"shnum in the null section", "gnu", func(p patch) {
			le.PutUint16(p.raw[60:], 0)
			le.PutUint64(p.raw[p.o.ehdr.shoff+32:], huge)
		}, ErrLimit},
		{"shentsize", "gnu", func(p patch) { le.PutUint16(p.raw[58:], 1) }, ErrMalformed},
		{"shoff huge", "gnu", func(p patch) { le.PutUint64(p.raw[40:], huge) }, ErrTruncated},
		{"shstrndx", "gnu", func(p patch) { le.PutUint16(p.raw[62:], 999) }, ErrMalformed},
		{"section name", "gnu", func(p patch) { le.PutUint32(p.section(".text"), 1<<31) }, ErrMalformed},
		{".symtab entries", "gnu", func(p patch) { le.PutUint64(p.section(".symtab")[56:], 1) }, ErrMalformed},
		{".symtab size", "gnu", func(p patch) { le.PutUint64(p.section(".symtab")[32:], 24<<30) }, ErrLimit},
		{".symtab names", "gnu", func(p patch) { le.PutUint32(p.section(".symtab")[40:], 1<<20) }, ErrMalformed},
		{".strtab huge", "gnu", func(p patch) { le.PutUint64(p.section(".strtab")[32:], huge) }, ErrLimit},
		{".strtab without end", "gnu", func(p patch) {
			s := p.section(".strtab")
			le.PutUint64(s[32:], le.Uint64(s[32:])-1)
		}, ErrMalformed},
		{"p_offset overflows", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[8:], 1<<64-4096) }, ErrMalformed},
		{"p_offset beyond the file", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[8:], 1<<40) }, ErrTruncated},
		{"p_vaddr overflows", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 3)[16:], 1<<64-16) }, ErrMalformed},
		{"p_filesz over p_memsz", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[32:], 1<<20) }, ErrMalformed},
		{"p_memsz overflows", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 3)[40:], 1<<63) }, ErrMalformed},
		{"segments overlap", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[16:], 0) }, ErrMalformed},
		{"p_align", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[48:], 3) }, ErrMalformed},
		{"p_align 0", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_LOAD, 1)[48:], 0) }, ErrMalformed},
		{"no PT_LOAD", "gnu", func(p patch) {
			for i := range 4 {
				le.PutUint32(p.segment(elf.PT_LOAD, i), uint32(elf.PT_NULL))
			}
		}, ErrMalformed},
		{"RELRO in text", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_GNU_RELRO, 0)[16:], 0x1000) }, ErrMalformed},
		{"TLS nowhere", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_TLS, 0)[16:], 1<<40) }, ErrMalformed},
		{"PT_DYNAMIC without DT_NULL", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_DYNAMIC, 0)[32:], 32) }, ErrMalformed},
		{"PT_DYNAMIC nowhere", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_DYNAMIC, 0)[16:], 1<<41) }, ErrMalformed},
		{"PT_DYNAMIC huge", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_DYNAMIC, 0)[32:], 1<<41) }, ErrLimit},
		{"PT_INTERP huge", "pie", func(p patch) { le.PutUint64(p.segment(elf.PT_INTERP, 0)[32:], 1<<41) }, ErrLimit},
		{"PT_INTERP without end", "pie", func(p patch) { le.PutUint64(p.segment(elf.PT_INTERP, 0)[32:], 4) }, ErrMalformed},
		{"DT_STRSZ short", "gnu", func(p patch) { p.setTag(elf.DT_STRSZ, 3) }, ErrMalformed},
		{"DT_STRSZ huge", "gnu", func(p patch) { p.setTag(elf.DT_STRSZ, huge) }, ErrMalformed},
		{"DT_STRTAB nowhere", "gnu", func(p patch) { p.setTag(elf.DT_STRTAB, 1<<40) }, ErrMalformed},
		{"DT_SONAME beyond the names", "gnu", func(p patch) { p.setTag(elf.DT_SONAME, 1<<40) }, ErrMalformed},
		{"DT_SYMTAB nowhere", "gnu", func(p patch) { p.setTag(elf.DT_SYMTAB, 1<<40) }, ErrMalformed},
		{"DT_SYMENT", "gnu", func(p patch) { p.setTag(elf.DT_SYMENT, 16) }, ErrMalformed},
		{"DT_VERSYM nowhere", "gnu", func(p patch) { p.setTag(elf.DT_VERSYM, 1<<40) }, ErrMalformed},
		{"DT_VERDEF nowhere", "gnu", func(p patch) { p.setTag(elf.DT_VERDEF, 1<<40) }, ErrMalformed},
		{"version definition's format", "gnu", func(p patch) { le.PutUint16(p.table(elf.DT_VERDEF), 7) }, ErrMalformed},
		{"version definition's name", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_VERDEF)[20:], 1<<31) }, ErrMalformed},
		{"version definition's link", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_VERDEF)[16:], 1<<31) }, ErrMalformed},
		{"symbol's name", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_SYMTAB)[2*symSize:], 1<<31) }, ErrMalformed},
		{"GNU hash nbuckets 0", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_GNU_HASH), 0) }, ErrMalformed},
		{"GNU hash nbuckets huge", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_GNU_HASH), 1<<31) }, ErrMalformed},
		{"GNU hash filter 0", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_GNU_HASH)[8:], 0) }, ErrMalformed},
		{"GNU hash filter not a power of two", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_GNU_HASH)[8:], 3) }, ErrMalformed},
		{"GNU hash symoffset", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_GNU_HASH)[4:], 1<<30) }, ErrMalformed},
		{"GNU hash bucket", "gnu", func(p patch) {
			h := p.table(elf.DT_GNU_HASH)
			le.PutUint32(h[16+8*le.Uint32(h[8:]):], 1<<31)
		}, ErrMalformed},
		{"hash nbuckets 0", "sysv", func(p patch) { le.PutUint32(p.table(elf.DT_HASH), 0) }, ErrMalformed},
		{"hash nbuckets huge", "sysv", func(p patch) { le.PutUint32(p.table(elf.DT_HASH), 1<<32-1) }, ErrMalformed},
		{"hash nchain huge", "sysv", func(p patch) { le.PutUint32(p.table(elf.DT_HASH)[4:], 1<<32-1) }, ErrMalformed},
		{"hash with cycles", "sysv", func(p patch) {
			h := p.table(elf.DT_HASH)
			buckets, symbols := le.Uint32(h), le.Uint32(h[4:])
			for i := range buckets {
				le.PutUint32(h[8+4*i:], 1)
			}
			for i := range symbols {
				le.PutUint32(h[8+4*(buckets+i):], 1)
			}
		}, ErrMalformed},
		{"hash bucket beyond the symbols", "sysv", func(p patch) {
			h := p.table(elf.DT_HASH)
			for i := range le.Uint32(h) {
				le.PutUint32(h[8+4*i:], 1<<30)
			}
		}, ErrMalformed},
		{"DT_RELASZ huge", "gnu", func(p patch) { p.setTag(elf.DT_RELASZ, 24<<40) }, ErrMalformed},
		{"DT_RELASZ overflows", "gnu", func(p patch) { p.setTag(elf.DT_RELASZ, 1<<64-16) }, ErrMalformed},
		{"DT_RELASZ odd", "gnu", func(p patch) { p.setTag(elf.DT_RELASZ, 25) }, ErrMalformed},
		{"DT_RELAENT", "gnu", func(p patch) { p.setTag(elf.DT_RELAENT, 8) }, ErrMalformed},
		{"DT_PLTREL", "gnu", func(p patch) { p.setTag(elf.DT_PLTREL, uint64(elf.DT_REL)) }, ErrUnsupported},
		{"DT_REL", "gnu", func(p patch) {
			le.PutUint64(p.tag(elf.DT_RELA), uint64(elf.DT_REL))
			le.PutUint64(p.tag(elf.DT_RELASZ), uint64(elf.DT_RELSZ))
		}, ErrUnsupported},
		{"tables overlap", "gnu", func(p patch) { p.setTag(elf.DT_JMPREL, p.o.dyn(elf.DT_RELA)) }, ErrMalformed},
		{"relocation of nowhere", "gnu", func(p patch) { le.PutUint64(p.table(elf.DT_RELA), 1<<40) }, ErrMalformed},
		{"relocation across the end", "gnu", func(p patch) {
			_, end := p.o.image.span()
			le.PutUint64(p.table(elf.DT_RELA), end-4)
		}, ErrMalformed},
		{"relocation's symbol", "gnu", func(p patch) { le.PutUint32(p.table(elf.DT_JMPREL)[12:], 1<<31) }, ErrMalformed},
		{"RELR bitmap first", "relr", func(p patch) { le.PutUint64(p.table(DT_RELR), 3) }, ErrMalformed},
		{"RELR nowhere", "relr", func(p patch) { le.PutUint64(p.table(DT_RELR), 1<<40) }, ErrMalformed},
		{"RELR size", "relr", func(p patch) { p.setTag(DT_RELRSZ, 1<<41) }, ErrMalformed},
		{"RELR entries", "relr", func(p patch) { p.setTag(DT_RELRENT, 4) }, ErrMalformed},
		{"RELR bomb", "relr", func(p patch) {
			// All of the first segment is bitmaps: they run out of the object.
			first := p.o.image.loads[0]
			from := p.o.dyn(DT_RELR) + 8
			end := (first.Filesz - 64) &^ 7
			p.setTag(DT_RELRSZ, end-from+8)
			for i := from; i < end; i += 8 {
				le.PutUint64(p.at(i), ^uint64(0))
			}
		}, ErrMalformed},
		{"note name size", "gnu", func(p patch) { le.PutUint32(p.at(p.o.noteSegment().Vaddr), 1<<32-1) }, ErrMalformed},
		{"note descriptor size", "gnu", func(p patch) { le.PutUint32(p.at(p.o.noteSegment().Vaddr)[4:], 1<<32-1) }, ErrMalformed},
		{"PT_NOTE huge", "gnu", func(p patch) { le.PutUint64(p.segment(elf.PT_NOTE, 0)[32:], 1<<41) }, ErrLimit},
		{"property size", "cet", func(p patch) {
			le.PutUint32(p.at(p.o.noteSegment().Vaddr)[20:], 1<<32-1)
		}, ErrMalformed},
		{".eh_frame_hdr version", "gnu", func(p patch) { p.frameHeader()[0] = 2 }, ErrMalformed},
		{".eh_frame_hdr encoding", "gnu", func(p patch) { p.frameHeader()[1] = 0x55 }, ErrMalformed},
		{".eh_frame nowhere", "stripped", func(p patch) { le.PutUint32(p.frameHeader()[4:], 1<<30) }, ErrMalformed},
		{"FDE of data", "gnu", func(p patch) {
			f := p.frames()
			le.PutUint32(f[4+le.Uint32(f)+8:], 16)
		}, ErrMalformed},
		{"FDE without CIE", "gnu", func(p patch) {
			f := p.frames()
			le.PutUint32(f[4+le.Uint32(f)+4:], 1)
		}, ErrMalformed},
		{"FDE's CIE before the table", "gnu", func(p patch) {
			f := p.frames()
			le.PutUint32(f[4+le.Uint32(f)+4:], 1<<31)
		}, ErrMalformed},
		{"frame record of no length", "gnu", func(p patch) { le.PutUint32(p.frames(), 1) }, ErrMalformed},
		{"frame record beyond the table", "gnu", func(p patch) { le.PutUint32(p.frames(), 1<<31) }, ErrMalformed},
		{"frame record of 64 bits", "gnu", func(p patch) {
			le.PutUint32(p.frames(), 1<<32-1)
			le.PutUint64(p.frames()[4:], 1<<64-8)
		}, ErrMalformed},
		{"CIE version", "gnu", func(p patch) { p.frames()[8] = 9 }, ErrMalformed},
		{"CIE augmentation", "gnu", func(p patch) { p.frames()[9] = 'q' }, ErrMalformed},
		{"CIE LEB128 without end", "gnu", func(p patch) { copy(p.frames()[12:], bytes.Repeat([]byte{0xff}, 12)) }, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := fixture(t, c.fixture)
			c.broken(patch{raw, openBytes(t, bytes.Clone(raw))})
			begin := time.Now()
			if err := firstError(raw); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			bounded(t, raw)
			if d := time.Since(begin); d > time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// noteSegment is the first PT_NOTE.
func (o *Object) noteSegment() Segment {
	i := slices.IndexFunc(o.Segments, func(s Segment) bool { return s.Type == elf.PT_NOTE })
	return o.Segments[i]
}

func (p patch) frameHeader() []byte {
	i := slices.IndexFunc(p.o.Segments, func(s Segment) bool { return s.Type == elf.PT_GNU_EH_FRAME })
	return p.at(p.o.Segments[i].Vaddr)
}

func (p patch) frames() []byte {
	t, _, _ := p.o.findFrames()
	return p.at(t.at)
}

func TestTruncated(t *testing.T) {
	raw := fixture(t, "stripped")
	if err := firstError(nil); !errors.Is(err, ErrNotELF) {
		t.Errorf("empty: %v", err)
	}
	for n := 0; n < len(raw); n += 64 {
		err := firstError(raw[:n:n])
		if err == nil {
			t.Errorf("no error of %d of %d bytes", n, len(raw))
		}
		if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrNotELF) {
			t.Errorf("%d bytes: %v", n, err)
		}
		bounded(t, raw[:n:n])
	}
	if _, err := ReadFile(bytes.NewReader(raw), -1); !errors.Is(err, ErrMalformed) {
		t.Errorf("size -1: %v", err)
	}
	// A file that is shorter than it was said to be.
	if _, err := ReadFile(bytes.NewReader(raw[:100]), int64(len(raw))); !errors.Is(err, ErrTruncated) {
		t.Errorf("a file that shrank: %v", err)
	}
}

// bounded examines an object in both forms and fails the test where that takes
// more memory than the object's size explains.
func bounded(t testing.TB, raw []byte) {
	t.Helper()
	allowed := uint64(32*len(raw) + 16<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if o, err := ReadFile(bytes.NewReader(raw), int64(len(raw))); err == nil {
		examine(o)
	}
	if o, err := ReadMemory(memory{0x7f0000000000, raw}, 0x7f0000000000); err == nil {
		examine(o)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > allowed {
		t.Errorf("%d bytes were allocated for an object of %d", used, len(raw))
	}
}
