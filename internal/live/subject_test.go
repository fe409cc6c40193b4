package live

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// A subject is a running program that checks its own work.
type subject struct {
	pid  int
	ask  func(context.Context) (testbed.Report, error)
	last testbed.Report
}

// target is the subject as vos is told of it: by its pid, as other programs of
// the same name may run here.
func (s *subject) target() string { return strconv.Itoa(s.pid) }

// works waits until the subject has done more work, all of it right, and fails
// the test if it never does.
func (s *subject) works(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		now, err := s.ask(ctx)
		if err != nil {
			t.Fatalf("process %d: %v", s.pid, err)
		}
		if now.Errors > s.last.Errors {
			t.Fatalf("process %d, %s: %d errors, the first: %s", s.pid, now.Fixture, now.Errors, now.Error)
		}
		// Twice as one round may have begun before what is tested.
		if now.Progress >= s.last.Progress+2 {
			s.last = now
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("process %d, %s: no work is done", s.pid, now.Fixture)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// unharmed checks that the subject works on, untraced and not stopped.
func (s *subject) unharmed(t *testing.T) {
	t.Helper()
	checkFree(t, s.pid)
	s.works(t)
	checkFree(t, s.pid)
}

// start runs a program that speaks the protocol of testbed's fixtures, for the
// length of a test.
func start(t *testing.T, o testbed.FixtureOptions, path string, args ...string) (*subject, *testbed.Fixture) {
	t.Helper()
	f := testbed.Run(t, o, path, args...)
	s := &subject{pid: f.Pid(), ask: f.Report}
	s.works(t)
	return s, f
}

// fixture runs one of testbed's fixtures.
func fixture(t *testing.T, name string, args ...string) *subject {
	t.Helper()
	s, _ := start(t, testbed.FixtureOptions{}, compiled(t, name), args...)
	return s
}

func compiled(t *testing.T, name string) string {
	t.Helper()
	build, err := testbed.Source(name)
	if err != nil {
		t.Fatal(err)
	}
	return testbed.MustCompile(t, build)
}

// script runs a program of testdata by an interpreter.
func script(t *testing.T, interpreter, file string) *subject {
	t.Helper()
	path := testbed.NeedTool(t, interpreter)
	s, _ := start(t, testbed.FixtureOptions{
		Ready: time.Minute,
		Wrap:  func(argv []string) []string { return append([]string{path}, argv...) },
	}, filepath.Join("testdata", file))
	return s
}

// underLoad makes a subject of a server and its load: an answer that is not
// right is an error, one that is, is work.
func underLoad(t *testing.T, name string, pid int, load *testbed.Load) *subject {
	t.Helper()
	t.Cleanup(func() {
		if totals := load.Stop(); totals.Failed > 0 || totals.Served == 0 {
			t.Errorf("%s: %v: %v", name, totals, totals.Errors)
		}
	})
	s := &subject{pid: pid, ask: func(context.Context) (testbed.Report, error) {
		totals := load.Totals()
		return testbed.Report{Fixture: name, Errors: totals.Failed, Error: fmt.Sprint(totals.Errors), Progress: totals.Served}, nil
	}}
	s.works(t)
	return s
}

// publicFolder makes a folder that every user may read.
func publicFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "vos-live-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

// copyFile copies a program or library.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// await waits for a condition that is certain to come true.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come about", what)
		}
	}
}

// listed returns the names of a process's modules, and of its executable.
func listed(t *testing.T, pid int) (names []string, executable string) {
	t.Helper()
	for _, m := range modules(t, vos(t, "modules", strconv.Itoa(pid), "--json").expect(t, 0)) {
		names = append(names, m.Module)
		if m.Kind == "executable" {
			executable = m.Module
		}
	}
	return names, executable
}

// corruptPages changes two bytes between functions on each page of a module's
// code that has a place for it, pages that threads run in included. It returns
// how many pages are corrupt now.
func corruptPages(t *testing.T, pid int, name string) int {
	t.Helper()
	pages := make(map[uint64]bool)
	all, err := gaps(find(t, inspect(t, pid), name))
	if err != nil {
		t.Fatal(err)
	}
	for at := range all {
		if page := at / procfs.PageSize; !pages[page] && (at+1)/procfs.PageSize == page {
			pages[page] = true
			if _, err := testbed.Corrupt(pid, at, []byte{0xde, 0xad}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(pages) == 0 {
		t.Fatalf("%s has no place to corrupt", name)
	}
	return len(pages)
}

// ownPages makes every page of a module's code the process's own by writing a
// byte that is there already, and returns how many pages these are.
func ownPages(t *testing.T, pid int, name string) (pages int) {
	t.Helper()
	m := find(t, inspect(t, pid), name)
	for _, s := range m.Object.Segments {
		if s.Type != elf.PT_LOAD || s.Flags&elf.PF_X == 0 {
			continue
		}
		for at := s.Vaddr; at < s.Vaddr+s.Filesz; at += procfs.PageSize {
			right := make([]byte, 1)
			err := m.Object.ReadMapped(right, at)
			if err == nil {
				_, err = testbed.Corrupt(pid, at+m.Bias, right)
			}
			if err != nil {
				t.Fatal(err)
			}
			pages++
		}
	}
	return pages
}

// corruptGap changes two bytes behind a function of .text and returns their
// address.
func corruptGap(t *testing.T, pid int, name string) uint64 {
	t.Helper()
	p, err := module.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() // now: a soak comes by here thousands of times
	at, err := corruptModule(pid, find(t, p, name))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// corruptEvery does so in every module of a process that has a place for it, and
// returns how many these are.
func corruptEvery(pid int) (n int, err error) {
	p, err := module.Open(pid)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	for _, m := range p.Modules {
		if m.Object == nil {
			continue
		}
		switch _, err := corruptModule(pid, m); {
		case err == nil:
			n++
		case !errors.Is(err, errNoGap):
			return n, err
		}
	}
	return n, nil
}

var errNoGap = errors.New("no place to corrupt")

func corruptModule(pid int, m *module.Module) (uint64, error) {
	all, err := gaps(m)
	if err != nil {
		return 0, err
	}
	for at := range all {
		if s, ok := m.Object.SectionAt(at - m.Bias); ok && s.Name == ".text" {
			_, err := testbed.Corrupt(pid, at, []byte{0xde, 0xad})
			return at, err
		}
	}
	return 0, fmt.Errorf("%s: %w", m.Name, errNoGap)
}

func find(t *testing.T, p *module.Process, name string) *module.Module {
	t.Helper()
	for _, m := range p.Modules {
		if m.Name == name && m.Object != nil && !m.Staged() {
			return m
		}
	}
	t.Fatalf("process %d has no module %s", p.PID(), name)
	return nil
}

// fillers are what compilers and linkers put between functions.
var fillers = [][]byte{{0x90, 0x90}, {0x66, 0x90}, {0x66, 0x0f, 0x1f}, {0x66, 0x2e, 0x0f, 0x1f}, {0x66, 0x66, 0x2e, 0x0f, 0x1f}, {0x0f, 0x1f}, {0xcc, 0xcc}}

// gaps returns the process addresses of two bytes or more of filler right
// behind functions: by the unwind tables, or the symbols where there are none.
func gaps(m *module.Module) (iter.Seq[uint64], error) {
	var ends []uint64
	fdes, err := m.Object.FDEs()
	if err != nil {
		return nil, err
	}
	for _, f := range fdes {
		ends = append(ends, f.Start+f.Size)
	}
	if len(fdes) == 0 {
		symbols, err := m.Object.StaticSymbols()
		if err != nil {
			return nil, err
		}
		for s := range symbols.All() {
			if s.IsFunction() && s.Size > 0 {
				ends = append(ends, s.Value+s.Size)
			}
		}
	}
	return func(yield func(uint64) bool) {
		for _, end := range ends {
			code := make([]byte, 5)
			if err := m.Object.ReadMapped(code, end); err != nil {
				continue // the last one of the text
			}
			if slices.ContainsFunc(fillers, func(f []byte) bool { return bytes.HasPrefix(code, f) }) && !yield(end+m.Bias) {
				return
			}
		}
	}, nil
}

// refreshed checks that a refresh left each of the modules refreshed and every
// other one clean.
func refreshed(t *testing.T, r result, names ...string) map[string]api.Operation {
	t.Helper()
	r.expect(t, 0)
	done := make(map[string]api.Operation)
	for _, o := range operations(t, r) {
		want := api.Clean
		if slices.Contains(names, o.Module) {
			want = api.Refreshed
		}
		if o.Outcome != want || len(o.Residual) > 0 || len(o.Refusals) > 0 {
			t.Errorf("%s: %s, not %s; residual %v, refusals %v, error %q", o.Module, o.Outcome, want, o.Residual, o.Refusals, o.Error)
		}
		done[o.Module] = o
	}
	for _, name := range names {
		if _, found := done[name]; !found {
			t.Errorf("nothing is said of %s", name)
		}
	}
	return done
}

// heal corrupts idle bytes of modules of a subject and has them verified,
// refreshed and verified again, by commands that are given to run.
func heal(t *testing.T, s *subject, run func(t *testing.T, args ...string) result, names ...string) {
	t.Helper()
	at := make(map[string]string)
	for _, name := range names {
		at[name] = fmt.Sprintf("0x%x", corruptGap(t, s.pid, name))
	}
	s.unharmed(t)
	found := make(map[string]bool)
	for _, d := range differences(t, run(t, "verify", s.target(), "--json").expect(t, 10)) {
		if at[d.Module] != d.Address || d.Kind != api.KindCorruption || d.Function == "" || d.Section == "" || d.Found != "dead" {
			t.Errorf("found %+v; corrupt are %v", d, at)
		}
		found[d.Module] = true
	}
	if len(found) != len(at) {
		t.Errorf("found %v; corrupt are %v", found, at)
	}
	refreshed(t, run(t, "refresh", s.target(), "--json"), names...)
	if left := run(t, "verify", s.target(), "--full", "--json").expect(t, 0); left.Stdout != "" {
		t.Errorf("it still differs: %s", left.Stdout)
	}
	s.unharmed(t)
}
