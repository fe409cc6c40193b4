package x86

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// What assembling fails for. Errors of Code wrap one of these.
var (
	ErrOperand = errors.New("not an operand of this instruction")
	ErrLabel   = errors.New("label bound never or twice")
	ErrRange   = errors.New("further than 2 GiB")
)

// Assembler appends instructions to a buffer. General registers are used with
// all 64 bits unless a method says otherwise, and every method appends one
// instruction. Branches and RIP-relative operands always have 4 bytes of
// distance, so that sizes don't depend on where a label lies.
type Assembler struct {
	origin uint64
	code   []byte
	labels []uint64 // addresses; those not bound yet are unbound
	fixups []fixup
	err    error
}

// Label is a place in the code, or an address elsewhere. It belongs to the
// Assembler that made it.
type Label int

// unbound can't be the address of anything that is within 2 GiB of user code.
const unbound = math.MaxUint64

// fixup is a distance to be filled in: 4 bytes at offset at, counted from
// offset next.
type fixup struct {
	at, next int
	label    Label
}

// NewAssembler returns an Assembler for code that will run at address origin.
// Code that refers to no label of LabelAt runs anywhere.
func NewAssembler(origin uint64) *Assembler { return &Assembler{origin: origin} }

// Code returns the code with all labels resolved, or the first error: it wraps
// ErrOperand, ErrLabel or ErrRange.
func (a *Assembler) Code() ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	for _, f := range a.fixups {
		target := a.labels[f.label]
		if target == unbound {
			return nil, fmt.Errorf("assemble at %#x: label %d: %w", a.origin+uint64(f.at), f.label, ErrLabel)
		}
		distance := int64(target - (a.origin + uint64(f.next)))
		if distance != int64(int32(distance)) {
			return nil, fmt.Errorf("assemble at %#x: %#x: %w", a.origin+uint64(f.at), target, ErrRange)
		}
		binary.LittleEndian.PutUint32(a.code[f.at:], uint32(distance))
	}
	return a.code, nil
}

// Address returns where the next instruction will be.
func (a *Assembler) Address() uint64 { return a.origin + uint64(len(a.code)) }

// NewLabel returns a label that Bind has to bind.
func (a *Assembler) NewLabel() Label { return a.LabelAt(unbound) }

// LabelAt returns a label for an address, inside or outside the code.
func (a *Assembler) LabelAt(address uint64) Label {
	a.labels = append(a.labels, address)
	return Label(len(a.labels) - 1)
}

// Bind makes l the address of the next instruction.
func (a *Assembler) Bind(l Label) {
	if a.labels[l] != unbound {
		a.fail(ErrLabel, "bind label %d", l)
		return
	}
	a.labels[l] = a.Address()
}

func (a *Assembler) fail(sentinel error, format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf("assemble at %#x: %s: %w", a.Address(), fmt.Sprintf(format, args...), sentinel)
	}
}

// Address is a memory operand.
type Address struct {
	base  Reg
	disp  int32
	label Label
	fs    bool
}

// At is disp(base).
func At(base Reg, disp int32) Address { return Address{base: base, disp: disp} }

// Rel is label(%rip).
func Rel(label Label) Address { return Address{base: RIP, label: label} }

// FS is %fs:disp, an offset from the thread pointer.
func FS(disp int32) Address { return Address{disp: disp, fs: true} }

// Raw appends bytes as they are: data, or an instruction without a method.
func (a *Assembler) Raw(b ...byte) { a.code = append(a.code, b...) }

// Quad appends an 8-byte word of data.
func (a *Assembler) Quad(v uint64) { a.code = binary.LittleEndian.AppendUint64(a.code, v) }

func (a *Assembler) long(v uint32) { a.code = binary.LittleEndian.AppendUint32(a.code, v) }

// distance appends 4 bytes that lead to l, and end the instruction.
func (a *Assembler) distance(l Label) {
	a.fixups = append(a.fixups, fixup{at: len(a.code), next: len(a.code) + 4, label: l})
	a.long(0)
}

// number returns the encoding of a general register.
func (a *Assembler) number(r Reg) byte {
	if r < RAX || r > R15 {
		a.fail(ErrOperand, "register %d", r)
		return 0
	}
	return byte(r - RAX)
}

// registers appends an instruction with ModRM whose operand is a register.
// Here and below, w is extW or 0, and reg is a register's number or what
// selects an instruction in a group.
func (a *Assembler) registers(w, reg byte, rm Reg, opcode ...byte) {
	n := a.number(rm)
	a.rex(w | reg>>3*extR | n>>3*extB)
	a.Raw(opcode...)
	a.Raw(0xc0 | reg&7<<3 | n&7)
}

// memory appends an instruction with ModRM whose operand is m. An immediate
// must not follow, since distances end the instruction.
func (a *Assembler) memory(w, reg byte, m Address, opcode ...byte) {
	if m.fs {
		a.Raw(0x64)
	}
	switch {
	case m.base == RIP:
		a.rex(w | reg>>3*extR)
		a.Raw(opcode...)
		a.Raw(reg&7<<3 | 5)
		a.distance(m.label)
	case m.fs: // no base: SIB with base 5 and index 4
		a.rex(w | reg>>3*extR)
		a.Raw(opcode...)
		a.Raw(reg&7<<3|4, 0x25)
		a.long(uint32(m.disp))
	default:
		base := a.number(m.base)
		a.rex(w | reg>>3*extR | base>>3*extB)
		a.Raw(opcode...)
		mod := byte(2)
		switch {
		case m.disp == 0 && base&7 != 5: // mod 0 with rbp or r13 would mean rip
			mod = 0
		case m.disp == int32(int8(m.disp)):
			mod = 1
		}
		a.Raw(mod<<6 | reg&7<<3 | base&7)
		if base&7 == 4 { // rsp and r12 need a SIB
			a.Raw(0x24)
		}
		switch mod {
		case 1:
			a.Raw(byte(m.disp))
		case 2:
			a.long(uint32(m.disp))
		}
	}
}

func (a *Assembler) rex(bits byte) {
	if bits != 0 {
		a.Raw(0x40 | bits)
	}
}
