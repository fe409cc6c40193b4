package stage

import (
	"debug/elf"
	"fmt"

	"github.com/virtualizing-os/vos/internal/dso"
)

// A writer changes the copy at object addresses.
type writer struct {
	in    Input
	o     *dso.Object
	file  []byte
	moved []move
}

// at returns n bytes of the file at an object address, in all places that are
// mapped there.
func (w *writer) at(addr, n uint64) ([]byte, error) {
	s, ok := w.o.SegmentAt(addr)
	if !ok || addr-s.Vaddr+n > s.Filesz {
		return nil, fmt.Errorf("stage %d bytes at %#x: the file has none there: %w", n, addr, ErrUnsupported)
	}
	offset := s.Offset + (addr - s.Vaddr)
	for _, m := range w.moved {
		if m.segment.Index == s.Index {
			offset = m.offset + s.Vaddr&(page-1) + (addr - s.Vaddr)
		}
	}
	return w.file[offset:][:n], nil
}

// relocate does what the loader would do.
func (w *writer) relocate() error {
	for r, err := range w.o.Relocations() {
		if err != nil {
			return err
		}
		if r.Type == elf.R_X86_64_NONE {
			continue
		}
		if r.Text {
			return fmt.Errorf("stage %v at %#x: in a segment that is not writable: %w", r.Type, r.Offset, ErrUnsupported)
		}
		var value uint64
		switch r.Type {
		case elf.R_X86_64_RELATIVE:
			value = w.in.NewBias + uint64(r.Addend)
		case elf.R_X86_64_64, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT,
			elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64:
			if value, err = w.in.Word(r); err != nil {
				return err
			}
		default:
			return fmt.Errorf("stage %v at %#x: %w", r.Type, r.Offset, ErrUnsupported)
		}
		word, err := w.at(r.Offset, 8)
		if err != nil {
			return err
		}
		le.PutUint64(word, value)
	}
	return nil
}

// retarget leads the new code to the old build's data and entries.
func (w *writer) retarget() error {
	for _, d := range w.in.Match.Displacements {
		distance := int64(d.Old + w.in.OldBias - (d.Next + w.in.NewBias))
		if d.Size != 4 {
			return fmt.Errorf("stage a displacement of %d bytes at %#x: %w", d.Size, d.At, ErrUnsupported)
		}
		if distance != int64(int32(distance)) {
			return fmt.Errorf("stage the displacement at %#x: %w", d.At, ErrRange)
		}
		field, err := w.at(d.At, 4)
		if err != nil {
			return err
		}
		le.PutUint32(field, uint32(distance))
	}
	for _, t := range w.in.Match.Words {
		word, err := w.at(t.At, 8)
		if err != nil {
			return err
		}
		le.PutUint64(word, t.Old+w.in.OldBias)
	}
	return nil
}
