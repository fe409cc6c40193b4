package stage

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
)

// What staging fails for. Errors of Make wrap one of these, or what Input.Word
// returned.
var (
	ErrRange       = errors.New("more than 2 GiB apart")
	ErrUnsupported = errors.New("not supported")
)

// Input is what Make works on.
type Input struct {
	Match *match.Match // without refusals
	File  []byte       // the new build's file; it is not changed

	OldBias, NewBias uint64

	// Word returns what the loader would store for a relocation that takes a
	// symbol, or the module's number (DTPMOD64).
	Word func(dso.Relocation) (uint64, error)
}

// An Image is a staged build.
type Image struct {
	File     []byte
	Mappings []Mapping // ascending; what is between them is not accessible
	Start    uint64    // process address of the whole span, in pages
	Size     uint64
	Bias     uint64

	moved []move
}

// A Mapping is one mmap call.
type Mapping struct {
	Start, Size uint64 // process address and bytes, whole pages
	Offset      uint64 // in Image.File
	Flags       elf.ProgFlag
	Anonymous   bool // zeros, not the file
}

const page = dso.PageSize

// Spare is the bytes of zeros that are mapped behind the build, for the caller.
const Spare = page

// Make stages the new build of a match.
func Make(in Input) (*Image, error) {
	o := in.Match.New.Object
	im := &Image{File: slices.Clone(in.File)}
	start, end := o.Span()
	start, end = start&^(page-1), (end+page-1)&^(page-1)
	im.Start, im.Size, im.Bias = start+in.NewBias, end-start+Spare, in.NewBias

	moved, err := im.moveWritable(o)
	if err != nil {
		return nil, err
	}
	im.moved = moved
	w := &writer{in: in, o: o, file: im.File, moved: moved}
	if err := w.relocate(); err != nil {
		return nil, err
	}
	if err := w.retarget(); err != nil {
		return nil, err
	}
	im.lay(o, in.NewBias, moved)
	return im, nil
}

// Bytes returns n bytes of the staged file at an object address of o, the build
// that was staged.
func (im *Image) Bytes(o *dso.Object, addr, n uint64) ([]byte, error) {
	return (&writer{o: o, file: im.File, moved: im.moved}).at(addr, n)
}

// A move is where a writable segment's pages went in the file.
type move struct {
	segment dso.Segment
	offset  uint64 // of the page that p_vaddr lies in
	size    uint64 // bytes of file-backed pages
}

// moveWritable puts the file-backed pages of writable segments at the end of the
// file, and lets the program headers say so.
func (im *Image) moveWritable(o *dso.Object) ([]move, error) {
	var moves []move
	for _, s := range o.Segments {
		if s.Type != elf.PT_LOAD || s.Flags&elf.PF_W == 0 {
			continue
		}
		if s.Flags&elf.PF_X != 0 {
			return nil, fmt.Errorf("stage a segment that is writable and executable: %w", ErrUnsupported)
		}
		m := move{segment: s}
		if s.Filesz > 0 {
			head := s.Vaddr & (page - 1)
			im.File = append(im.File, make([]byte, -uint64(len(im.File))&(page-1))...)
			m.offset, m.size = uint64(len(im.File)), (head+s.Filesz+page-1)&^(page-1)
			im.File = append(im.File, make([]byte, m.size)...)
			copy(im.File[m.offset+head:], im.File[s.Offset:s.Offset+s.Filesz])
		}
		moves = append(moves, m)
	}
	phoff, phnum := le.Uint64(im.File[32:]), int(le.Uint16(im.File[56:]))
	for i := range phnum {
		header := im.File[phoff+uint64(i)*programHeaderBytes:]
		offset, size := le.Uint64(header[8:]), le.Uint64(header[32:])
		for _, m := range moves {
			if s := m.segment; m.size > 0 && offset >= s.Offset && offset+size <= s.Offset+s.Filesz {
				le.PutUint64(header[8:], m.offset+s.Vaddr&(page-1)+(offset-s.Offset))
			}
		}
	}
	return moves, nil
}

const programHeaderBytes = 56 // Elf64_Phdr

var le = binary.LittleEndian

// lay says how the file is to be mapped.
func (im *Image) lay(o *dso.Object, bias uint64, moves []move) {
	for _, m := range o.Mappings() {
		if m.Segment.Flags&elf.PF_W == 0 {
			im.Mappings = append(im.Mappings, Mapping{m.Addr + bias, m.Size, m.Offset, m.Segment.Flags, false})
		}
	}
	sealedFrom, sealedTo := o.RELRO.Addr&^(page-1), o.RELRO.End()&^(page-1)
	for _, m := range moves {
		s := m.segment
		first := s.Vaddr &^ (page - 1)
		fileEnd, end := first+m.size, (s.Vaddr+s.Memsz+page-1)&^(page-1)
		from := first
		part := func(to uint64, flags elf.ProgFlag) {
			if from < to {
				im.Mappings = append(im.Mappings, Mapping{from + bias, to - from, m.offset + (from - first), flags, false})
				from = to
			}
		}
		if sealedFrom < sealedTo && sealedFrom >= first && sealedFrom < fileEnd {
			part(sealedFrom, elf.PF_R|elf.PF_W)
			part(min(sealedTo, fileEnd), elf.PF_R)
		}
		part(fileEnd, elf.PF_R|elf.PF_W)
		if fileEnd < end {
			im.Mappings = append(im.Mappings, Mapping{fileEnd + bias, end - fileEnd, 0, elf.PF_R | elf.PF_W, true})
		}
	}
	im.Mappings = append(im.Mappings, Mapping{im.Start + im.Size - Spare, Spare, 0, elf.PF_R | elf.PF_W, true})
	slices.SortFunc(im.Mappings, func(a, b Mapping) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
}
