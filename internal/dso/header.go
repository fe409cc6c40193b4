package dso

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"math"
)

// fileHeader is what of Elf64_Ehdr is used after opening.
type fileHeader struct {
	shoff     uint64
	shentsize uint16
	shnum     uint16
	shstrndx  uint16
}

// A Segment is one program header (gABI, "Program Header").
type Segment struct {
	Index  int // its place in Object.Segments
	Type   elf.ProgType
	Flags  elf.ProgFlag
	Offset uint64 // in the file
	Vaddr  uint64 // object address
	Filesz uint64 // bytes that the file has
	Memsz  uint64 // bytes in memory; those beyond Filesz are zero
	Align  uint64
}

// Range is the segment's bytes in memory.
func (s Segment) Range() Range { return Range{s.Vaddr, s.Memsz} }

// Permissions returns the flags as in /proc/PID/maps: "r-x".
func (s Segment) Permissions() string {
	p := []byte("---")
	for i, f := range [...]elf.ProgFlag{elf.PF_R, elf.PF_W, elf.PF_X} {
		if s.Flags&f != 0 {
			p[i] = "rwx"[i]
		}
	}
	return string(p)
}

const (
	ehdrSize = 64
	phdrSize = 56
	shdrSize = 64
)

// readHeaders reads the ELF header and the program headers from a file offset
// or a process address, and sets up the image.
func (o *Object) readHeaders(at uint64) error {
	im := &o.image
	if err := im.readHead(at); err != nil {
		return err
	}
	ehdr := make([]byte, ehdrSize)
	if err := im.readSource(ehdr[:4], at, "ELF header"); err != nil {
		if errors.Is(err, ErrTruncated) && !im.memory {
			return readError("ELF header", at, ErrNotELF)
		}
		return err
	}
	if !bytes.Equal(ehdr[:4], []byte(elf.ELFMAG)) {
		return readError("ELF header", at, ErrNotELF)
	}
	if err := im.readSource(ehdr, at, "ELF header"); err != nil {
		return err
	}
	if elf.Class(ehdr[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(ehdr[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return readError("ELF header", at, ErrClass)
	}
	if v := ehdr[elf.EI_VERSION]; elf.Version(v) != elf.EV_CURRENT {
		return malformed("ELF header", at, "version %d", v)
	}
	o.OSABI = elf.OSABI(ehdr[elf.EI_OSABI])
	o.Type = elf.Type(le.Uint16(ehdr[16:]))
	o.Machine = elf.Machine(le.Uint16(ehdr[18:]))
	if o.Machine != elf.EM_X86_64 {
		return readError("ELF header", at, ErrMachine)
	}
	if o.Type != elf.ET_EXEC && o.Type != elf.ET_DYN {
		return readError("ELF header", at, ErrType)
	}
	o.Entry = le.Uint64(ehdr[24:])
	o.ehdr = fileHeader{
		shoff:     le.Uint64(ehdr[40:]),
		shentsize: le.Uint16(ehdr[58:]),
		shnum:     le.Uint16(ehdr[60:]),
		shstrndx:  le.Uint16(ehdr[62:]),
	}
	phoff, phentsize, phnum := le.Uint64(ehdr[32:]), le.Uint16(ehdr[54:]), le.Uint16(ehdr[56:])
	if phnum == 0 {
		return malformed("ELF header", at, "no program headers")
	}
	if phentsize != phdrSize || uint64(phnum)*phdrSize > maxHeaders {
		return malformed("ELF header", at, "%d program headers of %d bytes", phnum, phentsize)
	}
	if phoff > math.MaxInt64-at {
		return malformed("ELF header", at, "program headers at offset %#x", phoff)
	}
	if err := o.readSegments(at+phoff, int(phnum)); err != nil {
		return err
	}
	return o.locate(at, phoff)
}

// readHead reads the first bytes of the source in one go.
func (im *image) readHead(at uint64) error {
	if at > math.MaxInt64 {
		return malformed("ELF header", at, "address beyond user space")
	}
	head := make([]byte, PageSize)
	if !im.memory && im.size < PageSize {
		head = head[:im.size]
	}
	n, err := im.source.ReadAt(head, int64(at))
	if n < 0 || n > len(head) {
		return readError("ELF header", at, errors.New("the reader returned a wrong length"))
	}
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return readError("ELF header", at, err)
	}
	im.head, im.headAt = head[:n], at
	return nil
}

func (o *Object) readSegments(at uint64, n int) error {
	im := &o.image
	raw, err := im.readTable(at, uint64(n)*phdrSize, "program headers")
	if err != nil {
		return err
	}
	o.Segments = make([]Segment, n)
	for i := range o.Segments {
		p := raw[i*phdrSize:]
		s := Segment{
			Index:  i,
			Type:   elf.ProgType(le.Uint32(p)),
			Flags:  elf.ProgFlag(le.Uint32(p[4:])),
			Offset: le.Uint64(p[8:]),
			Vaddr:  le.Uint64(p[16:]),
			Filesz: le.Uint64(p[32:]),
			Memsz:  le.Uint64(p[40:]),
			Align:  le.Uint64(p[48:]),
		}
		o.Segments[i] = s
		// All sums of segment addresses stay far from wrapping by this.
		const top = 1 << 62
		if s.Offset > top || s.Filesz > top || s.Vaddr > top || s.Memsz > top {
			return malformed("program headers", at+uint64(i)*phdrSize, "segment %d has an offset, address or size out of range", i)
		}
		switch s.Type {
		case elf.PT_LOAD:
			if s.Memsz < s.Filesz {
				return malformed("program headers", at+uint64(i)*phdrSize, "segment %d has %#x bytes in the file and %#x in memory", i, s.Filesz, s.Memsz)
			}
			if s.Memsz == 0 {
				continue // the loader maps nothing
			}
			if k := len(im.loads); k > 0 && s.Vaddr < im.loads[k-1].Vaddr+im.loads[k-1].Memsz {
				return malformed("program headers", at+uint64(i)*phdrSize, "segment %d begins before segment %d ends", i, im.loads[k-1].Index)
			}
			im.loads = append(im.loads, s)
		case elf.PT_TLS:
			o.TLS = &o.Segments[i]
		case elf.PT_GNU_RELRO:
			o.RELRO = s.Range()
		case elf.PT_GNU_STACK:
			o.Stack = &o.Segments[i]
		}
	}
	if len(im.loads) == 0 {
		return malformed("program headers", at, "no loadable segment")
	}
	return nil
}

// locate finds the bias of an object in memory: its headers, which stand at
// offset 0 of the file, are part of a segment.
func (o *Object) locate(at, phoff uint64) error {
	im := &o.image
	if !im.memory {
		return nil
	}
	vaddr, found := uint64(0), false
	for _, s := range im.loads {
		if s.Offset == 0 && s.Filesz >= ehdrSize {
			vaddr, found = s.Vaddr, true
			break
		}
		// A first segment that does not begin at the page's start still has
		// the page's start mapped.
		if s.Offset < PageSize && s.Offset == s.Vaddr%PageSize && s.Filesz > 0 {
			vaddr, found = s.Vaddr-s.Offset, true
			break
		}
	}
	if !found {
		return malformed("program headers", at+phoff, "no segment has the ELF header")
	}
	if at < vaddr {
		return malformed("program headers", at+phoff, "loaded below its own address %#x", vaddr)
	}
	im.bias = at - vaddr
	if o.Type == elf.ET_EXEC && im.bias != 0 {
		return malformed("program headers", at+phoff, "an ET_EXEC is loaded at %#x instead of %#x", at, vaddr)
	}
	return nil
}

// readInterp reads the path of PT_INTERP.
func (o *Object) readInterp() error {
	for _, s := range o.Segments {
		if s.Type != elf.PT_INTERP || s.Filesz == 0 {
			continue
		}
		if s.Filesz > maxName {
			return readError("interpreter", s.Vaddr, ErrLimit)
		}
		p, err := o.segmentBytes(s, "interpreter")
		if err != nil {
			return err
		}
		path, _, terminated := bytes.Cut(p, []byte{0})
		if p != nil && !terminated {
			return malformed("interpreter", s.Vaddr, "no terminating zero")
		}
		o.Interp = string(path)
		return nil
	}
	return nil
}

// segmentBytes returns the file bytes of a segment that need not be loaded (a
// note, the interpreter): of a file by offset, of memory where a PT_LOAD has
// it, otherwise nothing.
func (o *Object) segmentBytes(s Segment, what string) ([]byte, error) {
	im := &o.image
	if !im.memory {
		return im.readTable(s.Offset, s.Filesz, what)
	}
	if im.load(s.Vaddr) == nil {
		return nil, nil
	}
	return im.table(s.Vaddr, s.Filesz, what)
}
