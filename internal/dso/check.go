package dso

import (
	"debug/elf"
	"errors"
	"fmt"
)

// Check tells whether the object is one that Linux and glibc load as its
// headers say: PT_LOADs aligned to pages, address and offset congruent, no page
// in two segments, inside of the file; the special segments inside of PT_LOADs.
// The error joins all that is wrong, each wrapping ErrMalformed or
// ErrTruncated. That PT_LOADs ascend without overlap is a condition of opening.
func (o *Object) Check() error {
	var all []error
	add := func(s Segment, cause error, format string, args ...any) {
		all = append(all, fmt.Errorf("check segment %d at %#x: %w: %s", s.Index, s.Vaddr, cause, fmt.Sprintf(format, args...)))
	}
	im := &o.image
	for i, s := range im.loads {
		switch {
		case s.Align&(s.Align-1) != 0 || s.Align%PageSize != 0 || s.Align == 0:
			add(s, ErrMalformed, "alignment %#x is not a power of two of pages", s.Align)
		case (s.Vaddr-s.Offset)%s.Align != 0:
			add(s, ErrMalformed, "address and offset %#x differ modulo %#x", s.Offset, s.Align)
		}
		if !im.memory && s.Filesz > 0 && (s.Offset > im.size || s.Filesz > im.size-s.Offset) {
			add(s, ErrTruncated, "%#x bytes at offset %#x of a file of %#x", s.Filesz, s.Offset, im.size)
		}
		if i > 0 && pageDown(s.Vaddr) < pageUp(im.loads[i-1].Vaddr+im.loads[i-1].Memsz) {
			add(s, ErrMalformed, "shares a page with segment %d", im.loads[i-1].Index)
		}
	}
	for _, s := range o.Segments {
		switch s.Type {
		case elf.PT_DYNAMIC, elf.PT_GNU_EH_FRAME, elf.PT_GNU_RELRO, elf.PT_INTERP, elf.PT_PHDR:
			if s.Memsz == 0 {
				continue
			}
			// RELRO may end at the page's end, behind what its PT_LOAD takes.
			in := im.load(s.Vaddr)
			if in == nil || s.Vaddr+s.Memsz > pageUp(in.Vaddr+in.Memsz) {
				add(s, ErrMalformed, "%v is not in a loaded segment", s.Type)
			} else if s.Type == elf.PT_GNU_RELRO && in.Flags&elf.PF_W == 0 {
				add(s, ErrMalformed, "%v is not in a writable segment", s.Type)
			}
		case elf.PT_TLS:
			if s.Memsz < s.Filesz || s.Filesz > 0 && im.backed(s.Vaddr) < s.Filesz {
				add(s, ErrMalformed, "the initial image of thread-local storage is not in a loaded segment")
			}
		}
	}
	return errors.Join(all...)
}
