package match

import (
	"hash/maphash"

	"github.com/virtualizing-os/vos/internal/x86"
)

// A Mode is how an instruction refers to an address.
type Mode uint8

// The modes. A direct branch to elsewhere is a jump, conditional or not.
const (
	Call    Mode = iota
	Jump         // also JRCXZ and XBEGIN
	Address      // lea: what is done with the address is not known
	Access       // a memory operand, read or written
	Through      // a load or branch by way of a pointer that the loader fills in (GOT)
)

var modeNames = [...]string{"call", "jump", "address", "access", "through"}

func (m Mode) String() string { return modeNames[m] }

// A Reference is one place of code whose bytes depend on where something else
// is: a RIP-relative operand, or a direct branch that leaves the function.
type Reference struct {
	In     uint32 // of the instruction, from the function's first byte
	Field  uint8  // of the displacement, from the instruction's first byte
	Size   uint8  // bytes of the displacement: 4, or 1 for a short branch
	Len    uint8  // of the instruction: displacements count from its end
	Width  uint8  // of an access, the most bytes that it may touch; 0 for unknown
	Mode   Mode
	Region Region // of Target; Slot where the pointer is an import
	Target uint64 // object address; of a pointer through the GOT that it has, what it points at

	// To is the function that has Target, where it has code; of an import (Region
	// Slot) the number of its name. Otherwise -1.
	To int32
}

// A scanner decodes; its buffers are used again.
type scanner struct {
	todo   []uint64
	calls  []uint64
	record []byte
}

// scan decodes a function from its first byte to its last, normalises it in
// b.code and records its references. Code with a table inside is followed from
// its entry instead.
func (b *Build) scan(s *scanner, index int) {
	f := &b.Functions[index]
	raw := b.raw(f)
	norm := b.normalised(f)
	f.first = int32(len(b.References))
	s.record = s.record[:0]
	for at := uint64(0); at < f.Size; {
		i, err := x86.Decode(raw[at:])
		if err != nil {
			b.scanFromEntry(s, index)
			return
		}
		b.note(s, f, &i, at, norm)
		at += uint64(i.Len)
	}
	b.finish(s, f, norm)
}

// scanFromEntry handles a function with bytes that are no instructions: where
// control flow, followed from the entry, meets none of them, they are data.
func (b *Build) scanFromEntry(s *scanner, index int) {
	f := &b.Functions[index]
	copy(b.normalised(f), b.raw(f))
	b.References = b.References[:f.first]
	g := &gap{from: f.Addr, to: f.End(), reached: make([]bool, f.Size), covered: make([]bool, f.Size)}
	s.flow(b.raw(f), g, f.Addr)
	g.sort()
	f.Opaque = !g.whole(b.im, f.Addr, f.End())
	b.scanReached(s, index, g)
}

// scanReached records the instructions that control flow reached. Bytes that it
// did not reach stay as they are.
func (b *Build) scanReached(s *scanner, index int, g *gap) {
	f := &b.Functions[index]
	raw, norm := b.raw(f), b.normalised(f)
	f.first = int32(len(b.References))
	f.count = 0
	s.record = s.record[:0]
	end := uint64(0)
	for at := uint64(0); at < f.Size; at++ {
		if !g.reached[f.Addr-g.from+at] {
			continue
		}
		i, err := x86.Decode(raw[at:])
		if err != nil || at < end {
			f.Opaque = true // instructions that overlap, or run out of the piece
			break
		}
		b.note(s, f, &i, at, norm)
		end = at + uint64(i.Len)
		at = end - 1
	}
	if f.Opaque {
		copy(norm, raw)
		b.References = b.References[:f.first]
		f.EntryBranch = true // nobody knows
	}
	b.finish(s, f, norm)
}

// note takes up one instruction.
func (b *Build) note(s *scanner, f *Function, i *x86.Inst, at uint64, norm []byte) {
	f.count++
	if at < entryBytes {
		f.first5 = at + uint64(i.Len)
	}
	target, ok := i.Target(f.Addr + at)
	if !ok || i.IsNop() {
		return
	}
	r := Reference{In: uint32(at), Len: uint8(i.Len), Target: target, To: -1}
	if i.IsBranch() {
		if f.Contains(target) {
			into := target - f.Addr
			f.EntryBranch = f.EntryBranch || into < entryBytes && !(into == 0 && i.Flow == x86.Call)
			return
		}
		r.Mode, r.Field, r.Size = Jump, i.Rel.Offset, i.Rel.Size
		if i.Flow == x86.Call {
			r.Mode = Call
		}
	} else {
		r.Mode, r.Field, r.Size = Access, i.Mem.Disp.Offset, i.Mem.Disp.Size
		r.Width = accessWidth(i)
		if i.Encoding == x86.Legacy && i.Map == x86.MapOneByte && i.Opcode == 0x8d {
			r.Mode, r.Width = Address, 0
		}
	}
	clear(norm[at+uint64(r.Field):][:r.Size])
	s.record = append(s.record, byte(at), byte(at>>8), byte(at>>16), r.Field, byte(r.Mode))
	b.References = append(b.References, r)
}

// accessWidth is the most bytes that a memory operand may have.
func accessWidth(i *x86.Inst) uint8 {
	switch i.Encoding {
	case x86.VEX, x86.XOP:
		return 32
	case x86.EVEX:
		return 64
	}
	switch {
	case i.Map == x86.MapOneByte && i.Opcode >= 0xd8 && i.Opcode <= 0xdf:
		return 10
	case i.Map == x86.MapOneByte:
		return 8
	case i.Map == x86.Map0F && (i.Opcode == 0xae || i.Opcode == 0xc7 || i.Opcode == 0x01):
		return 0 // FXSAVE, XSAVE, CMPXCHG16B: more than a register
	case i.Map == x86.Map0F && i.Prefixes&x86.PrefixRep != 0 && scalar(i.Opcode):
		return 4
	case i.Map == x86.Map0F && i.Prefixes&x86.PrefixRepne != 0 && scalar(i.Opcode):
		return 8
	}
	return 16
}

// scalar tells the opcodes of map 0F that F3 makes ones of a float, F2 of a
// double: moves, conversions from and arithmetic.
func scalar(opcode byte) bool {
	return opcode == 0x10 || opcode == 0x11 || opcode >= 0x2a && opcode <= 0x2f ||
		opcode >= 0x51 && opcode <= 0x53 || opcode >= 0x58 && opcode <= 0x5f && opcode != 0x5b
}

// finish hashes what was recorded.
func (b *Build) finish(s *scanner, f *Function, norm []byte) {
	f.last = int32(len(b.References))
	var h maphash.Hash
	h.SetSeed(hashSeed)
	h.Write(norm)
	h.Write(s.record)
	f.hash = h.Sum64()
}

// flow follows control from an address within [g.from, g.to), marks what it
// reaches, and returns where calls and jumps of it lead outside of what is
// marked as one piece: targets of calls, and of jumps out of the gap.
func (s *scanner) flow(code []byte, g *gap, from uint64) []uint64 {
	s.todo = append(s.todo[:0], from)
	s.calls = s.calls[:0]
	for len(s.todo) > 0 {
		at := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		for at >= g.from && at < g.to && !g.reached[at-g.from] {
			i, err := x86.Decode(code[at-g.from:])
			if err != nil {
				g.broken = append(g.broken, at)
				break
			}
			g.reached[at-g.from] = true
			for k := at - g.from; k < at-g.from+uint64(i.Len); k++ {
				g.covered[k] = true
			}
			if i.Flow == x86.JumpIndirect && !i.IsRIPRelative() {
				g.indirect = append(g.indirect, at)
			}
			if i.IsBranch() {
				target, _ := i.Target(at)
				if i.Flow == x86.Call {
					s.calls = append(s.calls, target)
				} else {
					s.todo = append(s.todo, target)
				}
			}
			at += uint64(i.Len)
			if i.IsTerminator() {
				break
			}
		}
	}
	return s.calls
}
