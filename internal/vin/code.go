package vin

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/x86"
)

// VeneerSize is how many bytes of a function a veneer overwrites.
const VeneerSize = 5

// maxOverwritten is the most bytes that the instructions have in which a veneer
// ends: the last one begins in front of its last byte.
const maxOverwritten = VeneerSize - 1 + x86.MaxLen

// jump returns the veneer: jmp rel32.
func jump(from, to uint64) (code [VeneerSize]byte, err error) {
	a := x86.NewAssembler(from)
	a.Jmp(a.LabelAt(to))
	b, err := a.Code()
	copy(code[:], b)
	return code, err
}

// stub returns the code of entry i: both parts of a vIN are so near each other,
// and indices so small, that all distances fit. It is padded with INT3.
func (v *Vin) stub(i int) [stubSize]byte {
	at := v.config.Base + v.layout.stub(i)
	code := [stubSize]byte{
		0x4c, 0x8b, 0x1d, 0, 0, 0, 0, // mov selector(%rip), %r11
		0x41, 0xff, 0xa3, 0, 0, 0, 0, // jmp *8*i(%r11)
		0xcc, 0xcc,
	}
	binary.LittleEndian.PutUint32(code[3:], uint32(v.SelectorAddress()-(at+7)))
	binary.LittleEndian.PutUint32(code[10:], uint32(i*wordSize))
	return code
}

// overwritten returns the instructions that code begins with, up to the one that
// ends behind a veneer or with it.
func overwritten(code []byte) ([]byte, error) {
	n := 0
	for n < VeneerSize {
		inst, err := x86.Decode(code[n:])
		if err != nil {
			return nil, fmt.Errorf("decode at +%d: %w: %w", n, ErrCannotMove, err)
		}
		n += inst.Len
		if inst.IsTerminator() && n < VeneerSize {
			return nil, fmt.Errorf("ends at +%d, shorter than a veneer: %w", n, ErrCannotMove)
		}
	}
	return code[:n], nil
}

// move returns the trampoline for instructions at from: the same ones for
// address to, and a jump to behind them. What is relative to RIP gets another
// distance, a call that ends them pushes the address behind the original one,
// short branches become near ones: two of 2 bytes grow to 6 each in
// front of one of 15 bytes, so with the jump it is 32 bytes at most.
func move(code []byte, from, to uint64) ([]byte, error) {
	a := x86.NewAssembler(to)
	end := from + uint64(len(code))
	var inst x86.Inst
	for n := 0; n < len(code); n += inst.Len {
		var err error
		if inst, err = x86.Decode(code[n:]); err != nil {
			return nil, fmt.Errorf("decode at +%d: %w: %w", n, ErrCannotMove, err)
		}
		pc := from + uint64(n)
		target, relative := inst.Target(pc)
		if relative && target >= from && target < end {
			return nil, fmt.Errorf("instruction at +%d refers to the bytes of the veneer: %w", n, ErrCannotMove)
		}
		if inst.Flow == x86.Call && n+inst.Len == len(code) {
			moveCall(a, target, end)
			continue
		}
		if err := moveOne(a, &inst, code[n:n+inst.Len], target); err != nil {
			return nil, fmt.Errorf("move instruction at +%d: %w", n, err)
		}
	}
	if !inst.IsTerminator() && inst.Flow != x86.Call {
		a.Jmp(a.LabelAt(end))
	}
	moved, err := a.Code()
	if err != nil {
		return nil, fmt.Errorf("move to %#x: %w", to, err)
	}
	if len(moved) > trampolineSize {
		return nil, fmt.Errorf("move to %#x: %d bytes: %w", to, len(moved), ErrCannotMove)
	}
	return moved, nil
}

// moveCall calls target as if from where the call stood, which ends at end: what
// is called returns there, and sees that address alone.
func moveCall(a *x86.Assembler, target, end uint64) {
	code := []byte{
		0x68, 0, 0, 0, 0, // push imm32, sign-extended to 8 bytes
		0xc7, 0x44, 0x24, 4, 0, 0, 0, 0, // movl imm32, 4(%rsp)
	}
	binary.LittleEndian.PutUint32(code[1:], uint32(end))
	binary.LittleEndian.PutUint32(code[9:], uint32(end>>32))
	a.Raw(code...)
	a.Jmp(a.LabelAt(target))
}

// errFlow is why others stay where they are: their return address, or where a
// signal finds them, would show the trampoline; or they have no near form.
var errFlow = errors.New("indirect calls, loops, system calls and traps stay")

func moveOne(a *x86.Assembler, inst *x86.Inst, code []byte, target uint64) error {
	switch inst.Flow {
	case x86.Next, x86.JumpIndirect, x86.Return, x86.Undefined:
	case x86.Jump:
		a.Jmp(a.LabelAt(target))
		return nil
	case x86.JumpCond:
		a.Jcc(x86.Cond(inst.Opcode&0xf), a.LabelAt(target))
		return nil
	default:
		return fmt.Errorf("flow %d: %w: %w", inst.Flow, ErrCannotMove, errFlow)
	}
	if !inst.IsRIPRelative() {
		a.Raw(code...)
		return nil
	}
	if inst.Prefixes&x86.PrefixAddrSize != 0 || inst.Mem.Disp.Size != 4 {
		return fmt.Errorf("its address wraps at 4 GiB: %w", ErrCannotMove)
	}
	distance := int64(target - (a.Address() + uint64(inst.Len)))
	if distance != int64(int32(distance)) {
		return fmt.Errorf("operand %#x from %#x: %w", target, a.Address(), ErrRange)
	}
	moved := append([]byte(nil), code...)
	binary.LittleEndian.PutUint32(moved[inst.Mem.Disp.Offset:], uint32(distance))
	a.Raw(moved...)
	return nil
}
