package x86

// Cond is a condition of Jcc and SETcc, numbered as in the opcode.
type Cond byte

// The conditions; after a comparison, Below and Above are unsigned, Less and
// Greater signed.
const (
	Overflow Cond = iota
	NotOverflow
	Below
	AboveEqual
	Equal
	NotEqual
	BelowEqual
	Above
	Sign
	NotSign
	Parity
	NotParity
	Less
	GreaterEqual
	LessEqual
	Greater
)

// MovImm64 sets dst with an 8-byte immediate, whatever v is, so that v can be
// patched; it lies in the last 8 bytes.
func (a *Assembler) MovImm64(dst Reg, v uint64) {
	n := a.number(dst)
	a.Raw(0x40|extW|n>>3*extB, 0xb8|n&7)
	a.Quad(v)
}

// MovImm32 sets dst to v, the upper half to zero.
func (a *Assembler) MovImm32(dst Reg, v uint32) {
	n := a.number(dst)
	a.rex(n >> 3 * extB)
	a.Raw(0xb8 | n&7)
	a.long(v)
}

// Mov copies a register.
func (a *Assembler) Mov(dst, src Reg) { a.registers(extW, a.number(src), dst, 0x89) }

// Load copies 8 bytes of memory to a register.
func (a *Assembler) Load(dst Reg, m Address) { a.memory(extW, a.number(dst), m, 0x8b) }

// Store copies a register to 8 bytes of memory.
func (a *Assembler) Store(m Address, src Reg) { a.memory(extW, a.number(src), m, 0x89) }

// Lea sets dst to the address m, which can't be one of FS.
func (a *Assembler) Lea(dst Reg, m Address) {
	if m.fs {
		a.fail(ErrOperand, "lea of %%fs")
		return
	}
	a.memory(extW, a.number(dst), m, 0x8d)
}

// The second byte of the opcodes 01 (register) and 81, 83 (immediate): SDM
// table A-6, group 1.
const (
	groupAdd = 0
	groupAnd = 4
	groupSub = 5
	groupXor = 6
	groupCmp = 7
)

func (a *Assembler) arithmetic(group byte, dst, src Reg) {
	a.registers(extW, a.number(src), dst, group<<3|1)
}

func (a *Assembler) arithmeticImm(group byte, dst Reg, v int32) {
	if v == int32(int8(v)) {
		a.registers(extW, group, dst, 0x83)
		a.Raw(byte(v))
		return
	}
	a.registers(extW, group, dst, 0x81)
	a.long(uint32(v))
}

// Add sets dst to dst + src. The immediates of this and of the following are
// sign-extended.
func (a *Assembler) Add(dst, src Reg) { a.arithmetic(groupAdd, dst, src) }

// AddImm sets dst to dst + v.
func (a *Assembler) AddImm(dst Reg, v int32) { a.arithmeticImm(groupAdd, dst, v) }

// And sets dst to dst & src.
func (a *Assembler) And(dst, src Reg) { a.arithmetic(groupAnd, dst, src) }

// AndImm sets dst to dst & v.
func (a *Assembler) AndImm(dst Reg, v int32) { a.arithmeticImm(groupAnd, dst, v) }

// Sub sets dst to dst - src.
func (a *Assembler) Sub(dst, src Reg) { a.arithmetic(groupSub, dst, src) }

// SubImm sets dst to dst - v.
func (a *Assembler) SubImm(dst Reg, v int32) { a.arithmeticImm(groupSub, dst, v) }

// Xor sets dst to dst ^ src.
func (a *Assembler) Xor(dst, src Reg) { a.arithmetic(groupXor, dst, src) }

// XorImm sets dst to dst ^ v.
func (a *Assembler) XorImm(dst Reg, v int32) { a.arithmeticImm(groupXor, dst, v) }

// Cmp sets the flags of x - y.
func (a *Assembler) Cmp(x, y Reg) { a.arithmetic(groupCmp, x, y) }

// CmpImm sets the flags of x - v.
func (a *Assembler) CmpImm(x Reg, v int32) { a.arithmeticImm(groupCmp, x, v) }

// Test sets the flags of x & y.
func (a *Assembler) Test(x, y Reg) { a.registers(extW, a.number(y), x, 0x85) }

// TestImm sets the flags of x & v.
func (a *Assembler) TestImm(x Reg, v int32) {
	a.registers(extW, 0, x, 0xf7)
	a.long(uint32(v))
}

// Inc adds one and leaves the carry flag.
func (a *Assembler) Inc(r Reg) { a.registers(extW, 0, r, 0xff) }

// Dec subtracts one and leaves the carry flag.
func (a *Assembler) Dec(r Reg) { a.registers(extW, 1, r, 0xff) }

// IncMem adds one to 8 bytes of memory, not atomically.
func (a *Assembler) IncMem(m Address) { a.memory(extW, 0, m, 0xff) }

// LockInc adds one to 8 bytes of memory atomically.
func (a *Assembler) LockInc(m Address) {
	a.Raw(0xf0)
	a.memory(extW, 0, m, 0xff)
}

// LockXadd adds r to 8 bytes of memory atomically and sets r to what was there.
func (a *Assembler) LockXadd(m Address, r Reg) {
	a.Raw(0xf0)
	a.memory(extW, a.number(r), m, 0x0f, 0xc1)
}

// AddMem adds r to 8 bytes of memory, not atomically.
func (a *Assembler) AddMem(m Address, r Reg) { a.memory(extW, a.number(r), m, 0x01) }

// LockAdd adds r to 8 bytes of memory atomically.
func (a *Assembler) LockAdd(m Address, r Reg) {
	a.Raw(0xf0)
	a.AddMem(m, r)
}

// SubMem subtracts r from 8 bytes of memory, not atomically.
func (a *Assembler) SubMem(m Address, r Reg) { a.memory(extW, a.number(r), m, 0x29) }

// CmpMem sets the flags of memory - r.
func (a *Assembler) CmpMem(m Address, r Reg) { a.memory(extW, a.number(r), m, 0x39) }

// LockCmpxchg stores r in 8 bytes of memory if they are rax, atomically; otherwise
// it loads them into rax. The flags are those of rax - memory.
func (a *Assembler) LockCmpxchg(m Address, r Reg) {
	a.Raw(0xf0)
	a.memory(extW, a.number(r), m, 0x0f, 0xb1)
}

// ShlImm shifts a register left by v bits.
func (a *Assembler) ShlImm(r Reg, v byte) {
	a.registers(extW, 4, r, 0xc1)
	a.Raw(v)
}

// ShrImm shifts a register right by v bits, zeros follow.
func (a *Assembler) ShrImm(r Reg, v byte) {
	a.registers(extW, 5, r, 0xc1)
	a.Raw(v)
}

// Imul sets dst to the low half of dst * src.
func (a *Assembler) Imul(dst, src Reg) { a.registers(extW, a.number(dst), src, 0x0f, 0xaf) }

// Neg sets r to -r.
func (a *Assembler) Neg(r Reg) { a.registers(extW, 3, r, 0xf7) }

// Test32 sets the flags of the lower halves of x & y.
func (a *Assembler) Test32(x, y Reg) { a.registers(0, a.number(y), x, 0x85) }

// Rdtsc sets edx:eax to the processor's time stamp, and clears the upper halves.
func (a *Assembler) Rdtsc() { a.Raw(0x0f, 0x31) }

// Xchg exchanges r and 8 bytes of memory atomically.
func (a *Assembler) Xchg(m Address, r Reg) { a.memory(extW, a.number(r), m, 0x87) }

// Push pushes a register.
func (a *Assembler) Push(r Reg) { a.stack(0x50, r) }

// Pop pops a register.
func (a *Assembler) Pop(r Reg) { a.stack(0x58, r) }

func (a *Assembler) stack(opcode byte, r Reg) {
	n := a.number(r)
	a.rex(n >> 3 * extB)
	a.Raw(opcode | n&7)
}

// Jmp jumps to l.
func (a *Assembler) Jmp(l Label) {
	a.Raw(0xe9)
	a.distance(l)
}

// Jcc jumps to l if c holds.
func (a *Assembler) Jcc(c Cond, l Label) {
	a.Raw(0x0f, 0x80|byte(c)&0xf)
	a.distance(l)
}

// Call calls l.
func (a *Assembler) Call(l Label) {
	a.Raw(0xe8)
	a.distance(l)
}

// JmpReg jumps to the address in r.
func (a *Assembler) JmpReg(r Reg) { a.registers(0, 4, r, 0xff) }

// CallReg calls the address in r.
func (a *Assembler) CallReg(r Reg) { a.registers(0, 2, r, 0xff) }

// JmpMem jumps to the address in 8 bytes of memory.
func (a *Assembler) JmpMem(m Address) { a.memory(0, 4, m, 0xff) }

// CallMem calls the address in 8 bytes of memory.
func (a *Assembler) CallMem(m Address) { a.memory(0, 2, m, 0xff) }

// Ret returns.
func (a *Assembler) Ret() { a.Raw(0xc3) }

// Syscall enters the kernel, which overwrites rax, rcx and r11.
func (a *Assembler) Syscall() { a.Raw(0x0f, 0x05) }

// Pause tells the processor that a loop spins.
func (a *Assembler) Pause() { a.Raw(0xf3, 0x90) }

// Endbr64 marks a place that indirect branches may lead to.
func (a *Assembler) Endbr64() { a.Raw(0xf3, 0x0f, 0x1e, 0xfa) }

// Ud2 raises SIGILL.
func (a *Assembler) Ud2() { a.Raw(0x0f, 0x0b) }

// Pushfq pushes the flags.
func (a *Assembler) Pushfq() { a.Raw(0x9c) }

// Popfq pops the flags.
func (a *Assembler) Popfq() { a.Raw(0x9d) }

// Lahf sets ah to the flags SF, ZF, AF, PF and CF.
func (a *Assembler) Lahf() { a.Raw(0x9f) }

// Sahf sets those flags from ah.
func (a *Assembler) Sahf() { a.Raw(0x9e) }

// AddAL adds v to al. After Set(Overflow, RAX), AddAL(127) restores OF: Lahf
// and Set save, AddAL and Sahf restore all arithmetic flags without PUSHFQ.
func (a *Assembler) AddAL(v int8) { a.Raw(0x04, byte(v)) }

// Set sets the low byte of r to 1 if c holds, otherwise to 0.
func (a *Assembler) Set(c Cond, r Reg) {
	if n := a.number(r); n >= 4 && n < 8 {
		a.Raw(0x40) // without it, 4 to 7 are ah to bh
	}
	a.registers(0, 0, r, 0x0f, 0x90|byte(c)&0xf)
}

// nops are the multi-byte NOPs that Intel recommends: SDM volume 2, NOP,
// table 4-12.
var nops = [...]string{
	1: "\x90",
	2: "\x66\x90",
	3: "\x0f\x1f\x00",
	4: "\x0f\x1f\x40\x00",
	5: "\x0f\x1f\x44\x00\x00",
	6: "\x66\x0f\x1f\x44\x00\x00",
	7: "\x0f\x1f\x80\x00\x00\x00\x00",
	8: "\x0f\x1f\x84\x00\x00\x00\x00\x00",
	9: "\x66\x0f\x1f\x84\x00\x00\x00\x00\x00",
}

// Nop appends n bytes of as few NOPs as there can be.
func (a *Assembler) Nop(n int) {
	for n > 0 {
		nop := nops[min(n, len(nops)-1)]
		a.code = append(a.code, nop...)
		n -= len(nop)
	}
}

// Align appends NOPs up to a multiple of n, a power of two.
func (a *Assembler) Align(n int) { a.Nop(int(-a.Address() & uint64(n-1))) }
