package x86

import "errors"

// What an instruction is refused for. Errors of Decode wrap one of these.
var (
	ErrTruncated   = errors.New("truncated")
	ErrInvalid     = errors.New("not an instruction of 64-bit mode")
	ErrUnsupported = errors.New("not supported")
	ErrAPX         = errors.New("an APX instruction, not supported")
	ErrAmbiguous   = errors.New("processors disagree on it")
)

// MaxLen is the most bytes that a processor takes for one instruction.
const MaxLen = 15

// Inst is one instruction. Offsets count from its first byte.
type Inst struct {
	Len      int
	Encoding Encoding
	Map      Map
	Opcode   byte
	Prefixes Prefix

	// Ext has the extension bits W R X B as in the low half of a REX prefix,
	// wherever they came from; those of VEX, EVEX and XOP are not inverted.
	Ext byte

	HasModRM bool
	ModRM    byte

	Flow   Flow
	Rel    Field // the distance of a direct branch, or Size 0
	Imm    Field // all immediate bytes as one value: ENTER has 3, EXTRQ 2
	HasMem bool
	Mem    Mem
}

// Field is a number inside an instruction: Size bytes (0 where there is none)
// at Offset, little-endian; Value is sign-extended.
type Field struct {
	Offset uint8
	Size   uint8
	Value  int64
}

// Mem is a memory operand as encoded. LEA and the long NOPs have one that they
// don't access.
type Mem struct {
	Base  Reg   // RIP for a RIP-relative operand, NoReg for an absolute one
	Index Reg   // NoReg also where the index is a vector register (VSIB)
	Scale uint8 // 1, 2, 4 or 8

	// Disp is the displacement. With EVEX one of 1 byte is still to be scaled
	// (disp8*N, SDM 2.7.5). Of MOV with an offset (A0 to A3) it is the address.
	Disp Field
}

// Encoding is the family of prefixes that an opcode map belongs to.
type Encoding uint8

// The encodings.
const (
	Legacy Encoding = iota // no prefix, or REX
	VEX
	EVEX
	XOP
)

// Map is an opcode map, numbered as in the mmmmm field of VEX, EVEX and XOP.
type Map uint8

// The maps that are decoded.
const (
	MapOneByte Map = 0
	Map0F      Map = 1 // 3DNow! is opcode 0F in it, its suffix the immediate
	Map0F38    Map = 2
	Map0F3A    Map = 3
	Map5       Map = 5 // EVEX: AVX512-FP16
	Map6       Map = 6
	Map8       Map = 8 // XOP
	Map9       Map = 9
	MapA       Map = 10
)

// Prefix is a set of prefixes. The ones that VEX, EVEX and XOP imply (pp) are
// not in it.
type Prefix uint16

// The prefixes.
const (
	PrefixOpSize   Prefix = 1 << iota // 66
	PrefixAddrSize                    // 67
	PrefixLock                        // F0
	PrefixRepne                       // F2: REPNE, BND
	PrefixRep                         // F3: REP
	PrefixES
	PrefixCS
	PrefixSS
	PrefixDS // 3E: also NOTRACK
	PrefixFS
	PrefixGS
	PrefixREX
)

// Reg is a general register, or RIP as the base of an address.
type Reg uint8

// The registers, in the order of their encoding.
const (
	NoReg Reg = iota
	RAX
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
	RIP
)

// Flow says where control goes after an instruction.
type Flow uint8

// The flows. Call to XBegin are direct: they have Inst.Rel.
const (
	Next         Flow = iota // to the next instruction
	Call                     // CALL rel32
	Jump                     // JMP rel8, rel32
	JumpCond                 // Jcc rel8, rel32
	Loop                     // LOOP, LOOPE, LOOPNE, JRCXZ
	XBegin                   // XBEGIN: the distance leads to the abort handler
	CallIndirect             // CALL by register or memory, near or far
	JumpIndirect             // JMP by register or memory, near or far
	Return                   // RET, far RET, IRET, SYSRET, SYSEXIT
	Syscall                  // SYSCALL, SYSENTER
	Breakpoint               // INT3
	Halt                     // HLT: never returns to user code
	Undefined                // UD1, UD2
)

// Target returns the address that an instruction at pc refers to, by a direct
// branch or by a RIP-relative operand; ok is false for one that has neither.
// With prefix 67 a RIP-relative address wraps at 4 GiB.
func (i *Inst) Target(pc uint64) (address uint64, ok bool) {
	next := pc + uint64(i.Len)
	switch {
	case i.IsBranch():
		return next + uint64(i.Rel.Value), true
	case i.IsRIPRelative():
		address = next + uint64(i.Mem.Disp.Value)
		if i.Prefixes&PrefixAddrSize != 0 {
			address = uint64(uint32(address))
		}
		return address, true
	}
	return 0, false
}

// IsBranch reports a direct branch: its distance is Rel.
func (i *Inst) IsBranch() bool { return i.Rel.Size != 0 }

// IsRIPRelative reports a RIP-relative operand: its distance is Mem.Disp.
func (i *Inst) IsRIPRelative() bool { return i.HasMem && i.Mem.Base == RIP }

// IsTerminator reports that control never reaches the next instruction by
// itself. INT3 is none: a debugger or a handler goes on behind it.
func (i *Inst) IsTerminator() bool {
	switch i.Flow {
	case Jump, JumpIndirect, Return, Halt, Undefined:
		return true
	}
	return false
}

// IsNop reports NOP and the long NOPs, whose operand means nothing.
func (i *Inst) IsNop() bool {
	if i.Encoding != Legacy {
		return false
	}
	return i.Map == Map0F && i.Opcode == 0x1f ||
		i.Map == MapOneByte && i.Opcode == 0x90 && i.Ext&extB == 0 && i.Prefixes&PrefixRep == 0
}

// OnStack reports an operand based on RSP or RBP: most often a local variable.
// Code built without frame pointers also uses RBP for anything else.
func (m *Mem) OnStack() bool { return m.Base == RSP || m.Base == RBP }
