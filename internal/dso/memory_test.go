package dso

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A mappedObject is an object of a process, by /proc/PID/maps.
type mappedObject struct {
	path string
	base uint64
}

func mappedObjects(t *testing.T, pid int) []mappedObject {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []mappedObject
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[2] != "00000000" || f[5] == "[vvar]" || f[5][0] != '/' && f[5] != "[vdso]" {
			continue
		}
		start, _, _ := strings.Cut(f[0], "-")
		base, err := strconv.ParseUint(start, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(o mappedObject) bool { return o.path == f[5] }) {
			all = append(all, mappedObject{f[5], base})
		}
	}
	return all
}

// startPrograms starts programs that wait: one of the system, the fixtures in
// several forms, and an interpreter with many libraries.
func startPrograms(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	// Each says a line when the loader is done: what it prints, or the echo.
	start := func(name string, cmd *exec.Cmd, echo string) {
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() {
			stdin.Close()
			cmd.Process.Kill()
			cmd.Wait()
		})
		io.WriteString(stdin, echo)
		if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatalf("%s did not start: %v", name, err)
		}
		pids[name] = cmd.Process.Pid
	}
	start("cat", exec.Command("cat"), "ready\n")
	for _, name := range []string{"pie", "no-pie", "static", "static-pie"} {
		start(name, exec.Command(fixturePath(t, name)), "")
	}
	python := testbed.NeedTool(t, "python3")
	start("python3", exec.Command(python, "-c", "import ssl, zlib, ctypes, sys; print('ready', flush=True); sys.stdin.read()"), "")
	return pids
}

// TestLiveProcesses opens every object of real programs from their memory, and
// compares with their files.
func TestLiveProcesses(t *testing.T) {
	objects, vdso := 0, 0
	programs := startPrograms(t)
	for name, pid := range programs {
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mem.Close() })
		for _, m := range mappedObjects(t, pid) {
			if !strings.Contains(m.path, ".so") && m.path[0] == '/' && !isELF(m.path) {
				continue // a locale archive, a cache
			}
			t.Run(name+"/"+filepath.Base(m.path), func(t *testing.T) {
				o, err := ReadMemory(mem, m.base)
				if err != nil {
					t.Fatal(err)
				}
				objects++
				if m.path == "[vdso]" {
					vdso++
					checkVDSO(t, o, m.base)
					return
				}
				compareForms(t, o, openFile(t, m.path))
				if start, _ := o.Span(); o.Bias()+start != m.base {
					t.Errorf("bias %#x, mapped at %#x", o.Bias(), m.base)
				}
			})
		}
	}
	if vdso != len(programs) {
		t.Errorf("%d objects, %d of them the vDSO, in %d programs", objects, vdso, len(programs))
	}
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 4)
	_, err = f.ReadAt(magic, 0)
	return err == nil && string(magic) == elf.ELFMAG
}

func checkVDSO(t *testing.T, o *Object, base uint64) {
	t.Helper()
	if o.Bias() != base || o.Soname != "linux-vdso.so.1" || o.BuildID == "" {
		t.Errorf("bias %#x, soname %q, build-id %q", o.Bias(), o.Soname, o.BuildID)
	}
	s, ok, err := o.Lookup("__vdso_clock_gettime", "LINUX_2.6")
	if err != nil || !ok || !s.IsFunction() {
		t.Errorf("__vdso_clock_gettime: %v %v %v", s, ok, err)
	}
	all, err := o.FDEs()
	if err != nil || len(all) == 0 {
		t.Errorf("%d FDEs: %v", len(all), err)
	}
	if name, _, ok := o.FunctionAt(s.Value); !ok || !strings.HasSuffix(name, "clock_gettime") {
		t.Errorf("function %q %v", name, ok)
	}
}

// compareForms checks that an object in memory is what its file says.
func compareForms(t *testing.T, live, file *Object) {
	t.Helper()
	if live.BuildID != file.BuildID || live.Soname != file.Soname || !slices.Equal(live.Needed, file.Needed) || live.Interp != file.Interp ||
		live.Entry != file.Entry || live.Type != file.Type || live.RELRO != file.RELRO || live.Properties != file.Properties ||
		!slices.Equal(live.Segments, file.Segments) || live.PIE() != file.PIE() || live.Static() != file.Static() {
		t.Errorf("the objects differ")
	}
	if !slices.EqualFunc(live.Dynamic, file.Dynamic, func(a, b Dyn) bool { return a == b || a.Tag == b.Tag && a.Tag == elf.DT_DEBUG }) {
		t.Errorf("dynamic section\n%#x\nwant\n%#x", live.Dynamic, file.Dynamic)
	}
	a, err := live.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	b, err := file.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	if a.Len() != b.Len() {
		t.Fatalf("%d symbols, want %d", a.Len(), b.Len())
	}
	for s := range a.All() {
		if w, _ := b.At(s.Index); s != w {
			t.Fatalf("symbol %+v, want %+v", s, w)
		}
	}
	f, err := live.FDEs()
	if err != nil {
		t.Fatal(err)
	}
	g, err := file.FDEs()
	if err != nil {
		t.Fatal(err)
	}
	hasHeader := slices.ContainsFunc(file.Segments, func(s Segment) bool { return s.Type == elf.PT_GNU_EH_FRAME })
	if !slices.Equal(f, g) && hasHeader {
		t.Errorf("%d FDEs, want %d", len(f), len(g))
	}
	var want []Relocation
	for r, err := range file.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, r)
	}
	i := 0
	for r, err := range live.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		w := want[min(i, len(want)-1)]
		if r.Table == FromRELR && !file.RELRO.Contains(r.Offset) {
			r.Addend = w.Addend // the program may have changed it
		}
		if i >= len(want) || r != w {
			t.Fatalf("relocation %d: %+v, want %+v", i, r, w)
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d relocations, want %d", i, len(want))
	}
	for _, m := range file.Mappings() {
		if m.Segment.Flags&elf.PF_W != 0 || file.TextRel() {
			continue
		}
		mapped := make([]byte, m.Exact)
		if err := file.ReadMapped(mapped, m.Addr); err != nil {
			t.Fatal(err)
		}
		inProcess := make([]byte, m.Exact)
		if _, err := live.image.source.ReadAt(inProcess, int64(m.Addr+live.Bias())); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mapped, inProcess) {
			t.Errorf("%s segment at %#x differs from its mapping", m.Segment.Permissions(), m.Addr)
		}
	}
}

// A memory is a process's address space with one object in it.
type memory struct {
	base  uint64
	bytes []byte
}

func (m memory) ReadAt(p []byte, at int64) (int, error) {
	if uint64(at) < m.base || uint64(at)-m.base >= uint64(len(m.bytes)) {
		return 0, errors.New("input/output error")
	}
	n := copy(p, m.bytes[uint64(at)-m.base:])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// load maps an object as a loader does, at bias; relocated says whether that
// loader adds the bias to the pointers of .dynamic, as glibc does and musl not.
func load(t testing.TB, raw []byte, bias uint64, relocated bool) memory {
	t.Helper()
	o := openBytes(t, raw)
	start, end := o.Span()
	m := memory{base: bias + start, bytes: make([]byte, end-start)}
	for _, s := range o.Mappings() {
		if err := o.ReadMapped(m.bytes[s.Addr-start:][:s.Size], s.Addr); err != nil {
			t.Fatal(err)
		}
	}
	word := func(vaddr uint64) []byte { return m.bytes[vaddr-start:][:8] }
	for r, err := range o.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Type == elf.R_X86_64_RELATIVE {
			le.PutUint64(word(r.Offset), bias+uint64(r.Addend))
		}
	}
	if d := o.dynamicSegment(); relocated && d != nil {
		for at := d.Vaddr; at < d.Vaddr+d.Filesz; at += dynSize {
			if isPointer(elf.DynTag(le.Uint64(word(at)))) {
				le.PutUint64(word(at+8), bias+le.Uint64(word(at+8)))
			}
		}
	}
	return m
}

// TestLoaders reads the same objects as different loaders leave them.
func TestLoaders(t *testing.T) {
	for _, name := range []string{"gnu", "sysv", "relr", "now", "lazy", "pie", "no-exports", "static-pie"} {
		for _, relocated := range []bool{true, false} {
			const bias = 0x7f1234560000
			live, err := ReadMemory(load(t, fixture(t, name), bias, relocated), bias)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			file := openBytes(t, fixture(t, name))
			t.Run(fmt.Sprintf("%s/%v", name, relocated), func(t *testing.T) { compareForms(t, live, file) })
		}
	}
}

// TestLargeTables reads tables that memory makes one read in steps.
func TestLargeTables(t *testing.T) {
	const base = 0x7f0000000000
	m := memory{base, make([]byte, 5<<20+123)}
	for i := range m.bytes {
		m.bytes[i] = byte(i >> 8)
	}
	im := image{source: m, memory: true}
	size := uint64(len(m.bytes))
	p, err := im.readTable(base, size, "table")
	if err != nil || !bytes.Equal(p, m.bytes) {
		t.Errorf("%d bytes: %v", len(p), err)
	}
	text, err := im.readString(base, size, "text")
	if err != nil || text != string(m.bytes) {
		t.Errorf("%d bytes of text: %v", len(text), err)
	}
	if _, err := im.readTable(base, size+1, "table"); err == nil {
		t.Error("read what is not mapped")
	}
	if _, err := im.readTable(base, maxLoaded+1, "table"); !errors.Is(err, ErrLimit) {
		t.Errorf("beyond the limit: %v", err)
	}
}

func TestNotMapped(t *testing.T) {
	m := load(t, fixture(t, "gnu"), 0x7f0000000000, true)
	for _, c := range []struct {
		name string
		at   uint64
		want error
	}{
		{"not the header", m.base + PageSize, ErrNotELF},
		{"beyond user space", 1 << 63, ErrMalformed},
	} {
		if _, err := ReadMemory(m, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := ReadMemory(m, 0x1000); err == nil {
		t.Error("opened what is not mapped")
	}
	o, err := ReadMemory(m, m.base)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.ReadMapped(make([]byte, 8), 0); !errors.Is(err, ErrNoFile) {
		t.Errorf("ReadMapped: %v", err)
	}
	if _, err := o.Bytes(0, 64); err != nil {
		t.Error(err)
	}
}
