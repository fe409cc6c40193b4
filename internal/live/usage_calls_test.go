package live

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// How often each thread calls which of the forty functions, in each module.
const (
	calledFunctions = 40
	callingThreads  = 4
)

var callers = map[string]func(function int) int{
	"callers":    func(n int) int { return map[bool]int{true: 1000}[n >= 30 && n < 35] },
	"liblazy.so": func(n int) int { return map[bool]int{true: 10 * (n + 1)}[n < 10] },
	"libnow.so":  func(n int) int { return map[bool]int{true: 3*n + 1}[n >= 5 && n < 25] },
}

// callerSource is a module that imports all functions, and calls some.
func callerSource(module, name string) string {
	var s strings.Builder
	for n := range calledFunctions {
		fmt.Fprintf(&s, "void f%d(void);\n", n)
	}
	fmt.Fprintf(&s, "static volatile int never;\nvoid %s_work(void) {\n", name)
	for n := range calledFunctions {
		if calls := callers[module](n); calls > 0 {
			fmt.Fprintf(&s, "\tfor (int i = 0; i < %d; i++) f%d();\n", calls, n)
		} else {
			fmt.Fprintf(&s, "\tif (never) f%d();\n", n)
		}
	}
	s.WriteString("}\n")
	return s.String()
}

// callersProgram works in threads, in all modules, whenever it is asked to. Its language
// says with which C library.
func callersProgram(t *testing.T, language string) string {
	var callee strings.Builder
	for n := range calledFunctions {
		fmt.Fprintf(&callee, "volatile int v%d; void f%d(void) { v%d = 1; }\n", n, n, n)
	}
	library := func(name, source string, flags ...string) testbed.Build {
		return testbed.Build{Name: name, Language: language, Source: source, Flags: append([]string{"-fPIC", "-shared", "-Wl,-soname," + name}, flags...)}
	}
	main := "#include <pthread.h>\n#include <stdio.h>\nvoid lazy_work(void); void now_work(void);\n" + callerSource("callers", "own") + `
static void *work(void *none) {
	own_work();
	lazy_work();
	now_work();
	return none;
}
int main(void) {
	char line[80];
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		pthread_t threads[` + strconv.Itoa(callingThreads) + `];
		for (int i = 0; i < ` + strconv.Itoa(callingThreads) + `; i++)
			if (pthread_create(&threads[i], NULL, work, NULL)) return 1;
		for (int i = 0; i < ` + strconv.Itoa(callingThreads) + `; i++) pthread_join(threads[i], NULL);
		puts("done");
		fflush(stdout);
	}
}
`
	return testbed.MustCompile(t, testbed.Build{
		Name: "callers", Language: language, Source: main, Flags: []string{"-Wl,-z,lazy"},
		Parts: []testbed.Build{
			library("libcallee.so", callee.String()),
			library("liblazy.so", callerSource("liblazy.so", "lazy"), "-Wl,-z,lazy"),
			library("libnow.so", callerSource("libnow.so", "now"), "-fno-plt"),
		},
	})
}

// TestUsageCountsCalls holds what vos usage says of a program against what its source
// says, what the loader says that it binds when it is first called (LD_DEBUG), and
// what import slots its files have (readelf).
func TestUsageCountsCalls(t *testing.T) {
	program := callersProgram(t, "c")
	k := startTalker(t, exec.Command(program))
	target := strconv.Itoa(k.pid)
	before := usageOf(t, target, "--functions")
	for module := range callers {
		if u, ok := before[module]; !ok || u.Used != 0 || u.Calls != 0 {
			t.Errorf("%s before it works: %+v", module, u)
		}
	}
	const rounds = 3
	for range rounds {
		k.asks(t, "work", "done")
	}
	usage := usageOf(t, target, "--functions")
	bound := lazilyBound(t, program)
	for module, calls := range callers {
		u := usage[module]
		if want := importSlots(t, filepath.Join(filepath.Dir(program), module)); u.Imported != want {
			t.Errorf("%s imports %d functions, want %d", module, u.Imported, want)
		}
		counted := make(map[string]uint64)
		for _, f := range u.Functions {
			counted[f.Function] = f.Calls
		}
		used := 0
		for n := range calledFunctions {
			name := fmt.Sprintf("f%d", n)
			if want := uint64(rounds * callingThreads * calls(n)); counted[name] != want {
				t.Errorf("%s has called %s %d times, want %d", module, name, counted[name], want)
			}
			if calls(n) > 0 {
				used++
			}
			if module != "libnow.so" && bound[module][name] != (counted[name] > 0) {
				t.Errorf("%s: %s was called: %v; the loader has bound it: %v", module, name, counted[name] > 0, bound[module][name])
			}
		}
		if module != "callers" && u.Used != used {
			t.Errorf("%s uses %d functions, want %d", module, u.Used, used)
		}
	}
	// The program itself calls these besides, since it is attached.
	own := []string{"lazy_work", "now_work", "pthread_create@GLIBC_2.34", "pthread_join@GLIBC_2.34", "puts@GLIBC_2.2.5", "fflush@GLIBC_2.2.5", "fgets@GLIBC_2.2.5"}
	if u := usage["callers"]; u.Used != 5+len(own) {
		t.Errorf("the program uses %d functions, want %d: %+v", u.Used, 5+len(own), u.Functions)
	}
	for _, m := range modules(t, vos(t, "modules", target+":liblazy.so", "--json").expect(t, 0)) {
		if m.Imported == nil || m.Used == nil || *m.Imported != usage["liblazy.so"].Imported || *m.Used != 10 {
			t.Errorf("vos modules says otherwise: %+v", m)
		}
	}
	vos(t, "usage", target, "--stop").expect(t, 0)
	k.asks(t, "work", "done")
	checkFree(t, k.pid)
}

// TestUsageCountsCallsOfMusl holds what vos usage says of a program with musl's C library
// against what its source says.
func TestUsageCountsCallsOfMusl(t *testing.T) {
	k := startTalker(t, exec.Command(callersProgram(t, "musl")))
	target := strconv.Itoa(k.pid)
	bound, _ := slotValues(t, k.pid)
	for range 2 {
		attachAll(t, []int{k.pid})
		const rounds = 2
		for range rounds {
			k.asks(t, "work", "done")
		}
		usage := usageOf(t, target, "--functions")
		for module, calls := range callers {
			counted := make(map[string]uint64)
			for _, f := range usage[module].Functions {
				counted[f.Function] = f.Calls
			}
			for n := range calledFunctions {
				name := fmt.Sprintf("f%d", n)
				if want := uint64(rounds * callingThreads * calls(n)); counted[name] != want {
					t.Errorf("%s has called %s %d times, want %d", module, name, counted[name], want)
				}
			}
		}
		detachAll(t, []int{k.pid})
		if now, _ := slotValues(t, k.pid); !maps.Equal(now, bound) || len(ownMappings(t, k.pid)) > 0 {
			t.Errorf("after a detach it has %v, and other slots than before", ownMappings(t, k.pid))
		}
		k.asks(t, "work", "done")
		vos(t, "verify", target).expect(t, 0)
		checkFree(t, k.pid)
	}
}

// lazilyBound returns which of the functions each module has bound after one round of
// work, as the loader tells it.
func lazilyBound(t *testing.T, program string) map[string]map[string]bool {
	t.Helper()
	log := filepath.Join(t.TempDir(), "bindings")
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "LD_DEBUG=bindings", "LD_DEBUG_OUTPUT="+log)
	k := startTalker(t, cmd)
	k.asks(t, "work", "done")
	text, err := os.ReadFile(log + "." + strconv.Itoa(k.pid))
	if err != nil {
		t.Fatal(err)
	}
	bound := make(map[string]map[string]bool)
	for _, m := range regexp.MustCompile("binding file (\\S+) \\[0\\] to \\S+/libcallee.so \\[0\\]: normal symbol `(f[0-9]+)'").FindAllStringSubmatch(string(text), -1) {
		module := filepath.Base(m[1])
		if bound[module] == nil {
			bound[module] = make(map[string]bool)
		}
		bound[module][m[2]] = true
	}
	return bound
}

// importSlots counts the functions that a file has import slots for, and that some
// module defines.
func importSlots(t *testing.T, file string) int {
	t.Helper()
	out, err := exec.Command(testbed.NeedTool(t, "readelf"), "-W", "-r", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, m := range regexp.MustCompile(`R_X86_64_(?:JUMP_SLOT|JUMP_SLO|GLOB_DAT|64)\s+\S+ (\S+)`).FindAllStringSubmatch(string(out), -1) {
		switch name, _, _ := strings.Cut(m[1], "@"); {
		case name == "__gmon_start__", strings.HasPrefix(name, "_ITM_"): // nobody does
		case regexp.MustCompile(`^v[0-9]+$|^(stdin|stdout)$`).MatchString(name): // a variable
		default:
			names[name] = true
		}
	}
	return len(names)
}
