package intercept

import (
	"debug/elf"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A caller is testdata/calls.c, built.
type caller struct {
	path    string
	address map[string]uint64
	rseq    *Rseq
}

func newCaller(t testing.TB) *caller {
	t.Helper()
	c := &caller{path: filepath.Join(t.TempDir(), "calls"), address: map[string]uint64{}}
	testbed.GCC(t, "-O2", "-Wall", "-Werror", "-static", "-no-pie", "-fcf-protection=none", "-mavx2", "-mno-vzeroupper",
		"-z", "noexecstack", "-o", c.path, "testdata/calls.c", "-lpthread")
	f, err := elf.Open(c.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		c.address[s.Name] = s.Value
	}
	out, err := exec.CommandContext(t.Context(), c.path, "rseq").Output()
	if err != nil {
		t.Fatal(err)
	}
	var offset int32
	var size int
	if _, err := fmt.Sscan(string(out), &offset, &size); err != nil {
		t.Fatal(err)
	}
	if size > 0 {
		c.rseq = &Rseq{Offset: offset, Signature: 0x53053053}
	}
	return c
}

// ways are how a stub can count.
func (c *caller) ways(t *testing.T, f func(t *testing.T, rseq *Rseq)) {
	t.Run("atomic", func(t *testing.T) { f(t, nil) })
	if c.rseq == nil {
		t.Log("this C library does not register restartable sequences: they are not run")
		return
	}
	t.Run("rseq", func(t *testing.T) { f(t, c.rseq) })
	t.Run("rseq, many processors", func(t *testing.T) { wide := *c.rseq; f(t, &wide) })
}

const testBase = 0x1_0000_0000

var glibc = Allocator{Header: true}

func (c *caller) config(rseq *Rseq) Config {
	config := Config{Base: testBase, Processors: runtime.NumCPU(), Rseq: rseq, Allocator: glibc, Interval: 16 << 10}
	if rseq != c.rseq && rseq != nil {
		config.Processors = narrow + 1
	}
	return config
}

// run runs the caller with an interceptor, and returns what it printed and counted.
func (c *caller) run(t testing.TB, mode string, i *Interceptor) (out string, counts Counts) {
	t.Helper()
	file := filepath.Join(t.TempDir(), Name)
	image := make([]byte, 0, i.Size())
	for _, p := range i.Parts() {
		part := make([]byte, p.Size)
		copy(part, p.Bytes)
		image = append(image, part...)
	}
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	parts := i.Parts()
	args := []string{mode, file}
	for _, n := range []uint64{i.Config().Base, i.Size(), parts[1].Start, parts[2].Start} {
		args = append(args, fmt.Sprintf("%x", n))
	}
	for n := range i.Functions() {
		args = append(args, fmt.Sprintf("%x", i.Stub(n)))
	}
	b, err := exec.CommandContext(t.Context(), c.path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", mode, err, b)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := Read(moved{f}, i.Config().Base)
	if err != nil {
		t.Fatal(err)
	}
	if counts, err = again.Counts(moved{f}); err != nil {
		t.Fatal(err)
	}
	return string(b), counts
}

// moved reads a file at the addresses at which it was mapped.
type moved struct{ *os.File }

func (m moved) ReadAt(b []byte, at int64) (int, error) { return m.File.ReadAt(b, at-testBase) }

func (c *caller) interceptor(t testing.TB, config Config, functions ...Function) *Interceptor {
	t.Helper()
	i, err := New(config, []Module{{Name: "calls", Start: 0x40_0000, End: 0x80_0000}}, functions, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestRegisters: a stub changes r11 alone.
func TestRegisters(t *testing.T) {
	c := newCaller(t)
	c.ways(t, func(t *testing.T, rseq *Rseq) {
		i := c.interceptor(t, c.config(rseq), Function{Name: "target", Target: c.address["target_registers"]})
		_, counts := c.run(t, "registers", i)
		if got := counts.Functions[0].Calls; got != 5000 {
			t.Errorf("%d calls counted of 5000", got)
		}
	})
}

// TestThreads: 64 threads and a signal handler lose no count.
func TestThreads(t *testing.T) {
	c := newCaller(t)
	c.ways(t, func(t *testing.T, rseq *Rseq) {
		target := Function{Name: "target", Target: c.address["target_nothing"]}
		i := c.interceptor(t, c.config(rseq), target, target, Function{Name: "handler", Target: c.address["target_signal"]})
		out, counts := c.run(t, "threads", i)
		var calls, signals uint64
		if _, err := fmt.Sscan(out, &calls, &signals); err != nil {
			t.Fatal(err)
		}
		if counts.Functions[1].Calls != calls || counts.Functions[2].Calls != signals || signals == 0 {
			t.Errorf("counted %d of %d calls, and %d of %d signals", counts.Functions[1].Calls, calls, counts.Functions[2].Calls, signals)
		}
	})
}

// TestMemory: what is counted is what is held, to the byte, and samples stand for it.
func TestMemory(t *testing.T) {
	c := newCaller(t)
	at := func(name string) uint64 { return c.address[name] } // New refuses 0
	c.ways(t, func(t *testing.T, rseq *Rseq) {
		for _, allocator := range []Allocator{glibc, {UsableSize: at("malloc_usable_size")}} {
			config := c.config(rseq)
			config.Allocator = allocator
			i := c.interceptor(t, config,
				Function{Name: "malloc", Kind: Allocate, Target: at("malloc")},
				Function{Name: "calloc", Kind: Allocate, Target: at("calloc")},
				Function{Name: "realloc", Kind: Reallocate, Target: at("realloc")},
				Function{Name: "reallocarray", Kind: ReallocateMany, Target: at("reallocarray")},
				Function{Name: "free", Kind: Release, Target: at("free")},
				Function{Name: "posix_memalign", Kind: AllocateInto, Target: at("posix_memalign")},
				Function{Name: "strdup", Kind: Duplicate, Target: at("strdup")},
				Function{Name: "asprintf", Kind: Print, Target: at("asprintf"), Aid: at("vasprintf")},
				Function{Name: "__asprintf_chk", Kind: PrintChecked, Target: at("__asprintf_chk"), Aid: at("__vasprintf_chk")},
				Function{Name: "vasprintf", Kind: PrintList, Target: at("vasprintf")},
				Function{Name: "getline", Kind: Line, Target: at("getline")},
				Function{Name: "_Znwm", Kind: OperatorNew, Target: at("target_new"), Aid: at("malloc")},
				Function{Name: "_ZdlPv", Kind: Release, Target: at("target_delete"), Aid: at("free")},
			)
			out, counts := c.run(t, "memory", i)
			var held uint64
			if _, err := fmt.Sscan(out, &held); err != nil {
				t.Fatal(err)
			}
			counted, moved := uint64(0), uint64(0)
			for n, f := range counts.Functions {
				counted += f.Allocated - f.Freed
				if f.Calls == 0 {
					t.Errorf("no call of %s", i.Functions()[n].Name)
				}
				if i.Functions()[n].Kind.Moves() {
					moved += f.Allocated - f.Freed
				}
			}
			if counted != held || held == 0 {
				t.Errorf("%d bytes counted, %d are held", counted, held)
			}
			// Here nobody samples what the library allocates for its callers.
			sampled := 0.0
			for _, s := range counts.Samples {
				sampled += s.Weight
				if n, ok := i.Find(s.Stub); !ok || i.Functions()[n].Kind == Count || s.CallSite < 0x40_0000 || s.CallSite >= 0x80_0000 {
					t.Errorf("a sample %+v", s)
				}
			}
			expected := float64(held)
			// About 120 are to be expected, with a standard deviation of 11.
			if spread := math.Abs(sampled - expected); len(counts.Samples) < 40 || spread > 6*math.Sqrt(expected*16*1024) {
				t.Errorf("%d samples stand for %.0f bytes of %d", len(counts.Samples), sampled, held)
			}
			if counts.Lost != 0 {
				t.Errorf("%d samples lost", counts.Lost)
			}
		}
	})
}

// TestFork: a child counts for itself.
func TestFork(t *testing.T) {
	c := newCaller(t)
	c.ways(t, func(t *testing.T, rseq *Rseq) {
		target := Function{Name: "target", Target: c.address["target_nothing"]}
		_, counts := c.run(t, "forked", c.interceptor(t, c.config(rseq), target, target))
		if counts.Functions[1].Calls != 100 {
			t.Errorf("%d calls counted of 100", counts.Functions[1].Calls)
		}
	})
}

// BenchmarkCall prints what a call costs, by the kind of stub: ns, the least of
// seven rounds, beside the call without one in the same run.
func BenchmarkCall(b *testing.B) {
	c := newCaller(b)
	for name, rseq := range map[string]*Rseq{"rseq": c.rseq, "atomic": nil} {
		if name == "rseq" && rseq == nil {
			continue
		}
		b.Run(name, func(b *testing.B) {
			i := c.interceptor(b, c.config(rseq),
				Function{Name: "target", Target: c.address["target_nothing"]},
				Function{Name: "malloc", Kind: Allocate, Target: c.address["malloc"]},
				Function{Name: "free", Kind: Release, Target: c.address["free"]})
			var direct, counted, plain, attributed float64
			for b.Loop() {
				out, _ := c.run(b, "speed", i)
				if _, err := fmt.Sscan(strings.TrimSpace(out), &direct, &counted, &plain, &attributed); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(direct, "direct-ns")
			b.ReportMetric(counted-direct, "count-ns")
			b.ReportMetric(plain, "malloc+free-ns")
			b.ReportMetric(attributed-plain, "attribution-ns")
		})
	}
}
