package dso

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// openFile opens an object's file for as long as the test runs.
func openFile(t testing.TB, path string) *Object {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	o, err := ReadFile(f, fileSize(t, f))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return o
}

func fileSize(t testing.TB, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// systemLibraries returns at most n libraries of the system, spread over the
// alphabet, with those that every program uses.
func systemLibraries(t testing.TB, n int) []string {
	t.Helper()
	const folder = "/usr/lib/x86_64-linux-gnu"
	found, err := filepath.Glob(folder + "/*.so.*")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var all, picked []string
	for _, path := range found {
		real, err := filepath.EvalSymlinks(path)
		if err != nil || seen[real] || strings.HasSuffix(real, ".py") {
			continue
		}
		seen[real] = true
		all = append(all, real)
	}
	if len(all) < 20 {
		t.Fatalf("only %d libraries in %s: make deps installs programs that bring more", len(all), folder)
	}
	for i := 0; i < len(all); i += max(1, len(all)/n) {
		picked = append(picked, all[i])
	}
	for _, name := range []string{"libc.so.6", "libm.so.6", "libstdc++.so.6", "ld-linux-x86-64.so.2"} {
		if real, err := filepath.EvalSymlinks(filepath.Join(folder, name)); err == nil && !slices.Contains(picked, real) {
			picked = append(picked, real)
		}
	}
	return picked
}

// TestSystemLibraries compares what this package reads with debug/elf, an
// independent reader by section headers.
func TestSystemLibraries(t *testing.T) {
	var symbols, versions, relocations, relr, tls, fdes, uniques, ifuncs int
	libraries := systemLibraries(t, 200)
	for _, path := range libraries {
		o := openFile(t, path)
		ref, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			if err := o.Check(); err != nil {
				t.Errorf("Check: %v", err)
			}
			if o.Type != ref.Type || o.Entry != ref.Entry || len(o.Segments) != len(ref.Progs) {
				t.Errorf("header differs: %v %#x %d", o.Type, o.Entry, len(o.Segments))
			}
			compareDynamic(t, o, ref)
			if got, want := o.BuildID, referenceBuildID(ref); got != want {
				t.Errorf("build-id %q, want %q", got, want)
			}
			n := compareSymbols(t, o, ref)
			symbols += n.symbols
			versions += n.versions
			uniques += n.unique
			ifuncs += n.ifunc
			a, b := compareRelocations(t, o, ref)
			relocations, relr = relocations+a, relr+b
			compareSections(t, o, ref)
			if o.TLS != nil {
				tls++
			}
			all, err := o.FDEs()
			if err != nil {
				t.Errorf("FDEs: %v", err)
			}
			for _, f := range all {
				if s, ok := o.SegmentAt(f.Start); !ok || s.Flags&elf.PF_X == 0 || f.Start+f.Size > s.Vaddr+s.Memsz {
					t.Errorf("FDE %#x+%#x is not in an executable segment", f.Start, f.Size)
					break
				}
			}
			fdes += len(all)
		})
		ref.Close()
	}
	t.Logf("%d libraries: %d symbols, %d with a version, %d IFUNC, %d unique; %d relocations, %d of them packed; %d with TLS; %d FDEs",
		len(libraries), symbols, versions, ifuncs, uniques, relocations, relr, tls, fdes)
}

func compareDynamic(t *testing.T, o *Object, ref *elf.File) {
	t.Helper()
	for _, c := range []struct {
		tag  elf.DynTag
		have []string
	}{{elf.DT_NEEDED, o.Needed}, {elf.DT_SONAME, []string{o.Soname}}, {elf.DT_RPATH, []string{o.Rpath}}, {elf.DT_RUNPATH, []string{o.Runpath}}} {
		want, err := ref.DynString(c.tag)
		if err != nil {
			t.Fatal(err)
		}
		if len(want) == 0 && c.tag != elf.DT_NEEDED {
			want = []string{""}
		}
		if !slices.Equal(c.have, want) {
			t.Errorf("%v: %q, want %q", c.tag, c.have, want)
		}
	}
	for _, d := range o.Dynamic {
		want, err := ref.DynValue(d.Tag)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(want, d.Value) {
			t.Errorf("%v: %#x, want one of %#x", d.Tag, d.Value, want)
		}
	}
}

func referenceBuildID(ref *elf.File) string {
	s := ref.Section(".note.gnu.build-id")
	if s == nil {
		return ""
	}
	raw, err := s.Data()
	if err != nil || len(raw) < 16 {
		return ""
	}
	return fmt.Sprintf("%x", raw[16:])
}

type symbolCounts struct{ symbols, versions, unique, ifunc int }

func compareSymbols(t *testing.T, o *Object, ref *elf.File) (n symbolCounts) {
	t.Helper()
	table, err := o.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	want, err := ref.DynamicSymbols()
	if err != nil && err != elf.ErrNoSymbols {
		t.Fatal(err)
	}
	if table.Len() != len(want)+1 && len(want) > 0 {
		t.Fatalf("%d symbols, want %d", table.Len()-1, len(want))
	}
	for s := range table.All() {
		w := want[s.Index-1]
		if s.Name != w.Name || s.Value != w.Value || s.Size != w.Size || s.Section != w.Section ||
			s.Type != elf.ST_TYPE(w.Info) || s.Binding != elf.ST_BIND(w.Info) || s.Visibility != elf.ST_VISIBILITY(w.Other) {
			t.Fatalf("symbol %d: %+v, want %+v", s.Index, s, w)
		}
		if w.HasVersion && w.VersionIndex.Index() > 1 {
			n.versions++
			if s.Version != w.Version || s.Defined() && s.Hidden != w.VersionIndex.IsHidden() || s.Library != w.Library {
				t.Fatalf("symbol %d: %+v, want %+v", s.Index, s, w)
			}
		} else if s.Version != "" {
			t.Fatalf("symbol %d: version %q, want none", s.Index, s.Version)
		}
		if s.IsUnique() {
			n.unique++
		}
		if s.IsIFUNC() {
			n.ifunc++
		}
		if !s.Exported() || s.Name == "" {
			continue
		}
		found, ok, err := o.Lookup(s.Name, s.Version)
		if err != nil || !ok || found.Name != s.Name || found.Version != s.Version {
			t.Fatalf("Lookup %v: %v %v %v", s, found, ok, err)
		}
		if !s.Hidden {
			if found, ok, err = o.Lookup(s.Name, ""); err != nil || !ok || found.Hidden {
				t.Fatalf("Lookup default of %v: %v %v %v", s, found, ok, err)
			}
		}
	}
	n.symbols = len(want)
	if _, ok, err := o.Lookup("no such symbol", ""); ok || err != nil && len(want) > 0 {
		t.Fatalf("Lookup of what is not there: %v %v", ok, err)
	}
	return n
}

// compareRelocations counts by type with what the sections have.
func compareRelocations(t *testing.T, o *Object, ref *elf.File) (all, packed int) {
	t.Helper()
	got, want := map[elf.R_X86_64]int{}, map[elf.R_X86_64]int{}
	for r, err := range o.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Symbol != 0 && r.Name == "" {
			t.Fatalf("relocation without a name: %+v", r)
		}
		if r.Text != (o.TextRel() && r.Text) {
			t.Fatalf("relocation of text in an object that has none: %+v", r)
		}
		all++
		if r.Table == FromRELR {
			packed++
			continue
		}
		got[r.Type]++
	}
	for _, s := range ref.Sections {
		if s.Type != elf.SHT_RELA || s.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		raw, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(raw); i += relaSize {
			want[elf.R_X86_64(le.Uint32(raw[i+8:]))]++
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("relocations %v, want %v", got, want)
	}
	return all, packed
}

func compareSections(t *testing.T, o *Object, ref *elf.File) {
	t.Helper()
	all, err := o.Sections()
	if err != nil || len(all) != len(ref.Sections) {
		t.Fatalf("%d sections, want %d: %v", len(all), len(ref.Sections), err)
	}
	for i, s := range all {
		w := ref.Sections[i]
		if s.Name != w.Name || s.Addr != w.Addr || s.Size != w.FileSize && s.Type != elf.SHT_NOBITS || s.Type != w.Type {
			t.Fatalf("section %d: %+v, want %+v", i, s, w)
		}
		if s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS || s.Size == 0 {
			continue
		}
		if found, ok := o.SectionAt(s.Addr + s.Size - 1); !ok || found.Name != s.Name {
			t.Errorf("SectionAt %s: %v %v", s.Name, found.Name, ok)
		}
		have, err := o.Bytes(s.Addr, min(s.Size, 64))
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, len(have))
		if _, err := w.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("bytes of %s: %x, want %x", s.Name, have, want)
		}
	}
}

// readelf runs binutils' readelf.
func readelf(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(testbed.NeedTool(t, "readelf"), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("readelf %v: %v", args, err)
	}
	return string(out)
}

var frameLine = regexp.MustCompile(`(?m)^[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE .* pc=([0-9a-f]+)\.\.([0-9a-f]+)$`)

// TestFramesLikeReadelf compares unwind tables with readelf's.
func TestFramesLikeReadelf(t *testing.T) {
	for _, name := range []string{"libc.so.6", "ld-linux-x86-64.so.2", "libz.so.1", "libm.so.6"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("/lib/x86_64-linux-gnu", name)
			var want []string
			for _, m := range frameLine.FindAllStringSubmatch(readelf(t, "--debug-dump=frames,no-follow-links", path), -1) {
				want = append(want, strings.TrimLeft(m[1], "0")+".."+strings.TrimLeft(m[2], "0"))
			}
			all, err := openFile(t, path).FDEs()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range all {
				got = append(got, fmt.Sprintf("%x..%x", f.Start, f.Start+f.Size))
			}
			slices.Sort(got)
			slices.Sort(want)
			if len(want) == 0 || !slices.Equal(got, want) {
				t.Errorf("%d FDEs, readelf has %d", len(got), len(want))
			}
			t.Logf("%d FDEs", len(got))
		})
	}
}

// TestPackedRelocationsLikeReadelf counts DT_RELR in a fixture, and in what of
// the system has it.
func TestPackedRelocationsLikeReadelf(t *testing.T) {
	counted := 0
	for _, path := range append([]string{fixturePath(t, "relr")}, systemLibraries(t, 200)...) {
		o := openFile(t, path)
		if o.dyn(DT_RELRSZ) == 0 {
			continue
		}
		m := regexp.MustCompile(`(?m)^\s*(\d+) offsets?$`).FindStringSubmatch(readelf(t, "-rW", path))
		if m == nil {
			t.Errorf("%s: readelf finds no packed relocations", path)
			continue
		}
		n := 0
		for r, err := range o.Relocations() {
			if err != nil {
				t.Fatal(err)
			}
			if r.Table == FromRELR {
				n++
			}
		}
		if fmt.Sprint(n) != m[1] {
			t.Errorf("%s: %d packed relocations, readelf has %s", path, n, m[1])
		}
		if counted++; counted == 5 {
			break
		}
	}
	if counted == 0 {
		t.Error("nothing was compared")
	}
	t.Logf("%d libraries with packed relocations", counted)
}

func BenchmarkOpen(b *testing.B) {
	for _, name := range []string{"libc.so.6", "libz.so.1"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f, err := os.Open(filepath.Join("/lib/x86_64-linux-gnu", name))
				if err != nil {
					b.Fatal(err)
				}
				o, err := ReadFile(f, fileSize(b, f))
				if err != nil || o.BuildID == "" {
					b.Fatal(err)
				}
				f.Close()
			}
		})
	}
}

// benchmarkLibc measures what is read late, on a fresh Object each time.
func benchmarkLibc(b *testing.B, read func(*Object) (int, error)) {
	f, err := os.Open("/lib/x86_64-linux-gnu/libc.so.6")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	size, n := fileSize(b, f), 0
	b.ReportAllocs()
	for b.Loop() {
		o, err := ReadFile(f, size)
		if err != nil {
			b.Fatal(err)
		}
		if n, err = read(o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n), "entries")
}

func BenchmarkSymbols(b *testing.B) {
	benchmarkLibc(b, func(o *Object) (n int, err error) {
		table, err := o.DynamicSymbols()
		for s := range table.All() {
			n += len(s.Name) / max(len(s.Name), 1)
		}
		return n, err
	})
}

func BenchmarkFDEs(b *testing.B) {
	benchmarkLibc(b, func(o *Object) (int, error) {
		all, err := o.FDEs()
		return len(all), err
	})
}

func BenchmarkRelocations(b *testing.B) {
	benchmarkLibc(b, func(o *Object) (n int, err error) {
		for _, err := range o.Relocations() {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	})
}

func BenchmarkFunctionAt(b *testing.B) {
	benchmarkLibc(b, func(o *Object) (int, error) {
		_, _, ok := o.FunctionAt(o.Entry)
		if !ok {
			b.Fatal("no function")
		}
		return 1, nil
	})
}
