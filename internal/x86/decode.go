package x86

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// The bits of a REX prefix.
const (
	extB = 1 << iota // extends ModRM.rm, SIB.base, or the register in the opcode
	extX             // extends SIB.index
	extR             // extends ModRM.reg
	extW             // 64-bit operand
)

// Decode returns the instruction that code begins with. Bytes behind it are
// not looked at. Errors wrap ErrTruncated where code ends too early, otherwise
// ErrInvalid, ErrUnsupported, ErrAPX or ErrAmbiguous.
func Decode(code []byte) (Inst, error) {
	d := decoder{code: code[:min(len(code), MaxLen)]}
	err := d.instruction()
	switch {
	case d.cut && len(code) < MaxLen:
		return Inst{}, fmt.Errorf("decode % x: %w", code, ErrTruncated)
	case d.cut:
		return Inst{}, fmt.Errorf("decode % x: %w: more than %d bytes", d.code, ErrInvalid, MaxLen)
	case err != nil:
		return Inst{}, fmt.Errorf("decode % x: %w", d.code, err)
	}
	d.Len = d.at
	return d.Inst, nil
}

func refuse(sentinel error, why string) error { return fmt.Errorf("%w: %s", sentinel, why) }

// decoder reads an instruction from left to right. Behind the end of code it
// reads zeros and notes that with cut, so that only Decode has to look.
type decoder struct {
	Inst
	code []byte
	at   int
	cut  bool
}

func (d *decoder) peek() byte {
	if d.at < len(d.code) {
		return d.code[d.at]
	}
	d.cut = true
	return 0
}

func (d *decoder) byte() byte {
	b := d.peek()
	d.at++
	return b
}

// field reads a number of size bytes.
func (d *decoder) field(size int) Field {
	f := Field{Offset: uint8(d.at), Size: uint8(size)}
	if d.at+size > len(d.code) {
		d.cut = true
		return f
	}
	b := d.code[d.at : d.at+size]
	d.at += size
	switch size {
	case 1:
		f.Value = int64(int8(b[0]))
	case 2:
		f.Value = int64(int16(binary.LittleEndian.Uint16(b)))
	case 3:
		f.Value = int64(binary.LittleEndian.Uint16(b)) | int64(int8(b[2]))<<16
	case 4:
		f.Value = int64(int32(binary.LittleEndian.Uint32(b)))
	case 8:
		f.Value = int64(binary.LittleEndian.Uint64(b))
	}
	return f
}

// instruction reads all of it. What it returns counts only if nothing was cut.
func (d *decoder) instruction() error {
	if err := d.prefixes(); err != nil {
		return err
	}
	if err := d.opcode(); err != nil {
		return err
	}
	shape := byte('.')
	if grid := shapes[d.Encoding][d.Map]; grid != "" {
		shape = grid[d.Opcode]
	}
	switch shape {
	case '.':
		return refuse(ErrInvalid, "opcode")
	case 'a':
		return refuse(ErrAPX, "EVEX opcode")
	case 'u':
		return refuse(ErrAmbiguous, "UD0")
	case 'm', 'r', 'g', 'B', 'Z', 'L', 'T', 'U', 'X':
		if err := d.modRM(shape); err != nil {
			return err
		}
	}
	if err := d.flow(); err != nil {
		return err
	}
	d.operand(shape)
	return d.special()
}

// prefixes reads the legacy prefixes and REX. REX counts only directly before
// the opcode (SDM 2.2.1); nobody writes one elsewhere, so that is refused.
func (d *decoder) prefixes() error {
	for {
		var p Prefix
		switch b := d.peek(); b {
		case 0x66:
			p = PrefixOpSize
		case 0x67:
			p = PrefixAddrSize
		case 0xf0:
			p = PrefixLock
		case 0xf2:
			p = PrefixRepne
		case 0xf3:
			p = PrefixRep
		case 0x26:
			p = PrefixES
		case 0x2e:
			p = PrefixCS
		case 0x36:
			p = PrefixSS
		case 0x3e:
			p = PrefixDS
		case 0x64:
			p = PrefixFS
		case 0x65:
			p = PrefixGS
		case 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f:
			p = PrefixREX
			d.Ext = b & 0xf
		default:
			return nil
		}
		if d.Prefixes&PrefixREX != 0 {
			return refuse(ErrUnsupported, "REX before another prefix")
		}
		d.Prefixes |= p
		d.at++
	}
}

// opcode reads the escapes, or VEX, EVEX or XOP, and the opcode.
func (d *decoder) opcode() error {
	b := d.byte()
	switch {
	case b == 0x0f:
		d.Map = Map0F
		switch b = d.byte(); b {
		case 0x38:
			d.Map, b = Map0F38, d.byte()
		case 0x3a:
			d.Map, b = Map0F3A, d.byte()
		}
		d.Opcode = b
		return nil
	case b == 0xc4 || b == 0xc5:
		d.Encoding = VEX
	case b == 0x62:
		d.Encoding = EVEX
	case b == 0x8f && d.peek()&0x1f >= 8: // below, it is the ModRM byte of pop
		d.Encoding = XOP
	case b == 0xd5:
		return refuse(ErrAPX, "REX2")
	default:
		d.Opcode = b
		return nil
	}

	// SDM 2.3.2 to 2.3.4: each of these before VEX is #UD.
	if d.Prefixes&(PrefixOpSize|PrefixLock|PrefixRepne|PrefixRep|PrefixREX) != 0 {
		return refuse(ErrInvalid, "66, F0, F2, F3 or REX before VEX, EVEX or XOP")
	}
	first := d.byte()
	if b == 0xc5 { // R vvvv L pp
		d.Map = Map0F
		d.Ext = ^first >> 7 * extR
		d.Opcode = d.byte()
		return nil
	}
	second := d.byte() // W vvvv L pp
	d.Ext = ^first>>5&7 | second>>7*extW
	d.Map = Map(first & 0x1f)
	if d.Encoding == EVEX {
		// P0 is R X B R' 0 mmm, P1 is W vvvv 1 pp. APX puts B4 and X4 where
		// the 0 and the 1 are, and its own instructions into map 4.
		d.Map = Map(first & 7)
		if first&8 != 0 || second&4 == 0 || d.Map == 4 {
			return refuse(ErrAPX, "EVEX prefix")
		}
		d.byte() // z L'L b V' aaa
	}
	if int(d.Map) >= len(shapes[0]) || shapes[d.Encoding][d.Map] == "" {
		return refuse(ErrUnsupported, "opcode map")
	}
	d.Opcode = d.byte()
	return nil
}

// modRM reads ModRM, SIB and displacement (SDM tables 2-2 and 2-3).
func (d *decoder) modRM(shape byte) error {
	d.HasModRM, d.ModRM = true, d.byte()
	mod, reg, rm := d.ModRM>>6, d.ModRM>>3&7, d.ModRM&7
	if shape == 'r' {
		mod = 3
	}
	memory, register := group(opcodeOf(d.Encoding, d.Map, d.Opcode))
	if mod == 3 {
		if register>>reg&1 == 0 || shape == 'g' {
			return refuse(ErrInvalid, "register operand")
		}
		return nil
	}
	if memory>>reg&1 == 0 || shape == 'g' && rm != 4 {
		return refuse(ErrInvalid, "memory operand")
	}

	d.HasMem = true
	d.Mem.Scale = 1
	size := [3]int{0, 1, 4}[mod]
	switch {
	case rm == 4:
		sib := d.byte()
		d.Mem.Scale = 1 << (sib >> 6)
		if index := sib>>3&7 | d.Ext&extX<<2; index != 4 && shape != 'g' {
			d.Mem.Index = RAX + Reg(index)
		}
		if sib&7 == 5 && mod == 0 {
			size = 4 // no base
		} else {
			d.Mem.Base = RAX + Reg(sib&7|d.Ext&extB<<3)
		}
	case rm == 5 && mod == 0:
		d.Mem.Base, size = RIP, 4
	default:
		d.Mem.Base = RAX + Reg(rm|d.Ext&extB<<3)
	}
	if size > 0 {
		d.Mem.Disp = d.field(size)
	}
	return nil
}

// operand reads what follows ModRM.
func (d *decoder) operand(shape byte) {
	z := 4
	if d.Prefixes&PrefixOpSize != 0 && d.Ext&extW == 0 {
		z = 2
	}
	switch shape {
	case 'b', 'B':
		d.Imm = d.field(1)
	case 'w':
		d.Imm = d.field(2)
	case 'e':
		d.Imm = d.field(3)
	case 'L':
		d.Imm = d.field(4)
	case 'z':
		d.Imm = d.field(z)
	case 'Z':
		if d.Flow == XBegin {
			d.Rel = d.field(4)
		} else {
			d.Imm = d.field(z)
		}
	case 'v':
		if d.Ext&extW != 0 {
			z = 8
		}
		d.Imm = d.field(z)
	case 'T':
		if d.ModRM>>3&7 < 2 {
			d.Imm = d.field(1)
		}
	case 'U':
		if d.ModRM>>3&7 < 2 {
			d.Imm = d.field(z)
		}
	case 'X':
		if d.Prefixes&(PrefixOpSize|PrefixRepne) != 0 {
			d.Imm = d.field(2)
		}
	case 'o':
		size := 8
		if d.Prefixes&PrefixAddrSize != 0 {
			size = 4
		}
		d.HasMem = true
		d.Mem = Mem{Scale: 1, Disp: d.field(size)}
	case 'j':
		d.Rel = d.field(1)
	case 'J':
		d.Rel = d.field(4)
	}
}

// flow classifies the instruction. Direct branches with 66 and without REX.W
// are refused: Intel ignores 66, for AMD distance and target have 16 bits.
func (d *decoder) flow() error {
	if d.Encoding != Legacy || d.Map > Map0F {
		return nil
	}
	direct := true
	switch op := opcodeOf(d.Encoding, d.Map, d.Opcode); {
	case op>>4 == (op1+0x70)>>4 || op>>4 == (op0F+0x80)>>4:
		d.Flow = JumpCond
	case op >= op1+0xe0 && op <= op1+0xe3:
		d.Flow = Loop
	case op == op1+0xe8:
		d.Flow = Call
	case op == op1+0xe9 || op == op1+0xeb:
		d.Flow = Jump
	case op == op1+0xc7 && d.ModRM == 0xf8:
		d.Flow = XBegin
	default:
		direct = false
		d.Flow = d.indirect(op)
	}
	if direct && d.Prefixes&PrefixOpSize != 0 && d.Ext&extW == 0 {
		return refuse(ErrAmbiguous, "near branch with prefix 66")
	}
	return nil
}

// indirect returns the flow of what is no direct branch.
func (d *decoder) indirect(op opcode) Flow {
	switch op {
	case op1 + 0xff:
		switch d.ModRM >> 3 & 7 {
		case 2, 3:
			return CallIndirect
		case 4, 5:
			return JumpIndirect
		}
	case op1 + 0xc2, op1 + 0xc3, op1 + 0xca, op1 + 0xcb, op1 + 0xcf, op0F + 0x07, op0F + 0x35:
		return Return
	case op0F + 0x05, op0F + 0x34:
		return Syscall
	case op1 + 0xcc:
		return Breakpoint
	case op1 + 0xf4:
		return Halt
	case op0F + 0x0b, op0F + 0xb9:
		return Undefined
	}
	return Next
}

// special refuses what neither a shape nor a group tells.
func (d *decoder) special() error {
	if d.Encoding != Legacy {
		return nil
	}
	switch op := opcodeOf(d.Encoding, d.Map, d.Opcode); {
	case op == op1+0xc6 || op == op1+0xc7:
		if d.ModRM>>3&7 == 7 && d.ModRM != 0xf8 {
			return refuse(ErrInvalid, "ModRM of XABORT or XBEGIN")
		}
	case op == op0F+0x0f:
		if strings.IndexByte(suffixes3DNow, byte(d.Imm.Value)) < 0 {
			return refuse(ErrInvalid, "suffix of 3DNow!")
		}
	case op == op0F+0x78:
		if d.Prefixes&PrefixRep != 0 {
			return refuse(ErrInvalid, "opcode with F3")
		}
	case op == op0F+0xb8:
		if d.Prefixes&PrefixRep == 0 {
			return refuse(ErrInvalid, "JMPE") // without F3 it is no POPCNT
		}
	}
	return nil
}
