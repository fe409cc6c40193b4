package dso

import (
	"debug/elf"
	"encoding/hex"
	"fmt"
)

// A Note is one note of a PT_NOTE segment (gABI, "Note Section").
type Note struct {
	Name string // owner: "GNU", "stapsdt", …
	Type uint32
	Desc []byte
}

// Types of notes whose owner is "GNU" (glibc elf.h).
const (
	NoteABITag   = 1
	NoteBuildID  = 3
	NoteProperty = 5
)

// Properties is what the x86 properties of the GNU property note say (Linux
// gABI extensions and x86-64 psABI, "Program Property").
type Properties struct {
	IBT       bool   // all indirect branches end at endbr64
	SHSTK     bool   // the object's code runs on a shadow stack
	ISANeeded uint32 // levels of the instruction set: bit 0 x86-64, 1 -v2, 2 -v3, 3 -v4
	ISAUsed   uint32
}

// Types and bits of properties.
const (
	propertyISAUsed   = 0xc0010002
	propertyISANeeded = 0xc0008002
	propertyFeature1  = 0xc0000002
	feature1IBT       = 1
	feature1SHSTK     = 2
)

// An ABITag is the least kernel that the object asks for.
type ABITag struct {
	Present bool
	OS      uint32 // 0 is Linux
	Kernel  [3]uint32
}

func (t ABITag) String() string {
	if !t.Present {
		return ""
	}
	os := "Linux"
	if t.OS != 0 {
		os = fmt.Sprintf("OS %d", t.OS)
	}
	return fmt.Sprintf("%s %d.%d.%d", os, t.Kernel[0], t.Kernel[1], t.Kernel[2])
}

func (o *Object) readNotes() error {
	for _, s := range o.Segments {
		if s.Type != elf.PT_NOTE {
			continue
		}
		if s.Filesz > maxNotes {
			return readError("notes", s.Vaddr, ErrLimit)
		}
		raw, err := o.segmentBytes(s, "notes")
		if err != nil {
			return err
		}
		if err := o.parseNotes(raw, s); err != nil {
			return err
		}
	}
	for _, n := range o.Notes {
		if n.Name != "GNU" {
			continue
		}
		switch n.Type {
		case NoteBuildID:
			if o.BuildID == "" {
				o.BuildID = hex.EncodeToString(n.Desc)
			}
		case NoteABITag:
			if len(n.Desc) >= 16 {
				o.ABITag = ABITag{true, le.Uint32(n.Desc), [3]uint32{le.Uint32(n.Desc[4:]), le.Uint32(n.Desc[8:]), le.Uint32(n.Desc[12:])}}
			}
		case NoteProperty:
			if err := o.Properties.parse(n.Desc); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseNotes appends the notes of one segment. Name and descriptor are padded
// to 4 bytes, or to 8 where the segment is aligned so (only the property note).
func (o *Object) parseNotes(raw []byte, s Segment) error {
	align := uint64(4)
	if s.Align == 8 {
		align = 8
	}
	size := uint64(len(raw))
	for at := uint64(0); size-at >= 12; {
		nameSize, descSize := uint64(le.Uint32(raw[at:])), uint64(le.Uint32(raw[at+4:]))
		kind := le.Uint32(raw[at+8:])
		desc := roundUp(at+12+nameSize, align)
		next := roundUp(desc+descSize, align)
		if at+12+nameSize > size || desc > size || descSize > size-desc {
			return malformed("notes", s.Vaddr+at, "a name of %d and a descriptor of %d bytes in a segment of %d", nameSize, descSize, size)
		}
		name := raw[at+12 : at+12+nameSize]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		o.Notes = append(o.Notes, Note{string(name), kind, raw[desc : desc+descSize]})
		if next >= size {
			break // the last note's padding may be missing
		}
		at = next
	}
	return nil
}

// parse reads the properties of one note; those that it does not know it skips.
func (p *Properties) parse(desc []byte) error {
	for rest := desc; len(rest) >= 8; {
		kind, size := le.Uint32(rest), uint64(le.Uint32(rest[4:]))
		rest = rest[8:]
		if size > uint64(len(rest)) {
			return fmt.Errorf("read GNU property %#x: %w: %d bytes of %d", kind, ErrMalformed, size, len(rest))
		}
		if size >= 4 {
			bits := le.Uint32(rest)
			switch kind {
			case propertyFeature1:
				p.IBT, p.SHSTK = bits&feature1IBT != 0, bits&feature1SHSTK != 0
			case propertyISANeeded:
				p.ISANeeded = bits
			case propertyISAUsed:
				p.ISAUsed = bits
			}
		}
		rest = rest[min(roundUp(size, 8), uint64(len(rest))):]
	}
	return nil
}

func roundUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }
