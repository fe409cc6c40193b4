package live

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

const mixedLibrary = "libmixed.so"

// text returns the source of a program of testdata.
func text(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// mixedPart is a build of libmixed.so; flags come after the usual ones.
func mixedPart(t *testing.T, build int, flags ...string) testbed.Build {
	t.Helper()
	usual := []string{"-shared", "-fPIC", "-fno-toplevel-reorder", "-Wl,-soname," + mixedLibrary, fmt.Sprintf("-DBUILD=%d", build)}
	return testbed.Build{Name: mixedLibrary, Source: text(t, "mixed_lib.c"), Flags: append(usual, flags...)}
}

// mixedBuild compiles a build of libmixed.so.
func mixedBuild(t *testing.T, build int, flags ...string) string {
	t.Helper()
	return testbed.MustCompile(t, mixedPart(t, build, flags...))
}

// A mixed is the program mixed, which runs with the first build of libmixed.so.
type mixed struct {
	*subject
	*testbed.Fixture
	loaded string // the file that it has loaded
}

// A form is how program and library are compiled.
type form struct {
	name    string
	program []string // flags
	library []string
}

// runMixed runs mixed in a folder of its own.
func runMixed(t *testing.T, f form, args ...string) *mixed {
	t.Helper()
	program := testbed.MustCompile(t, testbed.Build{
		Name: "mixed", Source: text(t, "mixed.c"), Files: []string{"report.h"}, Flags: f.program,
		Parts: []testbed.Build{mixedPart(t, 1, f.library...)},
	})
	folder := publicFolder(t)
	for _, name := range []string{"mixed", mixedLibrary} {
		copyFile(t, filepath.Join(filepath.Dir(program), name), filepath.Join(folder, name))
	}
	m := &mixed{loaded: filepath.Join(folder, mixedLibrary)}
	m.subject, m.Fixture = start(t, testbed.FixtureOptions{}, filepath.Join(folder, "mixed"), args...)
	return m
}

func (m *mixed) module() string { return m.target() + ":" + mixedLibrary }

// runs checks that the program runs a build of libmixed.so, all of it.
func (m *mixed) runs(t *testing.T, build int64) testbed.Report {
	t.Helper()
	m.unharmed(t)
	report, err := m.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"build": build, "again": build, "third": build, "untouched": 10 * build, "touched": 333, "words": build}
	for name, n := range want {
		if got := report.Counts[name]; got != n {
			t.Fatalf("%s is %d, want %d", name, got, n)
		}
	}
	return report
}

// replace lets a file take over.
func (m *mixed) replace(t *testing.T, file string) api.Operation {
	t.Helper()
	return took(t, vos(t, "replace", m.module(), "--with", file, "--json"), api.Replaced)
}

func (m *mixed) rollback(t *testing.T) api.Operation {
	t.Helper()
	return took(t, vos(t, "rollback", m.module(), "--json"), api.RolledBack)
}

// took checks that a run of the binary did one thing.
func took(t *testing.T, r result, want api.Outcome) api.Operation {
	t.Helper()
	all := operations(t, r.expect(t, 0))
	if len(all) != 1 || all[0].Outcome != want {
		t.Fatalf("%+v, want %s", all, want)
	}
	return all[0]
}

func (m *mixed) step(t *testing.T) {
	t.Helper()
	before := m.count(t, "steps")
	if err := syscall.Kill(m.pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	await(t, "the next step", func() bool { return m.count(t, "steps") > before })
}

func (m *mixed) count(t *testing.T, name string) int64 {
	t.Helper()
	report, err := m.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report.Counts[name]
}

// forms are the ways in which the program and the library are compiled.
var forms = []form{
	{name: "pie"},
	{name: "with copy relocations", program: []string{"-no-pie", "-fno-pie"}},
	{name: "lazily bound", program: []string{"-Wl,-z,lazy"}, library: []string{"-Wl,-z,lazy"}},
	{name: "bound at once", program: []string{"-Wl,-z,now"}, library: []string{"-Wl,-z,now,-z,relro"}},
	{name: "no plt", program: []string{"-fno-plt"}, library: []string{"-fno-plt"}},
	{name: "cf-protection", program: []string{"-fcf-protection"}, library: []string{"-fcf-protection"}},
	{name: "not optimised", program: []string{"-O0"}, library: []string{"-O0"}},
	{name: "bsymbolic", library: []string{"-Wl,-Bsymbolic-functions"}},
	{name: "relr", library: []string{"-Wl,-z,pack-relative-relocs"}},
	{name: "no separate code", library: []string{"-Wl,-z,noseparate-code"}},
}

// TestReplaceKeepsWhatTheProgramHas lets three builds of a library take turns,
// whose data lie at other places: what the program knows of the library, and the
// library of the program, holds through all of them.
func TestReplaceKeepsWhatTheProgramHas(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			farewell := filepath.Join(publicFolder(t), "farewell")
			m := runMixed(t, f, "farewell="+farewell, "late")
			m.runs(t, 1)
			for round := range 2 {
				m.replace(t, mixedBuild(t, 2, f.library...))
				m.runs(t, 2)
				if round == 0 {
					m.step(t)
					if got := m.count(t, "late"); got != 202 {
						t.Fatalf("a function that is called for the first time: %d", got)
					}
				}
				m.rollback(t)
				m.runs(t, 1)
				m.replace(t, mixedBuild(t, 3, f.library...))
				m.runs(t, 3)
				m.replace(t, mixedBuild(t, 2, f.library...))
				m.runs(t, 2)
				m.rollback(t) // to what ran last, not when the second build was mapped
				m.runs(t, 3)
				m.rollback(t)
				m.runs(t, 1)
			}
			if got := refusals(t, vos(t, "rollback", m.module(), "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "no_generation_before" {
				t.Errorf("a rollback of nothing: %v", got)
			}
			m.replace(t, mixedBuild(t, 3, f.library...))
			m.runs(t, 3)
			vos(t, "verify", "--full", m.target()).expect(t, 0)
			if err := m.Quit(20 * time.Second); err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(farewell)
			if err != nil || !strings.HasPrefix(string(content), "3 ") {
				t.Errorf("the library's last words are %q (%v), not the third build's", content, err)
			}
		})
	}
}

// TestReplaceAddsAVariable lets a build take over that has a variable more, and
// then others, which must not lose it.
func TestReplaceAddsAVariable(t *testing.T) {
	m := runMixed(t, form{})
	m.replace(t, mixedBuild(t, 2, "-DADDED"))
	m.runs(t, 2)
	if got := refusals(t, vos(t, "replace", m.module(), "--with", mixedBuild(t, 3), "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "added_data" {
		t.Errorf("a third build: %v", got)
	}
	m.runs(t, 2)
	m.rollback(t)
	m.runs(t, 1)
	m.replace(t, mixedBuild(t, 3))
	m.runs(t, 3)
}

// TestReplaceOfAnOpenedLibrary replaces a library that the program opens and
// closes as it likes.
func TestReplaceOfAnOpenedLibrary(t *testing.T) {
	folder := publicFolder(t)
	library := filepath.Join(folder, mixedLibrary)
	copyFile(t, mixedBuild(t, 1), library)
	program := testbed.MustCompile(t, testbed.Build{
		Name: "mixed", Source: text(t, "mixed.c"), Files: []string{"report.h"}, Flags: []string{"-DOPENED"},
	})
	m := &mixed{loaded: library}
	m.subject, m.Fixture = start(t, testbed.FixtureOptions{}, program, "open="+library)
	m.runs(t, 1)
	m.step(t) // closed
	vos(t, "replace", m.module(), "--with", mixedBuild(t, 2)).expect(t, 6)
	m.step(t) // open again
	m.runs(t, 1)
	m.replace(t, mixedBuild(t, 2))
	m.runs(t, 2)
	m.step(t)
	m.step(t)
	m.runs(t, 2)
	m.rollback(t)
	m.runs(t, 1)
	m.step(t)
	m.replace(t, mixedBuild(t, 3)) // while it is closed, and kept open by vOS
	m.step(t)
	m.runs(t, 3)
}

// TestReplaceAndChildren forks before and after replacements: children have the
// build that the parent had, and go their own way.
func TestReplaceAndChildren(t *testing.T) {
	m := runMixed(t, form{}, "fork")
	generation := func(pid int) int {
		for _, o := range modules(t, vos(t, "modules", strconv.Itoa(pid), "--json").expect(t, 0)) {
			if o.Module == mixedLibrary && o.Generation > 0 {
				return o.Generation
			}
		}
		return 0
	}
	childRuns := func(want int64) {
		t.Helper()
		works := m.count(t, "child.works")
		await(t, "work of the child", func() bool { return m.count(t, "child.works") > works+3 })
		if got := m.count(t, "child.build"); got != want {
			t.Fatalf("the child runs build %d, want %d", got, want)
		}
	}
	child := func() int {
		t.Helper()
		before := testbed.Children(m.pid)
		m.step(t)
		after := testbed.Children(m.pid)
		for _, pid := range after {
			if !slices.Contains(before, pid) {
				return pid
			}
		}
		t.Fatal("no child")
		return 0
	}
	end := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "the child's end", func() bool { return !slices.Contains(testbed.Children(m.pid), pid) })
	}
	of := func(pid int) string { return fmt.Sprintf("%d:%s", pid, mixedLibrary) }

	first := child()
	childRuns(1)
	m.replace(t, mixedBuild(t, 2)) // the parent alone
	m.runs(t, 2)
	childRuns(1)
	took(t, vos(t, "replace", of(first), "--with", mixedBuild(t, 3), "--json"), api.Replaced)
	childRuns(3)
	m.runs(t, 2)
	checkFree(t, first)
	end(first)

	second := child()
	childRuns(2)
	if got := generation(second); got != 1 {
		t.Errorf("the child is said to run generation %d", got)
	}
	took(t, vos(t, "rollback", of(second), "--json"), api.RolledBack)
	childRuns(1)
	m.runs(t, 2)
	took(t, vos(t, "replace", of(second), "--with", mixedBuild(t, 2), "--json"), api.Replaced)
	childRuns(2)
	m.rollback(t)
	m.runs(t, 1)
	childRuns(2)
	took(t, vos(t, "replace", of(second), "--with", mixedBuild(t, 3), "--json"), api.Replaced)
	childRuns(3)
	vos(t, "verify", "--full", strconv.Itoa(second)).expect(t, 0)
	end(second)
	m.runs(t, 1)
}

// TestReplaceUnderBusyThreads replaces what 64 threads are in all the time.
func TestReplaceUnderBusyThreads(t *testing.T) {
	m := runMixed(t, form{}, "busy=64")
	for range 2 {
		m.replace(t, mixedBuild(t, 2))
		m.runs(t, 2)
		m.replace(t, mixedBuild(t, 3))
		m.runs(t, 3)
		m.rollback(t)
		m.rollback(t)
		m.runs(t, 1)
	}
	for _, build := range []string{"busy.1", "busy.2", "busy.3"} {
		await(t, "answers by "+build, func() bool { return m.count(t, build) > 0 })
	}
}

// TestReplaceUnderWaitingThreads replaces what 256 threads wait in: they come
// back through the build in which they began to wait.
func TestReplaceUnderWaitingThreads(t *testing.T) {
	m := runMixed(t, form{}, "wait=256")
	await(t, "256 threads that wait", func() bool { return m.count(t, "waited") == 256 })
	time.Sleep(50 * time.Millisecond)
	if op := m.replace(t, mixedBuild(t, 2)); op.Finishing < 256 || op.Remaining < 256 || op.DrainedUS != 0 {
		t.Errorf("of %d within %d may still be, drained after %d µs", op.Finishing, op.Remaining, op.DrainedUS)
	}
	m.runs(t, 2)
	if op := m.replace(t, mixedBuild(t, 3)); op.Finishing >= 256 { // they are in the first
		t.Errorf("%d are within the second build", op.Finishing)
	}
	m.runs(t, 3)
	m.step(t)
	await(t, "all of them to go on", func() bool { return m.count(t, "went") == 256 })
	m.rollback(t)
	m.rollback(t)
	m.runs(t, 1)
}

// TestReplaceTellsWhoIsWithin looks on when threads that wait in the build before
// leave it.
func TestReplaceTellsWhoIsWithin(t *testing.T) {
	const threads = 8
	m := runMixed(t, form{}, fmt.Sprintf("wait=%d", threads))
	build := mixedBuild(t, 2)
	await(t, "threads that wait", func() bool { return m.count(t, "waited") == threads })
	time.Sleep(50 * time.Millisecond)

	done := make(chan result)
	go func() { done <- vos(t, "replace", m.module(), "--with", build, "--json") }()
	await(t, "the other build", func() bool { return m.count(t, "build") == 2 })
	m.step(t)
	op := took(t, <-done, api.Replaced)
	if op.Finishing < threads || (op.DrainedUS > 0) == (op.Remaining > 0) {
		t.Errorf("of %d within %d may still be, drained after %d µs", op.Finishing, op.Remaining, op.DrainedUS)
	}
	await(t, "all of them to go on", func() bool { return m.count(t, "went") == threads })
	t.Logf("%d within, %d remaining, drained after %d µs", op.Finishing, op.Remaining, op.DrainedUS)
}

// TestReplaceUnderSignalHandlers replaces what a signal handler has interrupted,
// which calls it too.
func TestReplaceUnderSignalHandlers(t *testing.T) {
	m := runMixed(t, form{}, "signal")
	for range 10 {
		m.replace(t, mixedBuild(t, 2))
		m.runs(t, 2)
		m.rollback(t)
		m.runs(t, 1)
	}
	if m.count(t, "handled") == 0 {
		t.Error("no signal was handled")
	}
}

// TestReplaceInLockedMemory replaces a library of a program that locks all its
// memory.
func TestReplaceInLockedMemory(t *testing.T) {
	m := runMixed(t, form{}, "lock")
	m.replace(t, mixedBuild(t, 2))
	m.runs(t, 2)
	m.rollback(t)
	m.runs(t, 1)
}

// TestReplaceOfWhatIsBoundLater calls a function that is led to another build by
// import slots alone, and that the program binds when it likes.
func TestReplaceOfWhatIsBoundLater(t *testing.T) {
	lazy := form{program: []string{"-Wl,-z,lazy"}, library: []string{"-Wl,-z,lazy"}}
	brief := func(t *testing.T, m *mixed, build int64) {
		t.Helper()
		m.step(t)
		if got := m.count(t, "brief"); got != 70+build {
			t.Fatalf("a short function answers %d, not %d", got, 70+build)
		}
	}
	second, third := mixedBuild(t, 2, lazy.library...), mixedBuild(t, 3, lazy.library...)
	t.Run("in another build", func(t *testing.T) {
		m := runMixed(t, lazy, "brief")
		m.replace(t, second)
		brief(t, m, 2)
		m.rollback(t)
		brief(t, m, 1)
		m.replace(t, second)
		brief(t, m, 2)
	})
	t.Run("after a rollback", func(t *testing.T) {
		m := runMixed(t, lazy, "brief")
		m.replace(t, second)
		m.rollback(t)
		brief(t, m, 1)
		m.replace(t, second)
		brief(t, m, 2)
		m.rollback(t)
		m.replace(t, third)
		brief(t, m, 3)
	})
}

// TestReplaceKeepsValuesThatChange changes a variable while another build runs:
// it stays the program's.
func TestReplaceKeepsValuesThatChange(t *testing.T) {
	m := runMixed(t, form{}, "write")
	words := func(want int64) {
		t.Helper()
		m.unharmed(t)
		if got := m.count(t, "words"); got != want {
			t.Fatalf("the variable is of build %d, not %d", got, want)
		}
	}
	m.replace(t, mixedBuild(t, 2))
	words(2)
	m.rollback(t)
	words(1)
	m.replace(t, mixedBuild(t, 3))
	words(3)
	m.step(t)
	m.rollback(t)
	words(3)
	m.replace(t, mixedBuild(t, 2))
	words(3)
}

// TestReplaceOfThreadLocalStorage replaces a library that was opened, with threads
// that come and go: each has its variables.
func TestReplaceOfThreadLocalStorage(t *testing.T) {
	folder := publicFolder(t)
	library := filepath.Join(folder, mixedLibrary)
	copyFile(t, mixedBuild(t, 1), library)
	program := testbed.MustCompile(t, testbed.Build{
		Name: "mixed", Source: text(t, "mixed.c"), Files: []string{"report.h"}, Flags: []string{"-DOPENED"},
	})
	m := &mixed{loaded: library}
	m.subject, m.Fixture = start(t, testbed.FixtureOptions{}, program, "open="+library, "stay", "churn")
	for range 5 {
		m.replace(t, mixedBuild(t, 2))
		m.runs(t, 2)
		m.replace(t, mixedBuild(t, 3))
		m.runs(t, 3)
		m.rollback(t)
		m.rollback(t)
		m.runs(t, 1)
	}
}
