package dso

import "encoding/binary"

// UnwindTable returns where .eh_frame begins and whether a zero length ends it,
// as an unwinder needs it that is told of the table by its address alone
// (__register_frame_info). ok is false where the object has no such table.
func (o *Object) UnwindTable() (start uint64, terminated, ok bool, err error) {
	t, ok, err := o.findFrames()
	if err != nil || !ok {
		return 0, false, false, err
	}
	limit := t.at + o.image.backed(t.at) // the terminator may lie behind the section
	for at := t.at; at+4 <= limit; {
		raw, err := o.Bytes(at, 4)
		if err != nil {
			return 0, false, false, err
		}
		length := uint64(binary.LittleEndian.Uint32(raw))
		switch {
		case length == 0:
			return t.at, true, true, nil
		case length == 0xffffffff: // a length of 64 bits: no compiler makes any
			return t.at, false, true, nil
		}
		at += 4 + length
	}
	return t.at, false, true, nil
}
