package live

import (
	"context"
	"debug/elf"
	le "encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// An importing is a program at work whose calls are counted.
type importing struct {
	pids  []int
	check func(t *testing.T) // that it works, rightly, and is free
	exact bool               // its mappings stay the same while nobody looks
}

// importings are programs of all sorts.
var importings = map[string]func(t *testing.T) importing{
	"nginx": func(t *testing.T) importing {
		nginx := testbed.RunNginx(t, testbed.NginxOptions{})
		return serving(t, "nginx", nginx.Load(context.Background(), testbed.LoadOptions{}), nginx.Pids()...)
	},
	"nginx with TLS": func(t *testing.T) importing {
		nginx := testbed.RunNginx(t, testbed.NginxOptions{TLS: true})
		return serving(t, "nginx", nginx.Load(context.Background(), testbed.LoadOptions{}), nginx.Pids()...)
	},
	"redis": func(t *testing.T) importing {
		redis := testbed.RunRedis(t, testbed.RedisOptions{})
		return serving(t, "redis", redis.Load(context.Background(), testbed.LoadOptions{}), redis.Pid())
	},
	"memcached": func(t *testing.T) importing {
		m := testbed.RunMemcached(t, testbed.MemcachedOptions{})
		return serving(t, "memcached", m.Load(context.Background(), testbed.LoadOptions{}), m.Pid())
	},
	"postgres": func(t *testing.T) importing {
		p := testbed.RunPostgres(t, testbed.PostgresOptions{})
		pids := []int{p.Pid()}
		for _, pid := range testbed.Children(p.Pid()) { // without those of clients, which come and go
			title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && regexp.MustCompile("checkpointer|writer|launcher").Match(title) {
				pids = append(pids, pid)
			}
		}
		return serving(t, "postgres", p.Load(context.Background(), testbed.LoadOptions{}), pids...)
	},
	"python3 in mid-stream": func(t *testing.T) importing {
		f := testbed.RunStream(t, "zlib", testbed.FixtureOptions{})
		s := &subject{pid: f.Pid(), ask: f.Report}
		return importing{pids: []int{f.Pid()}, check: s.unharmed}
	},
	"python3 with numpy": libraries("numpy"),
	"python3 with lxml":  libraries("lxml"),
	"exceptions":         working("cxx"),
	"threads":            working("threads", "64", "busy"),
	"signals":            working("signals"),
	"threads that end":   working("churn"),
	"vfork":              working("vforker"),
	"own sequences":      working("rseq"),
	"coroutines":         working("coroutine"),
	"calls with limits":  working("eintr"),
	"not PIE":            working("nopie"),
	"musl":               musl,
	"64 threads within a library": func(t *testing.T) importing {
		m := runMixed(t, form{}, "busy=8", "wait=56")
		return importing{pids: []int{m.pid}, check: m.unharmed, exact: true}
	},
	"without sequences": func(t *testing.T) importing {
		s, _ := start(t, testbed.FixtureOptions{Env: []string{"GLIBC_TUNABLES=glibc.pthread.rseq=0"}}, compiled(t, "threads"), "16", "busy")
		return importing{pids: []int{s.pid}, check: s.unharmed}
	},
}

func working(name string, args ...string) func(t *testing.T) importing {
	return func(t *testing.T) importing {
		s := fixture(t, name, args...)
		return importing{pids: []int{s.pid}, check: s.unharmed}
	}
}

// musl is a program with musl's C library, and another one of its own.
func musl(t *testing.T) importing {
	program := testbed.MustCompile(t, testbed.Build{Name: "holder", Language: "musl", Source: holder, Files: []string{"report.h"}, Flags: []string{"-fno-builtin"},
		Parts: []testbed.Build{{Name: "libholder.so", Language: "musl", Source: holderLibrary, Flags: []string{"-shared", "-fPIC", "-fno-builtin", "-Wl,-soname,libholder.so"}}}})
	s, _ := start(t, testbed.FixtureOptions{}, program)
	return importing{pids: []int{s.pid}, check: s.unharmed, exact: true}
}

// libraries is python3, the distribution's, at work with a library of C.
func libraries(task string) func(t *testing.T) importing {
	return func(t *testing.T) importing {
		s, _ := start(t, testbed.FixtureOptions{Ready: time.Minute}, "/usr/bin/python3", "-I", "-c", text(t, "libraries.py"), task)
		return importing{pids: []int{s.pid}, check: s.unharmed}
	}
}

func serving(t *testing.T, name string, load *testbed.Load, pids ...int) importing {
	s := underLoad(t, name, pids[0], load)
	return importing{pids: pids, check: func(t *testing.T) {
		t.Helper()
		for _, pid := range pids {
			checkFree(t, pid)
		}
		s.works(t)
	}}
}

// slotValues returns what all import slots of a process hold, those that are not
// bound yet apart, as the loader may bind them at any time.
func slotValues(t *testing.T, pid int) (bound, lazy map[uint64]uint64) {
	t.Helper()
	p, err := module.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	bound, lazy = make(map[uint64]uint64), make(map[uint64]uint64)
	for _, m := range p.Modules {
		if m.Object == nil || m.Kind == module.VDSO {
			continue
		}
		symbols, err := m.Object.DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		for r, err := range m.Object.Relocations() {
			if err != nil {
				t.Fatal(err)
			}
			s, _ := symbols.At(r.Symbol)
			if r.Type != elf.R_X86_64_JMP_SLOT && r.Type != elf.R_X86_64_GLOB_DAT || s.Type == elf.STT_OBJECT {
				continue
			}
			var b [8]byte
			_, err := memory.ReadAt(b[:], int64(r.Offset+m.Bias))
			if errors.Is(err, procfs.ErrAddress) {
				break // the program has unloaded it
			}
			if err != nil {
				t.Fatal(err)
			}
			value := le.LittleEndian.Uint64(b[:])
			if r.Type == elf.R_X86_64_JMP_SLOT && !m.Object.BindNow() && m.Contains(value) && !s.Defined() {
				lazy[r.Offset+m.Bias] = value
			} else {
				bound[r.Offset+m.Bias] = value
			}
		}
	}
	return bound, lazy
}

// ownMappings returns the mappings that vOS has made in a process.
func ownMappings(t *testing.T, pid int) []string {
	t.Helper()
	return slices.DeleteFunc(inventory(t, pid).Mappings, func(m string) bool { return !strings.Contains(m, "/memfd:vos-") })
}

// TestInterceptCycles attaches programs of all sorts at work, and detaches them,
// again and again: they work on, verify finds nothing, and what vOS leaves is what it
// says.
func TestInterceptCycles(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 12
	}
	for name, run := range importings {
		t.Run(name, func(t *testing.T) {
			s := run(t)
			s.check(t)
			bound, lazy := make(map[int]map[uint64]uint64), make(map[int]map[uint64]uint64)
			before := make(map[int]testbed.Inventory)
			for _, pid := range s.pids {
				bound[pid], lazy[pid] = slotValues(t, pid)
				before[pid] = inventory(t, pid)
			}
			for n := range cycles {
				for _, flags := range [][]string{nil, {"--memory"}} {
					for _, i := range attachAll(t, s.pids, flags...) {
						if i.Outcome != api.Attached || i.Slots == 0 || i.Memory != (len(flags) > 0) {
							t.Fatalf("attach %v: %+v", flags, i)
						}
					}
					s.check(t)
					for _, pid := range s.pids {
						vos(t, "verify", strconv.Itoa(pid)).expect(t, 0)
					}
					for _, i := range detachAll(t, s.pids) {
						if i.Outcome != api.Detached {
							t.Fatalf("detach: %+v", i)
						}
						if stays := ownMappings(t, i.PID); len(stays) > 0 && len(i.Residual) == 0 || flags == nil && n == 0 && len(stays) > 0 {
							t.Errorf("%v stay in process %d, and it says %q", stays, i.PID, i.Residual)
						}
					}
					s.check(t)
				}
			}
			for _, pid := range s.pids {
				now, stillLazy := slotValues(t, pid)
				for at, value := range bound[pid] {
					if now[at] != value {
						t.Errorf("the slot at 0x%x of process %d is 0x%x, and was 0x%x", at, pid, now[at], value)
					}
				}
				for at, value := range stillLazy {
					if was, ok := lazy[pid][at]; ok && was != value {
						t.Errorf("the slot at 0x%x of process %d is 0x%x, and was 0x%x", at, pid, value, was)
					}
				}
				after := inventory(t, pid)
				if len(ownMappings(t, pid)) > 2 {
					t.Errorf("process %d: after %d cycles there are %v", pid, cycles, ownMappings(t, pid))
				}
				if grown := after.RSS - before[pid].RSS; s.exact && grown > 2<<20 {
					t.Errorf("process %d has grown by %d KiB", pid, grown>>10)
				}
				vos(t, "verify", "--full", strconv.Itoa(pid)).expect(t, 0)
			}
		})
	}
}

// TestInterceptThousandTimes attaches and detaches nginx under load: no request fails,
// and nothing piles up.
func TestInterceptThousandTimes(t *testing.T) {
	cycles := 50
	if soak {
		cycles = 1000
	}
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	machine, err := vex.New()
	if err != nil {
		t.Fatal(err)
	}
	pid := nginx.Workers()[0]
	target := api.Target{Program: strconv.Itoa(pid)}
	ended := func(want api.Outcome) func(api.Interception) error {
		return func(i api.Interception) error {
			if i.Outcome != want || i.Slots == 0 || len(i.Residual) > 0 {
				t.Errorf("%+v, want %s", i, want)
			}
			return nil
		}
	}
	before, bound := inventory(t, pid), map[uint64]uint64{}
	for n := range cycles {
		if err := machine.Attach(t.Context(), api.AttachRequest{Target: target}, ended(api.Attached)); err != nil {
			t.Fatal(err)
		}
		if err := machine.Detach(t.Context(), api.DetachRequest{Target: target}, ended(api.Detached)); err != nil {
			t.Fatal(err)
		}
		now, _ := slotValues(t, pid)
		if n > 0 && !maps.Equal(now, bound) {
			t.Fatalf("after %d cycles slots are not what they were", n)
		}
		bound = now
	}
	totals := load.Stop()
	t.Logf("%d cycles; %v", cycles, totals)
	if totals.Failed > 0 || totals.Reconnects > 0 || totals.Served == 0 {
		t.Errorf("failed requests: %v", totals.Errors)
	}
	checkFree(t, pid)
	after := inventory(t, pid)
	if len(after.Mappings) != len(before.Mappings) || len(after.Threads) != len(before.Threads) {
		t.Errorf("%v", before.Diff(after))
	}
	if grown := after.RSS - before.RSS; grown > 2<<20 {
		t.Errorf("the worker has grown by %d KiB", grown>>10)
	}
	vos(t, "verify", "--full", strconv.Itoa(pid)).expect(t, 0)
}

// TestInterceptPointers leads slots whose value is used as a pointer to stubs, too.
func TestInterceptPointers(t *testing.T) {
	for _, name := range []string{"nginx", "redis", "postgres", "python3 in mid-stream", "python3 with numpy", "exceptions", "64 threads within a library"} {
		t.Run(name, func(t *testing.T) {
			s := importings[name](t)
			for range 2 {
				attachAll(t, s.pids, "--pointers", "--memory")
				s.check(t)
				detachAll(t, s.pids)
				s.check(t)
			}
		})
	}
}

// TestInterceptKilledAtAnyInstant kills vos at random instants while it attaches and
// detaches programs: they work on, and the next vos sets all right.
func TestInterceptKilledAtAnyInstant(t *testing.T) {
	for _, name := range []string{"64 threads within a library", "nginx", "python3 in mid-stream"} {
		t.Run(name, func(t *testing.T) {
			s := importings[name](t)
			pid := s.pids[len(s.pids)-1]
			target := strconv.Itoa(pid)
			limit := whole(t, "attach", target)
			back := whole(t, "detach", target)
			before := leftIn(t, pid)
			kills, killed := kills()*2/5, 0
			for n := range kills {
				args, most := []string{"attach", target}, limit
				switch n % 4 {
				case 1, 3:
					args, most = []string{"detach", target}, back
				case 2:
					args = append(args, "--memory")
				}
				if killAfter(t, instant(most), args) {
					killed++
				}
				s.check(t)
				if n%10 == 9 {
					vos(t, "attach", target).expect(t, 0)
					vos(t, "verify", target).expect(t, 0)
					s.check(t)
				}
			}
			vos(t, "attach", target, "--memory").expect(t, 0)
			s.check(t)
			last := detachAll(t, []int{pid})
			s.check(t)
			after := leftIn(t, pid)
			if after.descriptors > before.descriptors+8 || s.exact && after.descriptors > before.descriptors || after.own > 2*len(last[0].Residual) {
				t.Errorf("left: %+v, before: %+v; it says %q", after, before, last[0].Residual)
			}
			vos(t, "verify", "--full", target).expect(t, 0)
			t.Logf("%d of %d runs were killed before their end", killed, kills)
			if killed < kills/2 {
				t.Errorf("only %d of %d runs were killed before their end", killed, kills)
			}
		})
	}
}

// TestInterceptAndReplace lets builds take over in a program whose calls are counted,
// begins to count in one that was replaced, and ceases in between.
func TestInterceptAndReplace(t *testing.T) {
	m := runMixed(t, form{}, "busy=2")
	attach := func(flags ...string) {
		t.Helper()
		attachAll(t, []int{m.pid}, flags...)
		vos(t, "verify", "--full", m.target()).expect(t, 0)
		m.unharmed(t)
	}
	detach := func() {
		t.Helper()
		detachAll(t, []int{m.pid})
		vos(t, "verify", "--full", m.target()).expect(t, 0)
		m.unharmed(t)
	}
	steps := map[string]func(){
		"attach": func() { attach() }, "attach --memory": func() { attach("--memory") }, "detach": detach,
		"refresh": func() { vos(t, "refresh", m.target()).expect(t, 0) },
	}
	build := int64(1)
	for _, step := range strings.Fields("attach 2 detach back attach 3 back detach 2 attach refresh back attach 3 detach 2 back back attach detach") {
		switch step {
		case "2", "3":
			n, err := strconv.Atoi(step)
			if err != nil {
				t.Fatal(err)
			}
			vos(t, "replace", m.module(), "--with", mixedBuild(t, n)).expect(t, 0)
			build = int64(n)
		case "back":
			o := m.rollback(t)
			build = map[int]int64{0: 1}[o.Generation]
			if build == 0 {
				report, err := m.Report(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				build = report.Counts["build"]
			}
		default:
			steps[step]()
		}
		t.Logf("%s: build %d", step, build)
		m.runs(t, build)
		vos(t, "verify", "--full", m.target()).expect(t, 0)
	}
}

// TestInterceptRefuses: what has no import slots, and what others have changed.
func TestInterceptRefuses(t *testing.T) {
	for name, code := range map[string]api.Code{"static": "no_imports", "goprog": "no_imports", "m32": "not_64_bit"} {
		s := fixture(t, name)
		r := vos(t, "attach", s.target(), "--json")
		if all := refusals(t, r); r.Code != 7 || len(all) == 0 || all[0].Code != code || all[0].Remedy == "" {
			t.Errorf("%s: %d %v", name, r.Code, all)
		}
		s.unharmed(t)
	}
	m := runMixed(t, form{})
	attachAll(t, []int{m.pid})
	p, err := module.Open(m.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	base := p.Interceptors()[0].Config().Base
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var was [8]byte
	if _, err := memory.ReadAt(was[:], int64(base)+600); err != nil {
		t.Fatal(err)
	}
	if _, err := memory.WriteAt([]byte("scribble"), int64(base)+600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"attach", "detach", "usage"} {
		r := vos(t, command, m.target(), "--json")
		if all := refusals(t, r); r.Code != 7 || len(all) == 0 || all[0].Code != "interceptor_corrupt" {
			t.Errorf("%s: %d %s %s", command, r.Code, r.Stdout, r.Stderr)
		}
		m.unharmed(t)
	}
	if _, err := memory.WriteAt(was[:], int64(base)+600); err != nil {
		t.Fatal(err)
	}
	detachAll(t, []int{m.pid})
	m.unharmed(t)
}

// TestInterceptOpenedLibraries attaches a program that opens and closes libraries all
// the time.
func TestInterceptOpenedLibraries(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "opens", Files: []string{"report.h"}, Source: fmt.Sprintf(opensSource, "libz.so.1")})
	s, _ := start(t, testbed.FixtureOptions{}, program)
	rounds := 20
	if soak {
		rounds = 500
	}
	codes := make(map[int]int)
	for n := range rounds {
		flags := [][]string{{"attach", s.target()}, {"attach", "--memory", s.target()}, {"usage", s.target()}, {"detach", s.target()}}[n%4]
		r := vos(t, flags...)
		codes[r.Code]++
		if r.Code != 0 && !strings.Contains(r.Stderr, "try again") && !strings.Contains(r.Stderr, "detach again") {
			t.Errorf("vos %v: %d %s", flags, r.Code, r.Stderr)
		}
		s.works(t)
	}
	detachAll(t, []int{s.pid})
	s.unharmed(t)
	if own := ownMappings(t, s.pid); len(own) > 4 {
		t.Errorf("left: %v", own)
	}
	t.Logf("exit codes: %v", codes)
	if codes[0] < rounds/2 {
		t.Errorf("exit codes: %v", codes)
	}
}

const opensSource = `
#include "report.h"
#include <dlfcn.h>
static void *opens(void *arg)
{
	for (;;) {
		void *h = dlopen("%s", RTLD_LAZY);
		if (!h) {
			wrong("dlopen: %%s", dlerror());
			return arg;
		}
		unsigned long (*crc)(unsigned long, const char *, unsigned) = dlsym(h, "crc32");
		if (!crc || crc(0, "123456789", 9) != 0xcbf43926)
			wrong("crc32 is another one");
		char *s = strdup("text");
		if (!s || strcmp(s, "text"))
			wrong("a copy differs");
		free(s);
		dlclose(h);
		progressed();
	}
}

int main(void)
{
	spawn(opens, 0);
	report_serve();
}
`
