package match

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestHazards has for each rule what must work and what must be refused.
func TestHazards(t *testing.T) {
	for _, c := range []struct {
		name     string
		old, new []string
		want     []string // codes; none: can take over
	}{
		{"code changed", []string{"strip"}, []string{"strip", "-DSTEP=3"}, nil},
		{"code changed, symbols", nil, []string{"-DSTEP=3"}, nil},
		{"string changed", []string{"strip"}, []string{"strip", `-DGREETING="hello, there"`}, nil},
		{"table changed", []string{"strip"}, []string{"strip", "-DWEIGHT=9.25"}, nil},
		{"export added", []string{"strip"}, []string{"strip", "-DMORE_EXPORTS"}, nil},
		{"export gone", []string{"strip"}, []string{"strip", "-DGONE"}, []string{"export_gone"}},
		{"export resized", []string{"strip"}, []string{"strip", "-DLARGE_EXPORT"}, []string{"export_resized"}},
		{"static added, symbols", nil, []string{"-DNEW_STATIC"}, nil},
		{"static added", []string{"strip"}, []string{"strip", "-DNEW_STATIC"}, []string{"data_identity_unproved"}},
		{"more padding behind objects, symbols", nil, []string{"-DALIGN=512", "-DSTEP=3"}, nil},
		{"field added first", []string{"strip"}, []string{"strip", "-DFIELD_FIRST"}, []string{"allocation_resized", "layout_drift"}},
		{"field added last", []string{"strip"}, []string{"strip", "-DFIELD_LAST"}, []string{"allocation_resized"}},
		{"function in a table changed", []string{"strip"}, []string{"strip", "-DOP_CHANGED"}, nil},
		{"table of functions grown", []string{"strip"}, []string{"strip", "-DMORE_OPS"}, []string{"table_layout_changed"}},
		{"thread-local image equal", []string{"strip", "-DTLS_VALUE=4"}, []string{"strip", "-DTLS_VALUE=4", "-DSTEP=3"}, nil},
		{"thread-local image differs", []string{"strip", "-DTLS_VALUE=4"}, []string{"strip", "-DTLS_VALUE=5"}, []string{"tls_image_differs"}},
		{"thread-local storage added", []string{"strip"}, []string{"strip", "-DTLS_VALUE=5"}, []string{"needed_added", "tls_image_differs"}},
		{"initial-exec", []string{"strip", "-DTLS_STATIC"}, []string{"strip", "-DTLS_STATIC", "-DSTEP=2"}, []string{"tls_initial_exec"}},
		{"TLS descriptors", []string{"strip", "-DTLS_VALUE=4", "-mtls-dialect=gnu2"}, []string{"strip", "-DTLS_VALUE=4", "-DSTEP=3", "-mtls-dialect=gnu2"}, []string{"tls_descriptor"}},
		{"IFUNC", []string{"strip", "-DIFUNC"}, []string{"strip", "-DIFUNC", "-DSTEP=2"}, []string{"ifunc_export"}},
		{"needed added", []string{"strip"}, []string{"strip", "-DSTEP=2", "-Wl,--no-as-needed", "-lm"}, []string{"needed_added"}},
		{"soname", []string{"strip"}, []string{"strip", "-DSTEP=2", "-Wl,-soname,libother.so.1"}, []string{"soname_differs"}},
		{"no build-id", []string{"strip", "-Wl,--build-id=none"}, []string{"strip", "-DSTEP=2"}, []string{"no_build_id"}},
		{"C library", []string{"strip", "-Wl,-soname,libc.so.6"}, []string{"strip", "-DSTEP=2", "-Wl,-soname,libc.so.6"}, []string{"c_library"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := compare(t, c.old, c.new)
			got := codes(m)
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("refused for %q, want %q: %+v", got, c.want, m.Refusals)
			}
			if len(m.Entries) == 0 && len(c.want) == 0 && c.name != "export added" && c.name != "needed added" {
				t.Error("no entries, though something changed")
			}
		})
	}
}

func TestTextRelocations(t *testing.T) {
	flags := []string{"-fno-pic", "-mcmodel=large", "-Wl,-z,notext", "strip"}
	m := compare(t, flags, append(slices.Clone(flags), "-DSTEP=3"))
	if !contains(codes(m), string(CodeTextrel)) {
		t.Errorf("refused for %q only", codes(m))
	}
}

func TestExecutableIsRefused(t *testing.T) {
	m := compareFiles(t, build(t, "testdata/small.c"), "/bin/true", Options{})
	if !contains(codes(m), string(CodeNotLibrary)) {
		t.Errorf("refused for %q only", codes(m))
	}
}

func TestSameBuild(t *testing.T) {
	if m := compare(t, []string{"strip"}, []string{"strip"}); !m.Same || len(m.Refusals) > 0 || len(m.Entries) > 0 {
		t.Errorf("%+v", m)
	}
}

// TestRedirection looks at the entries that a change needs, and no more.
func TestRedirection(t *testing.T) {
	m := compare(t, []string{"strip"}, []string{"strip", "-DSTEP=3", "-DEXTRA_LOOP"})
	for _, name := range []string{"small_count", "small_helped", "small_id", "small_used"} {
		if _, ok := entryOf(m, name); !ok {
			t.Errorf("%s has no entry", name)
		}
	}
	for _, name := range []string{"small_crc", "small_total", "small_greeting", "small_weight", "small_close"} {
		if _, ok := entryOf(m, name); ok {
			t.Errorf("%s has an entry, though it didn't change", name)
		}
		if s := stateOf(t, m, name); s != Identical {
			t.Errorf("%s is %v", name, s)
		}
	}
	for _, name := range []string{"small_loop", "small_short"} {
		if e, ok := entryOf(m, name); !ok || e.Kind != GOTOnly || e.Bytes != 0 {
			t.Errorf("%s: entry %+v, its first bytes must stay", name, e)
		}
		if !slices.ContainsFunc(m.Residual, func(r Residual) bool { return r.Function == name }) {
			t.Errorf("%s is not among what stays", name)
		}
	}
	// small_count is also called by small_kind directly: visibility is default,
	// so by the PLT, and it may be redirected at its entry.
	if e, _ := entryOf(m, "small_count"); e.Kind != Veneer || e.Bytes < entryBytes {
		t.Errorf("small_count: entry %+v", e)
	}
}

// TestConstants: functions of the same text whose constants changed.
func TestConstants(t *testing.T) {
	m := compare(t, []string{"strip"}, []string{"strip", "-DWEIGHT=9.25"})
	if s := stateOf(t, m, "small_weight"); s != Referring {
		t.Errorf("small_weight is %v, though its table changed", s)
	}
	if _, ok := entryOf(m, "small_weight"); !ok {
		t.Error("small_weight has no entry")
	}
	if s := stateOf(t, m, "small_greeting"); s != Identical {
		t.Errorf("small_greeting is %v", s)
	}
	m = compare(t, []string{"strip"}, []string{"strip", `-DGREETING="hello from the smart library"`})
	if s := stateOf(t, m, "small_greeting"); s != Referring {
		t.Errorf("small_greeting is %v, though its string changed", s)
	}
	// A jump table of the same targets is the same whatever its bytes.
	if s := stateOf(t, m, "small_kind"); s != Identical {
		t.Errorf("small_kind is %v", s)
	}
}

// TestDirectCalls: -Bsymbolic makes exported functions be called directly.
func TestDirectCalls(t *testing.T) {
	m := compare(t, []string{"strip", "-Wl,-Bsymbolic"}, []string{"strip", "-Wl,-Bsymbolic", "-DSTEP=3"})
	if e, ok := entryOf(m, "small_count"); !ok || e.Kind != GOTOnly {
		t.Errorf("small_count: %+v, %v", e, ok)
	}
	if _, ok := entryOf(m, "small_kind"); !ok {
		t.Error("small_kind calls the changed small_count directly and has no entry")
	}
}

// TestTypesDecide: with type information of both builds the detector is silent.
func TestTypesDecide(t *testing.T) {
	old := build(t, "testdata/small.c", "-g")
	// SWAPPED are two members of one type.
	for _, change := range []string{"-DFIELD_FIRST", "-DSWAPPED"} {
		new := build(t, "testdata/small.c", "-g", change)
		m := compareFiles(t, old, new, Options{OldTypes: types(t, old), NewTypes: types(t, new)})
		if got := codes(m); !slices.Equal(got, []string{string(CodeLayoutChanged)}) {
			t.Errorf("%s: refused for %q", change, got)
		}
		if len(m.Drift.Layouts) != 1 || m.Drift.Layouts[0].Name != "handle" {
			t.Errorf("%s: layouts %+v", change, m.Drift.Layouts)
		}
	}
	same := build(t, "testdata/small.c", "-g", "-DSTEP=3")
	m := compareFiles(t, old, same, Options{OldTypes: types(t, old), NewTypes: types(t, same)})
	if len(m.Refusals) > 0 || !m.Drift.DWARF {
		t.Errorf("%+v", m.Refusals)
	}
}

// TestDebugFile: the symbols of a stripped pair may come from debug files, which
// must be those of the builds.
func TestDebugFile(t *testing.T) {
	old, new := build(t, "testdata/small.c"), build(t, "testdata/small.c", "-DNEW_STATIC")
	stripped := func(path string) string {
		out := filepath.Join(t.TempDir(), filepath.Base(path))
		if msg, err := exec.Command("strip", "-o", out, path).CombinedOutput(); err != nil {
			t.Fatalf("strip: %v\n%s", err, msg)
		}
		return out
	}
	opt := Options{OldDebug: openPath(t, old), NewDebug: openPath(t, new)}
	if m := compareFiles(t, stripped(old), stripped(new), opt); len(m.Refusals) > 0 || m.Figures.Objects["added"] == 0 {
		t.Errorf("%+v, objects %v", m.Refusals, m.Figures.Objects)
	}
	opt.OldDebug, opt.NewDebug = opt.NewDebug, opt.OldDebug
	if m := compareFiles(t, stripped(old), stripped(new), opt); !contains(codes(m), string(CodeDebugFile)) {
		t.Errorf("refused for %q", codes(m))
	}
}
