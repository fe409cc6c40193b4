package x86

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// line is what objdump prints for one instruction. Its text is valid until the
// next line is read.
type line struct {
	address uint64
	bytes   []byte
	text    []byte
}

// disassemble runs objdump and calls visit with each instruction, until it
// returns false.
func disassemble(ctx context.Context, visit func(line) bool, args ...string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, "objdump", append([]string{"-w"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	stopped := false
	for !stopped && in.Scan() {
		if l, ok := parseLine(in.Bytes()); ok {
			stopped = !visit(l)
		}
	}
	if stopped {
		stop()
		_ = cmd.Wait() // killed, as was meant
		return nil
	}
	if err := errors.Join(in.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("run objdump %v: %w", args, err)
	}
	return nil
}

// parseLine reads "  401000:\tf3 0f 1e fa \tendbr64".
func parseLine(s []byte) (line, bool) {
	address, rest, ok := bytes.Cut(s, []byte(":\t"))
	if !ok || len(address) == 0 || address[0] != ' ' {
		return line{}, false
	}
	code, text, _ := bytes.Cut(rest, []byte("\t"))
	l := line{text: bytes.TrimSpace(text)}
	for _, c := range bytes.TrimLeft(address, " ") {
		l.address = l.address<<4 | uint64(hexDigit(c))
	}
	var buf [16]byte
	l.bytes = buf[:0]
	for code = bytes.TrimSpace(code); len(code) >= 2; code = code[min(3, len(code)):] {
		l.bytes = append(l.bytes, hexDigit(code[0])<<4|hexDigit(code[1]))
	}
	return l, len(l.bytes) > 0
}

func hexDigit(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// setAside names the classes of lines that are no instruction to compare with:
//
//   - "(bad)", with whatever prefixes objdump could make sense of. It goes on
//     with the next byte, in the middle of what a processor would read.
//   - prefixes alone. objdump gives up the prefixes that the following opcode
//     cannot have (a REX before another prefix, a second segment) as a line of
//     their own; a processor reads on.
//   - FWAIT with the x87 instruction behind it, which are two (see check).
//
// All of them are data among code: no compiler emits them.
func setAside(l line) string {
	if bytes.Contains(l.text, []byte("(bad)")) || len(l.text) == 0 || l.text[0] == '.' {
		return "(bad)"
	}
	onlyPrefixes := true
	for word := range bytes.FieldsSeq(l.text) {
		switch string(word) {
		case "data16", "addr32", "lock", "rep", "repz", "repnz", "bnd", "notrack", "xacquire", "xrelease",
			"es", "cs", "ss", "ds", "fs", "gs":
		default:
			onlyPrefixes = onlyPrefixes && (string(word) == "rex" || bytes.HasPrefix(word, []byte("rex.")))
		}
	}
	if onlyPrefixes {
		return "prefixes alone"
	}
	return ""
}

// compare returns how an instruction that decoded differs from its line.
func compare(i *Inst, l line) string {
	if i.Len != len(l.bytes) {
		return fmt.Sprintf("length %d", i.Len)
	}
	target, refers := i.Target(l.address)
	rip := bytes.Contains(l.text, []byte("(%rip)")) || bytes.Contains(l.text, []byte("(%eip)"))
	if rip != i.IsRIPRelative() {
		return fmt.Sprintf("RIP-relative %v", i.IsRIPRelative())
	}
	if rip {
		_, comment, _ := bytes.Cut(l.text, []byte("# "))
		printed := hexNumber(comment)
		if i.Prefixes&PrefixAddrSize != 0 {
			printed = uint64(uint32(printed)) // objdump doesn't wrap %eip
		}
		if printed != target {
			return fmt.Sprintf("RIP-relative to %#x", target)
		}
	}
	operands, indirect := branch(l.text)
	if (operands != nil && !indirect) != i.IsBranch() {
		return fmt.Sprintf("branch %v", i.IsBranch())
	}
	if i.IsBranch() && (!refers || hexNumber(operands) != target) {
		return fmt.Sprintf("branch to %#x", target)
	}
	if indirect != (i.Flow == CallIndirect || i.Flow == JumpIndirect) {
		return fmt.Sprintf("indirect branch %v", !indirect)
	}
	if operand := memoryOperand(i); operand != "" && !bytes.Contains(l.text, []byte(operand)) {
		return "operand " + operand
	}
	return ""
}

func hexNumber(s []byte) (n uint64) {
	s = bytes.TrimPrefix(s, []byte("0x"))
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			break
		}
		n = n<<4 | uint64(hexDigit(c))
	}
	return n
}

// branch returns the operand of a branch, nil for any other instruction.
func branch(text []byte) (operand []byte, indirect bool) {
	for rest := text; len(rest) > 0; {
		word, after, _ := bytes.Cut(rest, []byte(" "))
		after = bytes.TrimLeft(after, " ")
		mnemonic, _, _ := bytes.Cut(word, []byte(","))
		switch m := string(mnemonic); {
		case strings.HasPrefix(m, "j"), strings.HasPrefix(m, "call"), strings.HasPrefix(m, "loop"),
			strings.HasPrefix(m, "xbegin"), strings.HasPrefix(m, "ljmp"), strings.HasPrefix(m, "lcall"):
			return after, len(after) > 0 && after[0] == '*'
		case strings.HasPrefix(m, "rex"), len(m) == 2, m == "data16", m == "addr32", m == "bnd", m == "notrack",
			m == "lock", m == "repz", m == "repnz", m == "rep":
			rest = after
		default:
			return nil, false
		}
	}
	return nil, false
}

var registers = [...]string{"", "%rax", "%rcx", "%rdx", "%rbx", "%rsp", "%rbp", "%rsi", "%rdi",
	"%r8", "%r9", "%r10", "%r11", "%r12", "%r13", "%r14", "%r15", "%rip"}

// memoryOperand returns how objdump prints displacement and base, or "" where
// it prints another form: 32-bit registers, absolute addresses, and scaled
// displacements of EVEX.
func memoryOperand(i *Inst) string {
	m := &i.Mem
	if !i.HasMem || m.Base == NoReg && m.Index == NoReg || i.Prefixes&PrefixAddrSize != 0 || i.Encoding == EVEX && m.Disp.Size == 1 {
		return ""
	}
	var b [48]byte
	s := b[:0]
	if m.Disp.Size > 0 {
		d := m.Disp.Value
		if d < 0 {
			s, d = append(s, '-'), -d
		}
		s = strconv.AppendInt(append(s, "0x"...), d, 16)
	}
	s = append(append(s, '('), registers[m.Base]...)
	if m.Index != NoReg {
		s = append(append(append(s, ','), registers[m.Index]...), ',')
		s = strconv.AppendInt(s, int64(m.Scale), 10)
	}
	return string(s)
}

// agreement counts what a comparison saw. Several goroutines add to it.
type agreement struct {
	mu                             sync.Mutex
	files, compared, rip, branches int
	refused, aside                 map[string]int
	mismatches                     []string
}

func (a *agreement) add(b *agreement) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files += b.files
	a.compared += b.compared
	a.rip += b.rip
	a.branches += b.branches
	a.mismatches = append(a.mismatches, b.mismatches...)
	for k, n := range b.refused {
		a.refused[k] += n
	}
	for k, n := range b.aside {
		a.aside[k] += n
	}
}

func newAgreement() *agreement {
	return &agreement{refused: map[string]int{}, aside: map[string]int{}}
}

// check decodes code, which begins with the instruction of l and goes on behind
// it, and adds the result.
func (a *agreement) check(name string, code []byte, l line) {
	if class := setAside(l); class != "" {
		a.aside[class]++
		return
	}
	i, err := Decode(code)
	if err != nil {
		_, reason, _ := strings.Cut(err.Error(), ": ")
		a.refused[reason]++
		return
	}
	if i.Map == MapOneByte && i.Opcode == 0x9b && len(l.bytes) > i.Len {
		a.aside["fwait"]++
		return
	}
	a.compared++
	if i.IsRIPRelative() {
		a.rip++
	}
	if i.IsBranch() {
		a.branches++
	}
	if differs := compare(&i, l); differs != "" {
		a.mismatches = append(a.mismatches, fmt.Sprintf("%s %x: % x\t%s: decoded %s", name, l.address, l.bytes, l.text, differs))
	}
}

func (a *agreement) report(t *testing.T) {
	t.Helper()
	t.Logf("%d files, %d instructions compared: %d RIP-relative operands, %d branch targets", a.files, a.compared, a.rip, a.branches)
	t.Logf("set aside: %v", a.aside)
	for _, reason := range slices.Sorted(maps.Keys(a.refused)) {
		t.Logf("refused: %d, %s", a.refused[reason], reason)
	}
	t.Logf("%d mismatches", len(a.mismatches))
	for _, m := range a.mismatches[:min(20, len(a.mismatches))] {
		t.Error(m)
	}
}

// TestAgainstObjdump compares with objdump over the system's own programs and
// libraries: a sample of each of many files, or with VOS_SOAK=1 all of all.
func TestAgainstObjdump(t *testing.T) {
	testbed.NeedTool(t, "objdump")
	total := newAgreement()
	enough, perFile := 3_000_000, 100_000
	if os.Getenv("VOS_SOAK") != "" {
		enough, perFile = 1<<62, 1<<62
	}
	files := make(chan string)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for name := range files {
				total.add(compareFile(t, name, perFile))
			}
		})
	}
	for _, name := range programs(t) {
		total.mu.Lock()
		done := total.compared >= enough
		total.mu.Unlock()
		if done || t.Failed() {
			break
		}
		files <- name
	}
	close(files)
	workers.Wait()
	total.report(t)
	if total.compared < 1_500_000 {
		t.Errorf("only %d instructions compared", total.compared)
	}
	refused := 0
	for _, n := range total.refused {
		refused += n
	}
	if refused > total.compared/100_000 { // tables of constants among code
		t.Errorf("%d instructions refused", refused)
	}
}

// programs returns what there is on this machine, in an order that mixes
// languages and compilers but is the same in every run.
func programs(t *testing.T) []string {
	var names []string
	seen := map[string]bool{}
	for _, pattern := range []string{"/usr/lib/x86_64-linux-gnu/*.so*", "/usr/bin/*", "/usr/local/go/bin/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if name, err = filepath.EvalSymlinks(name); err == nil && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	order := func(name string) uint32 {
		h := fnv.New32a()
		h.Write([]byte(filepath.Base(name)))
		return h.Sum32()
	}
	slices.SortFunc(names, func(a, b string) int { return int(int64(order(a)) - int64(order(b))) })
	return names
}

func compareFile(t *testing.T, name string, limit int) *agreement {
	result := newAgreement()
	f, err := elf.Open(name)
	if err != nil {
		return result // a script
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return result
	}
	type section struct {
		start uint64
		data  []byte
	}
	var text []section
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 || s.Type != elf.SHT_PROGBITS {
			continue
		}
		data, err := s.Data()
		if err != nil {
			t.Errorf("read %s of %s: %v", s.Name, name, err)
			return result
		}
		text = append(text, section{s.Addr, data})
	}
	result.files = 1
	err = disassemble(t.Context(), func(l line) bool {
		for _, s := range text {
			if l.address >= s.start && l.address-s.start < uint64(len(s.data)) {
				result.check(name, s.data[l.address-s.start:], l)
			}
		}
		return result.compared < limit
	}, "-d", name)
	if err != nil {
		t.Error(err)
	}
	return result
}
