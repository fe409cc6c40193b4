package module

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

func TestMain(m *testing.M) {
	if pid := os.Getenv(pinsEnv); pid != "" {
		fmt.Fprintln(os.Stderr, holdPins(pid))
		os.Exit(1)
	}
	os.Exit(testbed.RunTests(m))
}

// gcc builds testdata/source into a folder and returns the path. Tests spoil
// what is built here.
func gcc(t *testing.T, dir, out, source string, flags ...string) string {
	t.Helper()
	path := filepath.Join(dir, out)
	testbed.GCC(t, append([]string{"-O2", "-Wall", "-Werror", "-o", path, filepath.Join("testdata", source)}, flags...)...)
	return path
}

// buildHost builds the library and a host that is linked to it.
func buildHost(t *testing.T) (host, guest string) {
	t.Helper()
	dir := t.TempDir()
	guest = gcc(t, dir, "libguest.so", "guest.c", "-shared", "-fPIC", "-Wl,-soname,libguest.so", "-Wl,-z,now,-z,relro", "-Wl,--build-id")
	host = gcc(t, dir, "host", "host.c", "-DLINKED", "-L"+dir, "-lguest", "-Wl,-rpath,"+dir, "-ldl")
	return host, guest
}

// A program is a running host.
type program struct{ *testbed.Fixture }

func run(t *testing.T, path string, args ...string) *program {
	t.Helper()
	f := testbed.Run(t, testbed.FixtureOptions{Mute: true}, path, args...)
	time.Sleep(30 * time.Millisecond) // so that what changes next is not taken for what was loaded
	return &program{f}
}

// inspect returns the program's modules as of now.
func (r *program) inspect(t *testing.T) *Process {
	t.Helper()
	p, err := Open(r.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// write changes memory of the program.
func (r *program) write(t *testing.T, address uint64, data []byte) {
	t.Helper()
	if _, err := testbed.Corrupt(r.Pid(), address, data); err != nil {
		t.Fatal(err)
	}
}

func (r *program) checkAlive(t *testing.T) {
	t.Helper()
	time.Sleep(20 * time.Millisecond)
	testbed.AssertUndisturbed(t, r.Pid())
}

func module(t *testing.T, p *Process, name string) *Module {
	t.Helper()
	for _, m := range p.Modules {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("process %d has no module %s", p.PID(), name)
	return nil
}

func symbol(t *testing.T, m *Module, name string) uint64 {
	t.Helper()
	s, ok, err := m.Object.Lookup(name, "")
	if err != nil || !ok {
		t.Fatalf("%s has no %s: %v", m.Name, name, err)
	}
	return m.Bias + s.Value
}

// heal plans and commits one module and returns the plan.
func heal(t *testing.T, p *Process, m *Module) (*Plan, Refresh, error) {
	t.Helper()
	plan, err := p.Plan(t.Context(), m, false)
	if err != nil {
		t.Fatal(err)
	}
	done, err := p.Commit(t.Context(), []*Plan{plan})
	return plan, done, err
}

func compare(t *testing.T, p *Process, m *Module, full bool) *Comparison {
	t.Helper()
	c, err := p.Compare(context.Background(), m, full)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCleanProgram(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	p := r.inspect(t)
	kinds := make(map[Kind]int)
	for _, m := range p.Modules {
		kinds[m.Kind]++
		for _, full := range []bool{false, true} {
			if c := compare(t, p, m, full); c.Corrupt() || len(c.Runs) > 0 || full && m.Kind != VDSO && c.Pages == 0 {
				t.Errorf("%s, full %v: %+v", m.Name, full, c)
			}
		}
		if len(m.Obstacles) > 0 || m.Outdated() || m.Opened {
			t.Errorf("%s: obstacles %v, outdated %v, opened %v", m.Name, m.Obstacles, m.Outdated(), m.Opened)
		}
	}
	if kinds[Executable] != 1 || kinds[Loader] != 1 || kinds[VDSO] != 1 || kinds[Library] < 2 {
		t.Errorf("kinds: %v", kinds)
	}
}

func TestHealText(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	p := r.inspect(t)
	for _, name := range []string{"libguest.so", "libc.so.6", "ld-linux-x86-64.so.2", "host", "linux-vdso.so.1"} {
		t.Run(name, func(t *testing.T) {
			m := module(t, p, name)
			at := idleByte(t, m)
			r.write(t, at, []byte{0xde, 0xad})
			c := compare(t, p, m, false)
			d := c.Differences(p)
			if len(d) != 1 || d[0].Address != fmt.Sprintf("0x%x", at) || d[0].Found != "dead" || d[0].Kind != api.KindCorruption || d[0].Section == "" {
				t.Fatalf("found %+v", d)
			}
			if name == "libguest.so" && d[0].Function != "guest_idle+0x20" {
				t.Errorf("found in %s", d[0].Function)
			}
			plan, done, err := heal(t, p, m)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Drop) != 1 || plan.Drop[0].Pages() != 1 || len(plan.Writes) != 0 {
				t.Errorf("plan: %v", plan.Steps())
			}
			if private, err := p.PrivateText(m); err != nil || len(private) != 0 {
				t.Errorf("private pages afterwards: %v, %v", private, err)
			}
			if c := compare(t, p, m, true); c.Corrupt() {
				t.Errorf("still corrupt: %+v", c.Differences(p))
			}
			t.Logf("borrowed %v, stopped %v, in all %v", done.Times.Borrow, done.Times.Pause, done.Total)
			r.checkAlive(t)
		})
	}
}

// idleByte returns an address in code that the program does not run.
func idleByte(t *testing.T, m *Module) uint64 {
	t.Helper()
	if m.Name == "libguest.so" {
		return symbol(t, m, "guest_idle") + 0x20
	}
	if m.Kind == VDSO {
		return m.start + 0x600
	}
	fdes, err := m.Object.FDEs()
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(fdes); i++ { // padding between functions
		end := fdes[i-1].Start + fdes[i-1].Size
		if segment, ok := m.Object.SegmentAt(end); ok && segment.Flags&elf.PF_X != 0 && fdes[i].Start >= end+2 {
			return end + m.Bias
		}
	}
	t.Fatalf("%s has no padding", m.Name)
	return 0
}

func TestHealConstants(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	p := r.inspect(t)
	m := module(t, p, "libguest.so")
	at := symbol(t, m, "primes") + 4*700
	r.write(t, at, []byte{1})
	if c := compare(t, p, m, false); !c.Corrupt() || c.Differences(p)[0].Section != ".rodata" {
		t.Fatalf("found %+v", c.Differences(p))
	}
	if _, _, err := heal(t, p, m); err != nil {
		t.Fatal(err)
	}
	if c := compare(t, p, m, true); c.Corrupt() {
		t.Error("still corrupt")
	}
	r.checkAlive(t)
}

func TestHealWords(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	p := r.inspect(t)
	m := module(t, p, "libguest.so")
	var words []uint64
	relative, imports := 0, 0
	for rel, err := range m.Object.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case rel.Type == elf.R_X86_64_RELATIVE && m.Object.RELRO.Contains(rel.Offset) && relative == 0:
			relative++
		case (rel.Type == elf.R_X86_64_JMP_SLOT || rel.Type == elf.R_X86_64_GLOB_DAT) && strings.HasPrefix(rel.Name, "snprintf"):
			imports++
		default:
			continue
		}
		words = append(words, rel.Offset+m.Bias)
	}
	if relative != 1 || imports != 1 {
		t.Fatalf("the library has %d and %d words to corrupt", relative, imports)
	}
	memory, err := p.openMemory()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range words {
		var before, after [8]byte
		if _, err := memory.ReadAt(before[:], int64(at)); err != nil {
			t.Fatal(err)
		}
		// The first RELATIVE word may be one that is in use: its low byte stays
		// as it is only in the other.
		r.write(t, at, bytes.Repeat([]byte{0x11}, 8))
		c := compare(t, p, m, false)
		if len(c.Bad) != 1 || c.Bad[0].Address != at || !c.Bad[0].Known {
			t.Fatalf("found %+v", c.Bad)
		}
		plan, _, err := heal(t, p, m)
		if err != nil || plan.Words() != 1 {
			t.Fatalf("plan %v, %v", plan.Steps(), err)
		}
		if _, err := memory.ReadAt(after[:], int64(at)); err != nil || after != before {
			t.Errorf("word at %#x was % x and is % x, %v", at, before, after, err)
		}
	}
	r.checkAlive(t)
}

// TestUnsealedConstants has a program that has made RELRO of a library writable:
// what is there may be meant, and is told as unchecked, not as right.
func TestUnsealedConstants(t *testing.T) {
	host, _ := buildHost(t)
	for _, test := range []struct {
		args []string
		want []api.Code
	}{{nil, nil}, {[]string{"unseal"}, []api.Code{codeRELROWritable}}} {
		p := run(t, host, test.args...).inspect(t)
		for _, m := range p.Modules {
			c := compare(t, p, m, true)
			var got []api.Code
			for _, left := range c.Unchecked {
				got = append(got, left.Code)
				if left.Subject != m.Name || left.Detail == "" || left.Remedy == "" {
					t.Errorf("%+v is not complete", left)
				}
			}
			want := test.want
			if m.Name != "libguest.so" {
				want = nil
			}
			if !slices.Equal(got, want) || (c.Words == 0) != (len(want) > 0 || m.Kind == VDSO) || c.Corrupt() {
				t.Errorf("host %v, %s: unchecked %v of %d words, want %v", test.args, m.Name, got, c.Words, want)
			}
		}
	}
}

func TestBreakpointsStay(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	p := r.inspect(t)
	m := module(t, p, "libguest.so")
	at := symbol(t, m, "guest_idle")
	r.write(t, at, []byte{0xcc})
	c := compare(t, p, m, false)
	if c.Corrupt() || len(c.Runs) != 1 || c.Runs[0].Kind != api.KindBreakpoint {
		t.Fatalf("found %+v", c.Runs)
	}
	r.write(t, at+0x20, []byte{0xde, 0xad, 0xbe, 0xef})
	plan, _, err := heal(t, p, m)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Drop) != 0 || len(plan.Writes) != 1 || len(plan.Residual) != 1 {
		t.Errorf("plan %v, residual %v", plan.Steps(), plan.Residual)
	}
	if c := compare(t, p, m, false); c.Corrupt() || len(c.Runs) != 1 {
		t.Errorf("afterwards: %+v", c.Runs)
	}
	// Two of them, or one within an instruction, are no breakpoint.
	r.write(t, at, []byte{0xcc, 0xcc})
	if c := compare(t, p, m, false); !c.Corrupt() {
		t.Errorf("two int3: %+v", c.Runs)
	}
}

func TestLockedMemory(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host, "lock")
	p := r.inspect(t)
	m := module(t, p, "libguest.so")
	r.write(t, symbol(t, m, "guest_idle")+9, []byte{1, 2, 3})
	if _, _, err := heal(t, p, m); err != nil {
		t.Fatal(err)
	}
	if c := compare(t, p, m, false); c.Corrupt() {
		t.Error("still corrupt")
	}
	r.checkAlive(t)
}

func TestOpenedModule(t *testing.T) {
	_, guest := buildHost(t)
	host := gcc(t, t.TempDir(), "host", "host.c", "-ldl")
	r := run(t, host, "open", guest)
	p := r.inspect(t)
	m := module(t, p, "libguest.so")
	if !m.Opened {
		t.Error("a module that was opened by dlopen is not known as such")
	}
	r.write(t, symbol(t, m, "guest_idle")+9, []byte{1, 2, 3})
	plan, err := p.Plan(t.Context(), m, false)
	if err != nil {
		t.Fatal(err)
	}
	done, err := p.Commit(t.Context(), []*Plan{plan})
	if err != nil || done.Times.Pause == 0 {
		t.Fatalf("stopped %v, %v", done.Times.Pause, err)
	}
	if c := compare(t, p, m, false); c.Corrupt() {
		t.Error("still corrupt")
	}
	r.checkAlive(t)

	// The same plan, after the program has closed the module.
	r.write(t, symbol(t, m, "guest_idle")+9, []byte{1, 2, 3})
	if err := syscall.Kill(r.Pid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	_, err = p.Commit(t.Context(), []*Plan{plan})
	if refusals := api.Refusals(err); len(refusals) != 1 || refusals[0].Code != codeUnmapped {
		t.Errorf("a plan for a closed module: %v", err)
	}
	r.checkAlive(t)
}

func TestRefusals(t *testing.T) {
	page := make([]byte, 4096)
	tests := []struct {
		name   string
		flags  []string
		spoil  func(t *testing.T, r *program, p *Process, guest string)
		module string // where its soname can't be read
		want   api.Code
	}{
		{"truncated", nil, func(t *testing.T, _ *program, _ *Process, guest string) {
			if err := os.Truncate(guest, 8192); err != nil {
				t.Fatal(err)
			}
		}, "", codeTruncated},
		{"written in place", nil, func(t *testing.T, _ *program, _ *Process, guest string) {
			f, err := os.OpenFile(guest, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{0}, 0x30); err != nil {
				t.Fatal(err)
			}
		}, "", codeModified},
		{"no longer ELF", nil, func(t *testing.T, _ *program, _ *Process, guest string) {
			f, err := os.OpenFile(guest, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(page, 0); err != nil {
				t.Fatal(err)
			}
		}, "", codeNotELF},
		{"empty", nil, func(t *testing.T, _ *program, _ *Process, guest string) {
			if err := os.Truncate(guest, 0); err != nil {
				t.Fatal(err)
			}
		}, "", codeNotELF},
		{"another build-id in memory", nil, func(t *testing.T, r *program, p *Process, _ string) {
			m := module(t, p, "libguest.so")
			for _, s := range m.Object.Segments {
				if s.Type == elf.PT_NOTE && s.Filesz >= 24 {
					raw, err := m.Object.Bytes(s.Vaddr, s.Filesz)
					if err != nil {
						t.Fatal(err)
					}
					if i := bytes.Index(raw, []byte("GNU\x00")); i >= 0 && bytes.Contains(raw[:i], []byte{dso.NoteBuildID, 0, 0, 0}) {
						r.write(t, m.Bias+s.Vaddr+uint64(i)+4, []byte{1, 2, 3, 4})
						return
					}
				}
			}
			t.Fatal("no build-id note")
		}, "", codeBuildID},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			// The host does not call the library, as its pages may be gone.
			_, guest := buildHost(t)
			host := gcc(t, t.TempDir(), "host", "host.c", "-ldl")
			r := run(t, host, "open", guest)
			if err := syscall.Kill(r.Pid(), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			test.spoil(t, r, r.inspect(t), guest)
			p := r.inspect(t)
			var m *Module
			for _, candidate := range p.Modules {
				if candidate.Path == guest {
					m = candidate
				}
			}
			if m == nil {
				t.Fatal("the module is not listed any more")
			}
			plan, err := p.Plan(t.Context(), m, false)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Refusals) == 0 || plan.Refusals[0].Code != test.want || !plan.Empty() {
				t.Fatalf("plan %v, refusals %v; want %s", plan.Steps(), plan.Refusals, test.want)
			}
			if f := plan.Refusals[0]; f.Subject == "" || f.Detail == "" || f.Remedy == "" {
				t.Errorf("refusal %+v is not complete", f)
			}
		})
	}
}

func TestOutdated(t *testing.T) {
	host, guest := buildHost(t)
	r := run(t, host)
	content, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	state := func() *Module { return module(t, r.inspect(t), "libguest.so") }
	if state().Outdated() {
		t.Error("outdated at once")
	}
	if err := os.WriteFile(guest+".new", content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(guest+".new", guest); err != nil {
		t.Fatal(err)
	}
	m := state()
	if !m.Outdated() || m.File.Change != procfs.FileReplaced || len(m.Obstacles) > 0 {
		t.Errorf("replaced: %v, %v", m.File, m.Obstacles)
	}
	// The mapped file is still there to compare with.
	p := r.inspect(t)
	m = module(t, p, "libguest.so")
	r.write(t, symbol(t, m, "guest_idle")+9, []byte{1, 2, 3})
	if _, _, err := heal(t, p, m); err != nil {
		t.Fatal(err)
	}
	if c := compare(t, p, m, true); c.Corrupt() {
		t.Error("a replaced module was not healed")
	}
	if err := os.Remove(guest); err != nil {
		t.Fatal(err)
	}
	if m := state(); !m.Outdated() || m.File.Change != procfs.FileDeleted || len(m.Obstacles) > 0 {
		t.Errorf("deleted: %v, %v", m.File, m.Obstacles)
	}
	r.checkAlive(t)
}
