package match

import (
	"bytes"
	"debug/dwarf"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// fixtures are libraries built by the compiler, each once a test run.
var fixtures struct {
	sync.Mutex
	folder string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if fixtures.folder != "" {
		os.RemoveAll(fixtures.folder)
	}
	os.Exit(code)
}

// build compiles a source as a shared library and returns its path. Flags come
// behind the usual ones; "strip" removes symbols.
func build(t testing.TB, source string, flags ...string) string {
	t.Helper()
	fixtures.Lock()
	defer fixtures.Unlock()
	if fixtures.folder == "" {
		folder, err := os.MkdirTemp("", "match-fixture-")
		if err != nil {
			t.Fatal(err)
		}
		fixtures.folder = folder
	}
	h := fnv.New64()
	fmt.Fprint(h, source, flags)
	path := filepath.Join(fixtures.folder, fmt.Sprintf("%x.so", h.Sum64()))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	args := []string{"-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,--build-id", "-Wl,-z,relro,-z,now", "-Wl,-soname,libsmall.so.1", "-o", path, source}
	strip := false
	for _, f := range flags {
		if f == "strip" {
			strip = true
			continue
		}
		args = append(args, f)
	}
	testbed.GCC(t, args...)
	if strip {
		if out, err := exec.Command("strip", path).CombinedOutput(); err != nil {
			t.Fatalf("strip: %v\n%s", err, out)
		}
	}
	return path
}

// openPath opens a file that should open.
func openPath(t testing.TB, path string) *dso.Object {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := dso.ReadFile(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return o
}

// compare builds two variants of the small library and matches them.
func compare(t testing.TB, old, new []string) *Match {
	t.Helper()
	return compareFiles(t, build(t, "testdata/small.c", old...), build(t, "testdata/small.c", new...), Options{})
}

func compareFiles(t testing.TB, old, new string, opt Options) *Match {
	t.Helper()
	m, err := Compare(openPath(t, old), openPath(t, new), opt)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func types(t testing.TB, path string) *dwarf.Data {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d, err := ReadTypes(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// codes returns the codes of the refusals, each once.
func codes(m *Match) []string {
	var all []string
	for _, r := range m.Refusals {
		if c := string(r.Code); !contains(all, c) {
			all = append(all, c)
		}
		if r.Subject == "" || r.Detail == "" || r.Remedy == "" {
			panic(fmt.Sprintf("refusal without a subject, detail or remedy: %+v", r))
		}
	}
	return all
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// stateOf returns the state of the pair of an exported function.
func stateOf(t testing.TB, m *Match, name string) State {
	t.Helper()
	for _, q := range m.Pairs {
		if containsName(m.Old.Functions[q.Old].Names, name) {
			return q.State
		}
	}
	t.Fatalf("no pair of %s", name)
	return 0
}

// entryOf returns the entry of a function.
func entryOf(m *Match, name string) (Entry, bool) {
	for _, e := range m.Entries {
		if containsName(m.Old.Functions[m.Pairs[e.Pair].Old].Names, name) {
			return e, true
		}
	}
	return Entry{}, false
}
