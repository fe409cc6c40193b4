package x86

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// unhex turns "48 8b 05" into bytes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLength(t *testing.T) {
	for _, test := range []struct{ name, code string }{
		{"nop", "90"},
		{"pause", "f3 90"},
		{"endbr64", "f3 0f 1e fa"},
		{"nopw with five 66 and cs", "66 66 66 66 66 2e 0f 1f 84 00 00 00 00 00"},
		{"mov imm64", "48 b8 01 02 03 04 05 06 07 08"},
		{"mov imm32", "b8 01 02 03 04"},
		{"mov imm16", "66 b8 01 02"},
		{"mov imm64, REX.W outranks 66", "66 48 b8 01 02 03 04 05 06 07 08"},
		{"mov moffs64", "48 a1 01 02 03 04 05 06 07 08"},
		{"mov moffs32", "67 a1 01 02 03 04"},
		{"test imm8", "f6 c1 01"},
		{"test imm32", "f7 c1 01 02 03 04"},
		{"test imm16", "66 f7 c1 01 02"},
		{"neg", "f7 d9"},
		{"add imm16", "66 81 c1 01 02"},
		{"add imm32, 66 and REX.W", "66 48 81 c1 01 02 03 04"},
		{"push imm16", "66 68 01 02"},
		{"enter", "c8 10 00 01"},
		{"SIB without base", "8b 04 25 01 02 03 04"},
		{"SIB, disp8", "8b 44 24 08"},
		{"xabort", "c6 f8 01"},
		{"extrq", "66 0f 78 c1 02 03"},
		{"insertq", "f2 0f 78 c1 02 03"},
		{"vmread", "0f 78 c1"},
		{"pfadd", "0f 0f c1 9e"},
		{"mov cr0 with mod 0", "0f 20 05"},
		{"vzeroupper", "c5 f8 77"},
		{"vpshufd", "c5 f9 70 c1 02"},
		{"vaddps, EVEX disp8", "62 f1 7c 48 58 40 01"},
		{"vaddps, EVEX disp32", "62 f1 7c 48 58 80 01 02 03 04"},
		{"vpternlogd", "62 f3 7d 48 25 c1 ff"},
		{"vaddph", "62 f5 7c 48 58 c1"},
		{"vfmadd132ph", "62 f6 7d 48 98 c1"},
		{"vpgatherdd", "c4 e2 7d 90 04 8d 01 02 03 04"},
		{"vblendvps, is4", "c4 e3 79 4a c1 20"},
		{"vprotb, XOP", "8f e8 78 c0 c1 02"},
		{"bextr, XOP", "8f ea 78 10 c1 01 02 03 04"},
		{"pop, not XOP", "8f 00"},
		{"adcx", "66 0f 38 f6 c1"},
		{"rdpid", "f3 0f c7 f8"},
		{"ptwrite", "f3 48 0f ae e0"},
		{"wrssq", "48 0f 38 f6 08"},
		{"ldtilecfg", "c4 e2 78 49 00"},
		{"tileloadd", "c4 e2 7b 4b 0c 18"},
		{"tdpbssd", "c4 e2 6b 5e c1"},
		{"sha1rnds4", "0f 3a cc c1 02"},
		{"xstore", "0f a7 c0"},
		{"the longest", "66 66 66 66 66 66 66 66 66 66 66 66 66 89 c8"},
	} {
		code := unhex(t, test.code)
		inst, err := Decode(append(code, bytes.Repeat([]byte{0xff}, 16)...))
		if err != nil || inst.Len != len(code) {
			t.Errorf("%s (%s): %d bytes, %v; want %d", test.name, test.code, inst.Len, err, len(code))
		}
		for n := range code {
			if _, err := Decode(code[:n]); !errors.Is(err, ErrTruncated) {
				t.Errorf("%s (%s) cut to %d: %v; want %v", test.name, test.code, n, err, ErrTruncated)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for _, test := range []struct {
		name, code string
		want       error
	}{
		{"nothing", "", ErrTruncated},
		{"16 bytes", "66 66 66 66 66 66 66 66 66 66 66 66 66 66 89 c8", ErrInvalid},
		{"15 prefixes", "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66", ErrInvalid},
		{"push es", "06", ErrInvalid},
		{"aam", "d4 0a", ErrInvalid},
		{"call far", "9a 00 00 00 00 00 00", ErrInvalid},
		{"call far by register", "ff d8", ErrInvalid},
		{"lea of a register", "8d c0", ErrInvalid},
		{"jmpe", "0f b8 c0", ErrInvalid},
		{"3DNow! suffix", "0f 0f c1 00", ErrInvalid},
		{"66 before VEX", "66 c5 f8 77", ErrInvalid},
		{"REX before EVEX", "48 62 f1 7c 48 58 c1", ErrInvalid},
		{"gather of a register", "c4 e2 7d 90 c0", ErrInvalid},
		{"VEX map 0", "c4 e0 78 10 c0", ErrUnsupported},
		{"VEX map 7", "c4 e7 7b f8 c0 00 00 00 00", ErrUnsupported},
		{"EVEX map 7", "62 f7 7c 48 58 c1", ErrUnsupported},
		{"REX before 66", "48 66 89 c8", ErrUnsupported},
		{"two REX", "48 49 89 c8", ErrUnsupported},
		{"REX2", "d5 48 89 c8", ErrAPX},
		{"EVEX map 4", "62 f4 7c 18 01 c1", ErrAPX},
		{"EVEX with X4", "62 f1 78 48 58 00", ErrAPX},
		{"EVEX kmov", "62 f1 7c 08 90 c1", ErrAPX},
		{"call rel16 or rel32", "66 e8 00 00 00 00", ErrAmbiguous},
		{"jz rel16 or rel32", "66 0f 84 00 00 00 00", ErrAmbiguous},
		{"jmp rel8 with 66", "66 eb 00", ErrAmbiguous},
		{"xbegin with 66", "66 c7 f8 00 00 00 00", ErrAmbiguous},
		{"ud0", "0f ff c0", ErrAmbiguous},
	} {
		if inst, err := Decode(unhex(t, test.code)); !errors.Is(err, test.want) || inst != (Inst{}) {
			t.Errorf("%s (%s): %d bytes, %v; want %v", test.name, test.code, inst.Len, err, test.want)
		}
	}
}

func TestReference(t *testing.T) {
	const pc = 0x1000
	none := Mem{}
	for _, test := range []struct {
		name, code string
		flow       Flow
		rel, imm   Field
		mem        Mem
		target     uint64 // 0: none
	}{
		{"jz rel8", "74 fe", JumpCond, Field{1, 1, -2}, Field{}, none, pc},
		{"jz rel32", "0f 84 00 01 00 00", JumpCond, Field{2, 4, 256}, Field{}, none, pc + 262},
		{"jmp rel8", "eb 7f", Jump, Field{1, 1, 127}, Field{}, none, pc + 129},
		{"jmp rel32", "e9 fb ff ff ff", Jump, Field{1, 4, -5}, Field{}, none, pc},
		{"call", "e8 00 00 00 00", Call, Field{1, 4, 0}, Field{}, none, pc + 5},
		{"call, TLS padding", "66 66 48 e8 00 00 00 00", Call, Field{4, 4, 0}, Field{}, none, pc + 8},
		{"call, relaxed", "67 e8 00 00 00 00", Call, Field{2, 4, 0}, Field{}, none, pc + 6},
		{"bnd jmp", "f2 e9 00 00 00 00", Jump, Field{2, 4, 0}, Field{}, none, pc + 6},
		{"jrcxz", "e3 10", Loop, Field{1, 1, 16}, Field{}, none, pc + 18},
		{"xbegin", "c7 f8 00 00 00 00", XBegin, Field{2, 4, 0}, Field{}, none, pc + 6},
		{"call *rip", "ff 15 10 00 00 00", CallIndirect, Field{}, Field{}, Mem{RIP, NoReg, 1, Field{2, 4, 16}}, pc + 22},
		{"call *rip, TLS padding", "66 48 ff 15 10 00 00 00", CallIndirect, Field{}, Field{}, Mem{RIP, NoReg, 1, Field{4, 4, 16}}, pc + 24},
		{"notrack jmp *rax", "3e ff e0", JumpIndirect, Field{}, Field{}, none, 0},
		{"ret", "c3", Return, Field{}, Field{}, none, 0},
		{"ret imm16", "c2 08 00", Return, Field{}, Field{1, 2, 8}, none, 0},
		{"syscall", "0f 05", Syscall, Field{}, Field{}, none, 0},
		{"int3", "cc", Breakpoint, Field{}, Field{}, none, 0},
		{"hlt", "f4", Halt, Field{}, Field{}, none, 0},
		{"ud2", "0f 0b", Undefined, Field{}, Field{}, none, 0},
		{"data16 lea", "66 48 8d 3d 10 00 00 00", Next, Field{}, Field{}, Mem{RIP, NoReg, 1, Field{4, 4, 16}}, pc + 24},
		{"movl $1, rip: the immediate counts", "c7 05 10 00 00 00 01 00 00 00", Next, Field{}, Field{6, 4, 1}, Mem{RIP, NoReg, 1, Field{2, 4, 16}}, pc + 26},
		{"cmpb $-1, rip", "80 3d 10 00 00 00 ff", Next, Field{}, Field{6, 1, -1}, Mem{RIP, NoReg, 1, Field{2, 4, 16}}, pc + 23},
		{"eip", "67 8b 05 00 f0 ff ff", Next, Field{}, Field{}, Mem{RIP, NoReg, 1, Field{3, 4, -4096}}, 7},
		{"mov 8(%rsp)", "48 8b 44 24 08", Next, Field{}, Field{}, Mem{RSP, NoReg, 1, Field{4, 1, 8}}, 0},
		{"mov (%rsp): index 4 is none", "48 8b 04 24", Next, Field{}, Field{}, Mem{RSP, NoReg, 1, Field{}}, 0},
		{"mov (%rbp,%r12,8)", "4a 8b 44 e5 f0", Next, Field{}, Field{}, Mem{RBP, R12, 8, Field{4, 1, -16}}, 0},
		{"mov 0x140(%r13)", "49 8b 85 40 01 00 00", Next, Field{}, Field{}, Mem{R13, NoReg, 1, Field{3, 4, 0x140}}, 0},
		{"rm 5 with REX.B is still rip", "49 8b 05 40 01 00 00", Next, Field{}, Field{}, Mem{RIP, NoReg, 1, Field{3, 4, 0x140}}, pc + 0x147},
		{"mov disp32(,%rax,4)", "8b 04 85 10 00 00 00", Next, Field{}, Field{}, Mem{NoReg, RAX, 4, Field{3, 4, 16}}, 0},
		{"mov %fs:0x28", "64 48 8b 04 25 28 00 00 00", Next, Field{}, Field{}, Mem{NoReg, NoReg, 1, Field{5, 4, 0x28}}, 0},
		{"movabs", "48 a1 08 07 06 05 04 03 02 01", Next, Field{}, Field{}, Mem{NoReg, NoReg, 1, Field{2, 8, 0x0102030405060708}}, 0},
		{"vaddps 1*64(%r8)", "62 d1 7c 48 58 40 01", Next, Field{}, Field{}, Mem{R8, NoReg, 1, Field{6, 1, 1}}, 0},
		{"vpshufd $2, rip", "c5 f9 70 05 10 00 00 00 02", Next, Field{}, Field{8, 1, 2}, Mem{RIP, NoReg, 1, Field{4, 4, 16}}, pc + 25},
		{"andn (%r9,%r10)", "c4 82 78 f2 04 11", Next, Field{}, Field{}, Mem{R9, R10, 1, Field{}}, 0},
		{"gather", "c4 e2 7d 90 44 88 01", Next, Field{}, Field{}, Mem{RAX, NoReg, 4, Field{6, 1, 1}}, 0},
		{"enter", "c8 10 00 01", Next, Field{}, Field{1, 3, 0x10010}, none, 0},
	} {
		i, err := Decode(unhex(t, test.code))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if i.Flow != test.flow || i.Rel != test.rel || i.Imm != test.imm || i.Mem != test.mem || i.HasMem != (test.mem != none) {
			t.Errorf("%s (%s): %+v", test.name, test.code, i)
		}
		if target, ok := i.Target(pc); target != test.target || ok != (test.target != 0) {
			t.Errorf("%s (%s): refers to %#x, %v; want %#x", test.name, test.code, target, ok, test.target)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, test := range []struct {
		name, code               string
		terminator, nop, onStack bool
	}{
		{"jmp", "eb 00", true, false, false},
		{"jmp *rax", "ff e0", true, false, false},
		{"ret", "f3 c3", true, false, false},
		{"ud2", "0f 0b", true, false, false},
		{"hlt", "f4", true, false, false},
		{"int3", "cc", false, false, false},
		{"jz", "74 00", false, false, false},
		{"call", "e8 00 00 00 00", false, false, false},
		{"nop", "90", false, true, false},
		{"xchg ax, ax", "66 90", false, true, false},
		{"pause", "f3 90", false, false, false},
		{"xchg r8, rax", "49 90", false, false, false},
		{"nopl", "0f 1f 44 00 00", false, true, false},
		{"endbr64", "f3 0f 1e fa", false, false, false},
		{"mov 8(%rsp)", "8b 44 24 08", false, false, true},
		{"mov -8(%rbp)", "8b 45 f8", false, false, true},
		{"mov 8(%r12)", "41 8b 44 24 08", false, false, false},
		{"mov 8(%r13)", "41 8b 45 08", false, false, false},
	} {
		i, err := Decode(unhex(t, test.code))
		if err != nil || i.IsTerminator() != test.terminator || i.IsNop() != test.nop || i.Mem.OnStack() != test.onStack {
			t.Errorf("%s (%s): terminator %v, nop %v, on stack %v, %v", test.name, test.code,
				i.IsTerminator(), i.IsNop(), i.Mem.OnStack(), err)
		}
	}
}

func TestPrefixes(t *testing.T) {
	i, err := Decode(unhex(t, "64 66 67 f0 f2 f3 41 0f 58 00"))
	want := PrefixFS | PrefixOpSize | PrefixAddrSize | PrefixLock | PrefixRepne | PrefixRep | PrefixREX
	if err != nil || i.Prefixes != want || i.Ext != extB || i.Map != Map0F || i.Opcode != 0x58 || i.Mem.Base != R8 {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	code := unhex(t, "62 f3 7d 48 25 84 c8 00 00 00 01 ff")
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Decode(code); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"90", "66 66 48 e8 00 00 00 00", "62 f1 7c 48 58 80 01 02 03 04", "8f ea 78 10 c1 01 02 03 04", "0f 0f c1 9e"} {
		f.Add(unhex(f, seed))
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		i, err := Decode(code)
		if err != nil {
			if i != (Inst{}) {
				t.Fatalf("% x: %v with an instruction", code, err)
			}
			return
		}
		if i.Len < 1 || i.Len > MaxLen || i.Len > len(code) {
			t.Fatalf("% x: %d bytes", code, i.Len)
		}
		for _, f := range []Field{i.Rel, i.Imm, i.Mem.Disp} {
			if int(f.Offset)+int(f.Size) > i.Len {
				t.Fatalf("% x: a field at %d of %d bytes, the instruction has %d", code, f.Offset, f.Size, i.Len)
			}
		}
		if again, err := Decode(code[:i.Len]); err != nil || again != i {
			t.Fatalf("% x: depends on what follows: %+v, %v", code, again, err)
		}
		if _, err := Decode(code[:i.Len-1]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("% x: one byte less: %v", code, err)
		}
	})
}

// BenchmarkDecode reads the text of libc from end to end.
func BenchmarkDecode(b *testing.B) {
	f, err := elf.Open("/usr/lib/x86_64-linux-gnu/libc.so.6")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	text, err := f.Section(".text").Data()
	if err != nil {
		b.Fatal(err)
	}
	instructions := 0
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; at < len(text); {
			i, err := Decode(text[at:])
			if err != nil {
				b.Fatalf("at %#x: %v", at, err)
			}
			at += i.Len
			instructions++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(instructions), "ns/instruction")
}
