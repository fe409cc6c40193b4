package match

import (
	"os"
	"path/filepath"
	"testing"
)

// libraries are some of the machine's shared libraries.
func libraries(t testing.TB, most int) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/usr/lib/x86_64-linux-gnu/*.so.*", "/lib/x86_64-linux-gnu/*.so.*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, paths...)
	}
	seen := map[string]bool{}
	var kept []string
	for _, p := range all {
		real, err := filepath.EvalSymlinks(p)
		if err != nil || seen[real] {
			continue
		}
		if info, err := os.Stat(real); err != nil || info.Size() > 16<<20 {
			continue // a few of the largest take as long as all others
		}
		seen[real] = true
		kept = append(kept, real)
	}
	if len(kept) > most {
		step := len(kept) / most
		for i := range most {
			kept[i] = kept[i*step]
		}
		kept = kept[:most]
	}
	return kept
}

// TestSelf matches libraries with themselves: every function is its own pair
// and identical, and what is mapped is mapped to itself.
func TestSelf(t *testing.T) {
	n, functions, addresses, unproved := 0, 0, 0, 0
	for _, path := range libraries(t, 100) {
		o := openPath(t, path)
		if o.Dynamic == nil {
			continue
		}
		a, err := Read(o, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		p := pairFunctions(a, a)
		data, d := mapData(p)
		judge(p, data)
		n++
		for i := range a.Functions {
			functions++
			f := &a.Functions[i]
			k := p.ofOld[i]
			switch {
			case k < 0:
				t.Errorf("%s: %s has no pair", path, a.Name(i))
			case p.pairs[k].New != i && p.pairs[k].Trust >= Likely:
				t.Errorf("%s: %s is paired with %s by %s, %s", path, a.Name(i), a.Name(p.pairs[k].New), p.pairs[k].By, p.pairs[k].Trust)
			case !p.pairs[k].equal:
				t.Errorf("%s: %s has another text than itself", path, a.Name(i))
			case p.pairs[k].State != Identical && !f.Startup && p.pairs[k].New == i && d.provedAll(data, f):
				t.Errorf("%s: %s is %s", path, a.Name(i), p.pairs[k].State)
			}
		}
		for _, v := range data.Intervals {
			if v.Old != v.New && v.Proof != Added {
				t.Errorf("%s: %#x is mapped to %#x by %s", path, v.New, v.Old, v.Proof)
			}
		}
		for _, addr := range d.newRefs {
			addresses++
			if _, _, ok := data.Old(addr); !ok {
				unproved++
			}
		}
		for _, c := range d.conflicts {
			t.Errorf("%s: conflict %+v", path, c)
		}
		for _, g := range d.grown {
			t.Errorf("%s: grown %+v", path, g)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d libraries, %d functions, %d addresses of data, %d unproved", n, functions, addresses, unproved)
	if n < 20 {
		t.Errorf("only %d libraries: make deps installs programs that bring more", n)
	}
	if unproved*20 > addresses {
		t.Errorf("%d of %d addresses have no proof", unproved, addresses)
	}
}

// provedAll tells whether all data that a function refers to is mapped.
func (d *dataMapper) provedAll(m *DataMap, f *Function) bool {
	for _, r := range d.p.new.referencesOf(f) {
		if r.Region == Data && r.To < 0 {
			if _, _, ok := m.Old(r.Target); !ok {
				return false
			}
		}
	}
	return true
}

func BenchmarkLibcrypto(b *testing.B) {
	paths, _ := filepath.Glob("/usr/lib/x86_64-linux-gnu/libcrypto.so.*")
	if len(paths) == 0 {
		b.Fatal("no libcrypto: make deps installs programs that bring it")
	}
	for b.Loop() {
		o, n := openPath(b, paths[0]), openPath(b, paths[0])
		o.BuildID = "another build"
		m, err := Compare(o, n, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(m.Pairs)), "pairs")
	}
}
