package x86

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

const origin = 0x10000

// instructions: as objdump prints it, how it is made, what it is. here is the
// address of the instruction, there 0x100 bytes further.
var instructions = []struct {
	text string
	emit func(a *Assembler, here, there Label)
	code string
}{
	{"movabs $0x123456789abcdef0,%rax", func(a *Assembler, _, _ Label) { a.MovImm64(RAX, 0x123456789abcdef0) }, "48 b8 f0 de bc 9a 78 56 34 12"},
	{"movabs $0x1,%r15", func(a *Assembler, _, _ Label) { a.MovImm64(R15, 1) }, "49 bf 01 00 00 00 00 00 00 00"},
	{"mov $0xffffffff,%edi", func(a *Assembler, _, _ Label) { a.MovImm32(RDI, 0xffffffff) }, "bf ff ff ff ff"},
	{"mov $0x27,%r8d", func(a *Assembler, _, _ Label) { a.MovImm32(R8, 39) }, "41 b8 27 00 00 00"},
	{"mov %rbx,%rax", func(a *Assembler, _, _ Label) { a.Mov(RAX, RBX) }, "48 89 d8"},
	{"mov %r12,%rsp", func(a *Assembler, _, _ Label) { a.Mov(RSP, R12) }, "4c 89 e4"},
	{"mov %rax,%r9", func(a *Assembler, _, _ Label) { a.Mov(R9, RAX) }, "49 89 c1"},
	{"mov (%rdi),%rax", func(a *Assembler, _, _ Label) { a.Load(RAX, At(RDI, 0)) }, "48 8b 07"},
	{"mov 0x0(%rbp),%rax", func(a *Assembler, _, _ Label) { a.Load(RAX, At(RBP, 0)) }, "48 8b 45 00"},
	{"mov 0x0(%r13),%r8", func(a *Assembler, _, _ Label) { a.Load(R8, At(R13, 0)) }, "4d 8b 45 00"},
	{"mov (%rsp),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(RSP, 0)) }, "48 8b 0c 24"},
	{"mov (%r12),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(R12, 0)) }, "49 8b 0c 24"},
	{"mov 0x7f(%rsp),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(RSP, 127)) }, "48 8b 4c 24 7f"},
	{"mov 0x80(%r12),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(R12, 128)) }, "49 8b 8c 24 80 00 00 00"},
	{"mov -0x80(%rdx),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(RDX, -128)) }, "48 8b 4a 80"},
	{"mov -0x81(%rdx),%rcx", func(a *Assembler, _, _ Label) { a.Load(RCX, At(RDX, -129)) }, "48 8b 8a 7f ff ff ff"},
	{"mov 0x100(%rip),%r10", func(a *Assembler, _, there Label) { a.Load(R10, Rel(there)) }, "4c 8b 15 f9 00 00 00"},
	{"mov %fs:0x28,%rax", func(a *Assembler, _, _ Label) { a.Load(RAX, FS(0x28)) }, "64 48 8b 04 25 28 00 00 00"},
	{"mov %r11,%fs:0xfffffffffffffff8", func(a *Assembler, _, _ Label) { a.Store(FS(-8), R11) }, "64 4c 89 1c 25 f8 ff ff ff"},
	{"mov %rsi,0x10(%rax)", func(a *Assembler, _, _ Label) { a.Store(At(RAX, 16), RSI) }, "48 89 70 10"},
	{"lea 0x100(%rip),%rdi", func(a *Assembler, _, there Label) { a.Lea(RDI, Rel(there)) }, "48 8d 3d f9 00 00 00"},
	{"lea -0x80(%rsp),%rsp", func(a *Assembler, _, _ Label) { a.Lea(RSP, At(RSP, -128)) }, "48 8d 64 24 80"},
	{"add %rcx,%rax", func(a *Assembler, _, _ Label) { a.Add(RAX, RCX) }, "48 01 c8"},
	{"add $0x7f,%al", func(a *Assembler, _, _ Label) { a.AddAL(127) }, "04 7f"},
	{"add $0xffffffffffffff80,%rsp", func(a *Assembler, _, _ Label) { a.AddImm(RSP, -128) }, "48 83 c4 80"},
	{"add $0x80,%r9", func(a *Assembler, _, _ Label) { a.AddImm(R9, 128) }, "49 81 c1 80 00 00 00"},
	{"and %r8,%rdx", func(a *Assembler, _, _ Label) { a.And(RDX, R8) }, "4c 21 c2"},
	{"and $0xfffffffffffffff0,%rsp", func(a *Assembler, _, _ Label) { a.AndImm(RSP, -16) }, "48 83 e4 f0"},
	{"sub %rcx,%rax", func(a *Assembler, _, _ Label) { a.Sub(RAX, RCX) }, "48 29 c8"},
	{"sub $0x1000,%rsp", func(a *Assembler, _, _ Label) { a.SubImm(RSP, 4096) }, "48 81 ec 00 10 00 00"},
	{"xor %rax,%rax", func(a *Assembler, _, _ Label) { a.Xor(RAX, RAX) }, "48 31 c0"},
	{"xor $0x1,%r15", func(a *Assembler, _, _ Label) { a.XorImm(R15, 1) }, "49 83 f7 01"},
	{"cmp %rsi,%rdi", func(a *Assembler, _, _ Label) { a.Cmp(RDI, RSI) }, "48 39 f7"},
	{"cmp $0xfffffffffffff001,%rax", func(a *Assembler, _, _ Label) { a.CmpImm(RAX, -4095) }, "48 81 f8 01 f0 ff ff"},
	{"test %r14,%r14", func(a *Assembler, _, _ Label) { a.Test(R14, R14) }, "4d 85 f6"},
	{"test $0x1,%rbx", func(a *Assembler, _, _ Label) { a.TestImm(RBX, 1) }, "48 f7 c3 01 00 00 00"},
	{"inc %rax", func(a *Assembler, _, _ Label) { a.Inc(RAX) }, "48 ff c0"},
	{"dec %r11", func(a *Assembler, _, _ Label) { a.Dec(R11) }, "49 ff cb"},
	{"incq 0x100(%rip)", func(a *Assembler, _, there Label) { a.IncMem(Rel(there)) }, "48 ff 05 f9 00 00 00"},
	{"lock incq 0x8(%r11)", func(a *Assembler, _, _ Label) { a.LockInc(At(R11, 8)) }, "f0 49 ff 43 08"},
	{"lock incq 0x100(%rip)", func(a *Assembler, _, there Label) { a.LockInc(Rel(there)) }, "f0 48 ff 05 f8 00 00 00"},
	{"xchg %rax,0x100(%rip)", func(a *Assembler, _, there Label) { a.Xchg(Rel(there), RAX) }, "48 87 05 f9 00 00 00"},
	{"lock xadd %rax,(%rdi)", func(a *Assembler, _, _ Label) { a.LockXadd(At(RDI, 0), RAX) }, "f0 48 0f c1 07"},
	{"lock xadd %r9,0x100(%rip)", func(a *Assembler, _, there Label) { a.LockXadd(Rel(there), R9) }, "f0 4c 0f c1 0d f7 00 00 00"},
	{"add %rcx,0x10(%r11)", func(a *Assembler, _, _ Label) { a.AddMem(At(R11, 16), RCX) }, "49 01 4b 10"},
	{"lock add %rax,0x100(%rip)", func(a *Assembler, _, there Label) { a.LockAdd(Rel(there), RAX) }, "f0 48 01 05 f8 00 00 00"},
	{"sub %rcx,(%r11)", func(a *Assembler, _, _ Label) { a.SubMem(At(R11, 0), RCX) }, "49 29 0b"},
	{"cmp %rdi,0x8(%rax)", func(a *Assembler, _, _ Label) { a.CmpMem(At(RAX, 8), RDI) }, "48 39 78 08"},
	{"lock cmpxchg %r9,0x18(%r8)", func(a *Assembler, _, _ Label) { a.LockCmpxchg(At(R8, 24), R9) }, "f0 4d 0f b1 48 18"},
	{"shl $0x5,%rax", func(a *Assembler, _, _ Label) { a.ShlImm(RAX, 5) }, "48 c1 e0 05"},
	{"shr $0x34,%r10", func(a *Assembler, _, _ Label) { a.ShrImm(R10, 52) }, "49 c1 ea 34"},
	{"imul %r10,%rax", func(a *Assembler, _, _ Label) { a.Imul(RAX, R10) }, "49 0f af c2"},
	{"neg %r10", func(a *Assembler, _, _ Label) { a.Neg(R10) }, "49 f7 da"},
	{"test %eax,%eax", func(a *Assembler, _, _ Label) { a.Test32(RAX, RAX) }, "85 c0"},
	{"test %r9d,%r8d", func(a *Assembler, _, _ Label) { a.Test32(R8, R9) }, "45 85 c8"},
	{"rdtsc", func(a *Assembler, _, _ Label) { a.Rdtsc() }, "0f 31"},
	{"push %rbp", func(a *Assembler, _, _ Label) { a.Push(RBP) }, "55"},
	{"push %r12", func(a *Assembler, _, _ Label) { a.Push(R12) }, "41 54"},
	{"pop %r15", func(a *Assembler, _, _ Label) { a.Pop(R15) }, "41 5f"},
	{"jmp 0x100", func(a *Assembler, _, there Label) { a.Jmp(there) }, "e9 fb 00 00 00"},
	{"jmp 0x0", func(a *Assembler, here, _ Label) { a.Jmp(here) }, "e9 fb ff ff ff"},
	{"jne 0x100", func(a *Assembler, _, there Label) { a.Jcc(NotEqual, there) }, "0f 85 fa 00 00 00"},
	{"jb 0x0", func(a *Assembler, here, _ Label) { a.Jcc(Below, here) }, "0f 82 fa ff ff ff"},
	{"jg 0x0", func(a *Assembler, here, _ Label) { a.Jcc(Greater, here) }, "0f 8f fa ff ff ff"},
	{"call 0x100", func(a *Assembler, _, there Label) { a.Call(there) }, "e8 fb 00 00 00"},
	{"jmp *%r11", func(a *Assembler, _, _ Label) { a.JmpReg(R11) }, "41 ff e3"},
	{"call *%rax", func(a *Assembler, _, _ Label) { a.CallReg(RAX) }, "ff d0"},
	{"jmp *0x100(%rip)", func(a *Assembler, _, there Label) { a.JmpMem(Rel(there)) }, "ff 25 fa 00 00 00"},
	{"call *0x100(%rip)", func(a *Assembler, _, there Label) { a.CallMem(Rel(there)) }, "ff 15 fa 00 00 00"},
	{"jmp *0x8(%r12)", func(a *Assembler, _, _ Label) { a.JmpMem(At(R12, 8)) }, "41 ff 64 24 08"},
	{"ret", func(a *Assembler, _, _ Label) { a.Ret() }, "c3"},
	{"syscall", func(a *Assembler, _, _ Label) { a.Syscall() }, "0f 05"},
	{"pause", func(a *Assembler, _, _ Label) { a.Pause() }, "f3 90"},
	{"endbr64", func(a *Assembler, _, _ Label) { a.Endbr64() }, "f3 0f 1e fa"},
	{"ud2", func(a *Assembler, _, _ Label) { a.Ud2() }, "0f 0b"},
	{"pushf", func(a *Assembler, _, _ Label) { a.Pushfq() }, "9c"},
	{"popf", func(a *Assembler, _, _ Label) { a.Popfq() }, "9d"},
	{"lahf", func(a *Assembler, _, _ Label) { a.Lahf() }, "9f"},
	{"sahf", func(a *Assembler, _, _ Label) { a.Sahf() }, "9e"},
	{"seto %al", func(a *Assembler, _, _ Label) { a.Set(Overflow, RAX) }, "0f 90 c0"},
	{"sete %dil", func(a *Assembler, _, _ Label) { a.Set(Equal, RDI) }, "40 0f 94 c7"},
	{"setl %r8b", func(a *Assembler, _, _ Label) { a.Set(Less, R8) }, "41 0f 9c c0"},
	{"nop", func(a *Assembler, _, _ Label) { a.Nop(1) }, "90"},
	{"xchg %ax,%ax", func(a *Assembler, _, _ Label) { a.Nop(2) }, "66 90"},
	{"nopl (%rax)", func(a *Assembler, _, _ Label) { a.Nop(3) }, "0f 1f 00"},
	{"nopl 0x0(%rax)", func(a *Assembler, _, _ Label) { a.Nop(4) }, "0f 1f 40 00"},
	{"nopl 0x0(%rax,%rax,1)", func(a *Assembler, _, _ Label) { a.Nop(5) }, "0f 1f 44 00 00"},
	{"nopw 0x0(%rax,%rax,1)", func(a *Assembler, _, _ Label) { a.Nop(6) }, "66 0f 1f 44 00 00"},
	{"nopl 0x0(%rax)", func(a *Assembler, _, _ Label) { a.Nop(7) }, "0f 1f 80 00 00 00 00"},
	{"nopl 0x0(%rax,%rax,1)", func(a *Assembler, _, _ Label) { a.Nop(8) }, "0f 1f 84 00 00 00 00 00"},
	{"nopw 0x0(%rax,%rax,1)", func(a *Assembler, _, _ Label) { a.Nop(9) }, "66 0f 1f 84 00 00 00 00 00"},
}

func TestAssemble(t *testing.T) {
	for _, test := range instructions {
		a := NewAssembler(origin)
		there := a.LabelAt(origin + 0x100)
		here := a.NewLabel()
		a.Bind(here)
		test.emit(a, here, there)
		code, err := a.Code()
		if err != nil || !bytes.Equal(code, unhex(t, test.code)) {
			t.Errorf("%s: % x, %v; want %s", test.text, code, err, test.code)
			continue
		}
		if i, err := Decode(code); err != nil || i.Len != len(code) {
			t.Errorf("%s (% x): decoded %d bytes, %v", test.text, code, i.Len, err)
		}
	}
}

// TestAssembleAgainstObjdump reads the golden bytes back, each at a multiple
// of 16, and compares with the text of the table.
func TestAssembleAgainstObjdump(t *testing.T) {
	testbed.NeedTool(t, "objdump")
	var code []byte
	for _, test := range instructions {
		code = append(code, unhex(t, test.code)...)
		for len(code)%16 != 0 {
			code = append(code, 0x90)
		}
	}
	file := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(file, code, 0o600); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := disassemble(t.Context(), func(l line) bool {
		if l.address%16 != 0 {
			return true
		}
		want := instructions[l.address/16].text
		text, comment, refers := strings.Cut(string(l.text), "# ")
		text = strings.Join(strings.Fields(text), " ")
		distance := hexNumber([]byte(comment)) - l.address
		if operand, indirect := branch(l.text); operand != nil && !indirect {
			refers, distance = true, hexNumber(operand)-l.address
			text = text[:strings.LastIndexByte(text, ' ')] + " 0x" + map[uint64]string{0: "0", 0x100: "100"}[distance]
		} else if refers { // the table has the target, not the displacement
			before, after, _ := strings.Cut(text, "(%rip)")
			text = before[:strings.LastIndexAny(before, " *,")+1] + "0x100(%rip)" + after
		}
		if text != want || refers && distance != 0 && distance != 0x100 {
			t.Errorf("objdump prints %q, want %q", l.text, want)
		}
		seen++
		return true
	}, "-D", "-b", "binary", "-m", "i386:x86-64", file)
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(instructions) {
		t.Errorf("objdump printed %d of %d instructions", seen, len(instructions))
	}
}

func TestLabels(t *testing.T) {
	a := NewAssembler(origin)
	spin, done, word := a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.Bind(spin)
	a.Load(RAX, Rel(word))
	a.Test(RAX, RAX)
	a.Jcc(NotEqual, done)
	a.Pause()
	a.Jmp(spin)
	a.Bind(done)
	a.Ret()
	a.Align(8)
	a.Bind(word)
	a.Quad(1)
	code, err := a.Code()
	want := unhex(t, "48 8b 05 11 00 00 00  48 85 c0  0f 85 07 00 00 00  f3 90  e9 e9 ff ff ff  c3  01 00 00 00 00 00 00 00")
	if err != nil || !bytes.Equal(code, want) {
		t.Errorf("% x, %v; want % x", code, err, want)
	}
}

func TestNopPads(t *testing.T) {
	for n := range 100 {
		a := NewAssembler(origin)
		a.Nop(n)
		code, err := a.Code()
		if err != nil || len(code) != n {
			t.Fatalf("%d bytes for %d, %v", len(code), n, err)
		}
		for len(code) > 0 {
			i, err := Decode(code)
			if err != nil || !i.IsNop() {
				t.Fatalf("% x: %v", code, err)
			}
			code = code[i.Len:]
		}
	}
}

func TestAssembleFails(t *testing.T) {
	for _, test := range []struct {
		name string
		emit func(a *Assembler)
		want error
	}{
		{"no register", func(a *Assembler) { a.Push(NoReg) }, ErrOperand},
		{"rip as a register", func(a *Assembler) { a.Mov(RAX, RIP) }, ErrOperand},
		{"no base", func(a *Assembler) { a.Load(RAX, At(NoReg, 8)) }, ErrOperand},
		{"lea of fs", func(a *Assembler) { a.Lea(RAX, FS(0)) }, ErrOperand},
		{"unbound label", func(a *Assembler) { a.Jmp(a.NewLabel()) }, ErrLabel},
		{"label bound twice", func(a *Assembler) { l := a.NewLabel(); a.Bind(l); a.Bind(l) }, ErrLabel},
		{"too far ahead", func(a *Assembler) { a.Jmp(a.LabelAt(origin + 5 + 1<<31)) }, ErrRange},
		{"too far behind", func(a *Assembler) { a.Call(a.LabelAt(0xffff_ffff_8001_0004)) }, ErrRange},
	} {
		a := NewAssembler(origin)
		test.emit(a)
		a.Ret()
		if code, err := a.Code(); !errors.Is(err, test.want) || code != nil {
			t.Errorf("%s: % x, %v; want %v", test.name, code, err, test.want)
		}
	}
	for _, distance := range []int64{1<<31 - 1, -1 << 31} {
		const high = 1 << 40
		a := NewAssembler(high)
		a.Jmp(a.LabelAt(high + 5 + uint64(distance)))
		if _, err := a.Code(); err != nil {
			t.Errorf("distance %d: %v", distance, err)
		}
	}
}
