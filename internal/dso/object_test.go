package dso

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestTraits pins what is said of objects built in different ways.
func TestTraits(t *testing.T) {
	type traits struct {
		kind                              elf.Type
		pie, static, now, nodelete, texts bool
		stack, relro, tls, ibt, buildID   bool
	}
	library := traits{kind: elf.ET_DYN, relro: true, tls: true, buildID: true}
	with := func(change func(*traits)) traits { c := library; change(&c); return c }
	program := traits{kind: elf.ET_DYN, pie: true, relro: true, buildID: true}
	for name, want := range map[string]traits{
		"gnu":        library,
		"sysv":       library,
		"relr":       library,
		"now":        with(func(c *traits) { c.now, c.nodelete, c.buildID = true, true, false }),
		"lazy":       with(func(c *traits) { c.relro, c.stack = false, true }),
		"cet":        with(func(c *traits) { c.ibt = true }),
		"textrel":    with(func(c *traits) { c.texts, c.tls = true, false }),
		"stripped":   library,
		"pie":        program,
		"no-pie":     {kind: elf.ET_EXEC, relro: true, buildID: true},
		"static":     {kind: elf.ET_EXEC, static: true, relro: true, tls: true, buildID: true},
		"static-pie": {kind: elf.ET_DYN, pie: true, static: true, relro: true, tls: true, buildID: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := openBytes(t, fixture(t, name))
			if err := o.Check(); err != nil {
				t.Error(err)
			}
			got := traits{o.Type, o.PIE(), o.Static(), o.BindNow(), o.NoDelete(), o.TextRel(), o.ExecutableStack(), o.RELRO.Size != 0, o.TLS != nil, o.Properties.IBT, o.BuildID != ""}
			want := want
			if want.pie && !want.static {
				want.now = got.now // the compiler's default
			}
			if name != "cet" {
				want.ibt = got.ibt // crti.o and the compiler's default decide
			}
			if got != want {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestNamesOfDynamicSection(t *testing.T) {
	if o := openBytes(t, fixture(t, "gnu")); o.Soname != "libfixture.so.1" || !slices.Contains(o.Needed, "ld-linux-x86-64.so.2") {
		t.Errorf("soname %q, needed %q", o.Soname, o.Needed)
	}
	if o := openBytes(t, fixture(t, "sysv")); o.Rpath != "/a:/b" || o.Runpath != "" || o.Soname != "" {
		t.Errorf("rpath %q, runpath %q, soname %q", o.Rpath, o.Runpath, o.Soname)
	}
	if o := openBytes(t, fixture(t, "relr")); o.Rpath != "" || o.Runpath != "/c" {
		t.Errorf("rpath %q, runpath %q", o.Rpath, o.Runpath)
	}
	if o := openBytes(t, fixture(t, "pie")); !strings.HasPrefix(o.Interp, "/lib64/ld-linux") {
		t.Errorf("interpreter %q", o.Interp)
	}
	if o := openBytes(t, fixture(t, "pie")); !strings.HasPrefix(o.ABITag.String(), "Linux 3.2.") {
		t.Errorf("ABI tag %q", o.ABITag)
	}
	if o := openBytes(t, fixture(t, "cet")); !o.Properties.SHSTK || o.Properties.ISANeeded&2 == 0 {
		t.Errorf("properties %+v", o.Properties)
	}
}

func TestLookupByVersion(t *testing.T) {
	for _, name := range []string{"gnu", "sysv", "relr"} {
		t.Run(name, func(t *testing.T) {
			o := openBytes(t, fixture(t, name))
			first, ok, err := o.Lookup("fixture_call", "FIXTURE_1")
			if err != nil || !ok || !first.Hidden || first.String() != "fixture_call@FIXTURE_1" {
				t.Errorf("FIXTURE_1: %v %v %v", first, ok, err)
			}
			second, ok, err := o.Lookup("fixture_call", "FIXTURE_2")
			if err != nil || !ok || second.Hidden || second.Value == first.Value {
				t.Errorf("FIXTURE_2: %v %v %v", second, ok, err)
			}
			if s, ok, _ := o.Lookup("fixture_call", ""); !ok || s != second {
				t.Errorf("default: %v %v", s, ok)
			}
			if s, ok, _ := o.Lookup("fixture_call", "FIXTURE_3"); ok {
				t.Errorf("a version that is not there: %v", s)
			}
			if s, ok, _ := o.Lookup("imported", ""); ok {
				t.Errorf("an import: %v", s)
			}
			if s, ok, _ := o.Lookup("fixture_ifunc", ""); !ok || !s.IsIFUNC() {
				t.Errorf("IFUNC: %v %v", s, ok)
			}
			if s, ok, _ := o.Lookup("fixture_thread_local", ""); !ok || !s.IsTLS() {
				t.Errorf("TLS: %v %v", s, ok)
			}
			if s, ok, _ := o.Lookup("fixture_weak", ""); !ok || s.Binding != elf.STB_WEAK {
				t.Errorf("weak: %v %v", s, ok)
			}
			versions, err := o.Versions()
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(versions, func(v Version) bool { return v.Name == "FIXTURE_2" })
			if i < 0 || !slices.Equal(versions[i].Parents, []string{"FIXTURE_1"}) || !versions[0].Base {
				t.Errorf("versions %+v", versions)
			}
		})
	}
}

func TestRelocationKinds(t *testing.T) {
	o := openBytes(t, fixture(t, "gnu"))
	data, _, _ := o.Lookup("fixture_data", "")
	constant, _, _ := o.Lookup("fixture_constant", "")
	kinds := map[elf.R_X86_64]int{}
	for r, err := range o.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		kinds[r.Type]++
		if r.Offset == constant.Value && (r.Name != "fixture_data" || r.Type != elf.R_X86_64_64 || !o.RELRO.Contains(r.Offset)) {
			t.Errorf("fixture_constant: %+v, data at %#x", r, data.Value)
		}
	}
	for _, kind := range []elf.R_X86_64{elf.R_X86_64_64, elf.R_X86_64_RELATIVE, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT, elf.R_X86_64_DTPMOD64} {
		if kinds[kind] == 0 {
			t.Errorf("no %v in %v", kind, kinds)
		}
	}

	// Packed, the same places have the same addends.
	packed := map[uint64]int64{}
	o = openBytes(t, fixture(t, "relr"))
	table, _, _ := o.Lookup("fixture_table", "")
	for r, err := range o.Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Table == FromRELR {
			packed[r.Offset] = r.Addend
		}
	}
	for i := uint64(1); i < 4; i++ {
		if packed[table.Value+8*i]-packed[table.Value] != int64(4*i) {
			t.Errorf("fixture_table[%d]: %#x, [0] is %#x", i, packed[table.Value+8*i], packed[table.Value])
		}
	}

	text := 0
	for r, err := range openBytes(t, fixture(t, "textrel")).Relocations() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Text {
			text++
		}
	}
	if text == 0 {
		t.Error("no relocation of text")
	}
}

func TestFunctionAt(t *testing.T) {
	o := openBytes(t, fixture(t, "gnu"))
	f, ok, err := o.Lookup("fixture_function", "")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if name, offset, ok := o.FunctionAt(f.Value + 3); name != "fixture_function" || offset != 3 || !ok {
		t.Errorf("FunctionAt: %s+%d %v", name, offset, ok)
	}
	static, err := o.StaticSymbols()
	if err != nil || static.Len() < 20 {
		t.Fatal(static.Len(), err)
	}
	for s := range static.All() {
		if s.Name == "local" {
			if l, ok := o.LocateFunction(s.Value); !ok || l.Function.Name != "local" || l.Beyond {
				t.Errorf("local: %+v %v", l, ok)
			}
			if fde, ok, err := o.FDEAt(s.Value + 1); err != nil || !ok || fde.Start != s.Value || fde.Size != s.Size || fde.LSDA == 0 {
				t.Errorf("FDE of local: %+v %v %v", fde, ok, err)
			} else if where, _ := o.SectionAt(fde.LSDA); where.Name != ".gcc_except_table" {
				t.Errorf("LSDA in %s", where.Name)
			}
		}
	}
	// A stripped object: the local function has no name; what is near is said
	// to be near only.
	o = openBytes(t, fixture(t, "stripped"))
	f, _, _ = o.Lookup("fixture_function", "")
	all, err := o.FDEs()
	if err != nil {
		t.Fatal(err)
	}
	for _, fde := range all {
		l, ok := o.LocateFunction(fde.Start)
		exported := exportedAt(t, o, fde.Start)
		if ok && l.Beyond == exported {
			t.Errorf("%#x: %+v, exported %v", fde.Start, l, exported)
		}
	}
	if _, _, ok := o.FunctionAt(0); ok {
		t.Error("a function at the ELF header")
	}
	if name, _, ok := o.FunctionAt(o.RELRO.Addr); ok {
		t.Errorf("data in function %s", name)
	}
}

func exportedAt(t *testing.T, o *Object, vaddr uint64) bool {
	t.Helper()
	table, err := o.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for s := range table.All() {
		if s.Exported() && s.Value == vaddr {
			return true
		}
	}
	return false
}

// TestWithoutSections checks what is derived where there are no headers, by
// comparing with the headers of the same file.
func TestWithoutSections(t *testing.T) {
	for _, name := range []string{"gnu", "sysv", "relr", "now", "pie", "no-pie", "no-exports", "static-pie"} {
		t.Run(name, func(t *testing.T) {
			whole := fixture(t, name)
			o, bare := openBytes(t, whole), openBytes(t, withoutSections(whole))
			want, err := o.DynamicSymbols()
			if err != nil {
				t.Fatal(err)
			}
			have, err := bare.DynamicSymbols()
			if err != nil || have.Len() != want.Len() {
				t.Errorf("%d symbols, want %d: %v", have.Len(), want.Len(), err)
			}
			f, err := bare.FDEs()
			g, _ := o.FDEs()
			if err != nil || !slices.Equal(f, g) {
				t.Errorf("%d FDEs, want %d: %v", len(f), len(g), err)
			}
			start, end := bare.Span()
			for at := start; at < end; at += 8 {
				derived, ok := bare.SectionAt(at)
				real, _ := o.SectionAt(at)
				if !ok || !derived.Derived || strings.HasPrefix(derived.Name, "segment ") {
					continue
				}
				switch derived.Name {
				case real.Name, ".note", ".got", ".got.plt":
				case ".bss":
					if real.Type != elf.SHT_NOBITS {
						t.Errorf("%#x is in %s, derived %s", at, real.Name, derived.Name)
					}
				default:
					if !strings.HasPrefix(real.Name, "segment ") {
						t.Errorf("%#x is in %s, derived %s", at, real.Name, derived.Name)
					}
				}
			}
			if s, ok := bare.SectionAt(o.Entry); o.Entry != 0 && (!ok || !strings.HasSuffix(s.Name, "(r-x)")) {
				t.Errorf("entry is in %q", s.Name)
			}
		})
	}
}

// TestImportsOnly finds the size of a .dynsym that no hash table covers.
func TestImportsOnly(t *testing.T) {
	whole := fixture(t, "no-exports")
	table, err := openBytes(t, whole).DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	want := table.Len()
	raw := withoutSections(whole)
	p := patch{raw, openBytes(t, withoutSections(whole))}
	count := func(raw []byte) int {
		table, err := openBytes(t, raw).DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		return table.Len()
	}
	h := p.table(elf.DT_GNU_HASH)
	clear(h[16+8*le.Uint32(h[8:]):][:4*le.Uint32(h)])
	if n := count(raw); n != want {
		t.Errorf("by relocations: %d symbols, want %d", n, want)
	}
	p.setTag(elf.DT_RELASZ, 0)
	p.setTag(elf.DT_PLTRELSZ, 0)
	if n := count(raw); n != want {
		t.Errorf("by the table that follows: %d symbols, want %d", n, want)
	}
	p.table(elf.DT_SYMTAB)[3*symSize+4] = 0 // a local symbol is no import
	if n := count(raw); n != 3 {
		t.Errorf("up to what is no import: %d symbols, want 3", n)
	}
	if n := count(append(raw[:40:40], append(bytes.Clone(whole[40:64]), raw[64:]...)...)); n != want {
		t.Errorf("by the section header: %d symbols, want %d", n, want)
	}
}

func TestOnlyDebug(t *testing.T) {
	path := fixturePath(t, "debug-lines")
	o, debug := openBytes(t, fixture(t, "debug-lines")), openBytes(t, onlyDebug(t, path))
	if debug.BuildID != o.BuildID || o.BuildID == "" {
		t.Errorf("build-id %q, want %q", debug.BuildID, o.BuildID)
	}
	want, _ := o.StaticSymbols()
	have, err := debug.StaticSymbols()
	if err != nil || have.Len() != want.Len() {
		t.Errorf("%d symbols, want %d: %v", have.Len(), want.Len(), err)
	}
	if len(debug.Dynamic) != 0 {
		t.Errorf("%d dynamic entries", len(debug.Dynamic))
	}
	f, _, _ := o.Lookup("fixture_function", "")
	if name, _, _ := debug.FunctionAt(f.Value); name != "fixture_function" {
		t.Errorf("function %q", name)
	}
}

func TestMappings(t *testing.T) {
	for _, name := range []string{"gnu", "now", "pie", "no-pie"} {
		raw := fixture(t, name)
		o := openBytes(t, raw)
		for _, m := range o.Mappings() {
			if m.Addr%PageSize != 0 || m.Offset%PageSize != 0 || m.Size%PageSize != 0 || m.Exact > m.Size {
				t.Fatalf("%s: %+v", name, m)
			}
			got := make([]byte, m.Size)
			if err := o.ReadMapped(got, m.Addr); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, m.Size)
			copy(want, raw[m.Offset:])
			if !bytes.Equal(got[:m.Exact], want[:m.Exact]) {
				t.Errorf("%s: %+v differs from the file", name, m)
			}
			if bytes.ContainsFunc(got[m.Exact:], func(r rune) bool { return r != 0 }) {
				t.Errorf("%s: %+v is not zero behind what the file determines", name, m)
			}
			if m.Segment.Flags&elf.PF_W == 0 && m.Exact != m.Size {
				t.Errorf("%s: the rest of a read-only page is not exact: %+v", name, m)
			}
		}
	}
}

func TestBytes(t *testing.T) {
	o := openBytes(t, fixture(t, "gnu"))
	var data Segment
	for _, m := range o.Mappings() {
		data = m.Segment
	}
	if data.Memsz == data.Filesz {
		t.Fatal("the fixture has no .bss")
	}
	p, err := o.Bytes(data.Vaddr+data.Filesz-4, 8)
	if err != nil || !bytes.Equal(p[4:], make([]byte, 4)) {
		t.Errorf("bytes across the end of the file's: %x %v", p, err)
	}
	if _, err := o.Bytes(data.Vaddr, data.Memsz+1); !errors.Is(err, ErrMalformed) {
		t.Errorf("beyond the segment: %v", err)
	}
	if _, err := o.Bytes(0, MaxTable+1); !errors.Is(err, ErrLimit) {
		t.Errorf("too many: %v", err)
	}
	if at, ok := o.FileOffset(data.Vaddr + 1); !ok || at != data.Offset+1 {
		t.Errorf("file offset %#x %v", at, ok)
	}
	if _, ok := o.FileOffset(data.Vaddr + data.Filesz); ok {
		t.Error("a file offset of .bss")
	}
}

// TestManyReaders asks one Object from several goroutines at once.
func TestManyReaders(t *testing.T) {
	raw := fixture(t, "gnu")
	want := examine(openBytes(t, raw))
	o := openBytes(t, raw)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if got := examine(o); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
	group.Wait()
}

// A findings is a digest of all that can be asked of an Object.
type findings struct {
	symbols, static, sections, relocations, fdes, versions, functions, bytes int
	failures                                                                 int
}

// examine asks everything of an object, whatever it is.
func examine(o *Object) (f findings) {
	count := func(err error) bool {
		if err != nil {
			f.failures++
		}
		return err == nil
	}
	count(o.Check())
	if table, err := o.DynamicSymbols(); count(err) {
		f.symbols = table.Len()
		for s := range table.All() {
			if s.Index > 200 {
				break
			}
			_, _, err := o.Lookup(s.Name, s.Version)
			count(err)
			_ = s.String()
		}
	}
	if table, err := o.StaticSymbols(); count(err) {
		f.static = table.Len()
	}
	all, err := o.Sections()
	count(err)
	f.sections = len(all)
	for _, err := range o.Relocations() {
		if count(err) {
			f.relocations++
		}
	}
	fdes, err := o.FDEs()
	count(err)
	f.fdes = len(fdes)
	versions, err := o.Versions()
	count(err)
	f.versions = len(versions)
	start, end := o.Span()
	for at := start; at < end && at-start < 1<<20; at += 256 {
		o.SectionAt(at)
		if _, _, ok := o.FunctionAt(at); ok {
			f.functions++
		}
		_, _, err := o.FDEAt(at)
		count(err)
		_, err = o.Bytes(at, 16)
		count(err)
	}
	page := make([]byte, PageSize)
	for _, m := range o.Mappings() {
		if err := o.ReadMapped(page, m.Addr); err == nil {
			f.bytes += len(page) - bytes.Count(page, []byte{0})
		}
	}
	return f
}

// TestReaderErrors checks that what the reader says comes through.
func TestReaderErrors(t *testing.T) {
	raw := fixture(t, "gnu")
	broken := errors.New("broken disk")
	for allowed := range 8 {
		r := &failingReader{r: bytes.NewReader(raw), left: allowed, err: broken}
		o, err := ReadFile(r, int64(len(raw)))
		if err == nil {
			_, err = o.DynamicSymbols()
		}
		if err == nil {
			_, err = o.FDEs()
		}
		if err != nil && !errors.Is(err, broken) {
			t.Errorf("after %d reads: %v", allowed, err)
		}
	}
}

type failingReader struct {
	r    io.ReaderAt
	left int
	err  error
}

func (f *failingReader) ReadAt(p []byte, at int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, f.err
	}
	return f.r.ReadAt(p, at)
}
