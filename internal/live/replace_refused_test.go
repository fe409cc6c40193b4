package live

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

func inventory(t *testing.T, pid int) testbed.Inventory {
	t.Helper()
	i, err := testbed.TakeInventory(pid)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// untouched checks that a program has what it had.
func untouched(t *testing.T, before testbed.Inventory) {
	t.Helper()
	if d := before.Diff(inventory(t, before.Pid)); len(d) > 0 {
		t.Errorf("process %d: %v", before.Pid, d)
	}
}

// altered copies a file, changed, into a folder of its own, under its own name.
func altered(t *testing.T, path string, change func([]byte) []byte) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(publicFolder(t), filepath.Base(path))
	if err := os.WriteFile(to, change(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}

func same(content []byte) []byte { return content }

// buildIDOffset returns the offset of the build-id in a file's content.
func buildIDOffset(t *testing.T, content []byte) int {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".note.gnu.build-id")
	if s == nil {
		t.Fatal("no build-id")
	}
	return int(s.Offset) + 16
}

// TestReplaceRefuses offers builds that may not take over: the program stays as it
// is, and a right one can take over afterwards.
func TestReplaceRefuses(t *testing.T) {
	m := runMixed(t, form{})
	second := mixedBuild(t, 2)
	libm := mixedPart(t, 2, "-DNEEDS", "-Wl,--no-as-needed")
	libm.Libs = []string{"-lm"}
	special := func(make func(path string) error) string {
		path := filepath.Join(publicFolder(t), mixedLibrary)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	copied := func(change func(path string) error) string {
		path := altered(t, second, same)
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, file string
		want       []api.Code // one of them at least
		code       int
	}{
		{"export gone", mixedBuild(t, 2, "-DGONE"), []api.Code{"export_gone"}, 7},
		{"export resized", mixedBuild(t, 2, "-DRESIZED"), []api.Code{"export_resized"}, 7},
		{"soname", mixedBuild(t, 2, "-Wl,-soname,libother.so"), []api.Code{"soname_differs"}, 7},
		{"no build-id", mixedBuild(t, 2, "-Wl,--build-id=none"), []api.Code{"no_build_id"}, 7},
		{"structure grown", mixedBuild(t, 2, "-DGROWN"), []api.Code{"layout_drift", "allocation_resized", "layout_changed"}, 7},
		{"structure grown, stripped", mixedBuild(t, 2, "-DGROWN", "-s"), []api.Code{"layout_drift", "allocation_resized"}, 7},
		{"thread-local image", mixedBuild(t, 2, "-DTLS"), []api.Code{"tls_image_differs"}, 7},
		{"thread-local at a fixed place", mixedBuild(t, 2, "-DSTATIC"), []api.Code{"tls_initial_exec"}, 7},
		{"thread-local descriptors", mixedBuild(t, 2, "-mtls-dialect=gnu2"), []api.Code{"tls_descriptor"}, 7},
		{"IFUNC", mixedBuild(t, 2, "-DIFUNC"), []api.Code{"ifunc_export"}, 7},
		{"one more library", testbed.MustCompile(t, libm), []api.Code{"needed_added"}, 7},
		{"an executable", filepath.Join(filepath.Dir(m.loaded), "mixed"), []api.Code{"not_a_library"}, 7},
		{"another machine", altered(t, second, func(b []byte) []byte { b[18] = byte(elf.EM_AARCH64); return b }), []api.Code{"architecture_differs", "not_elf"}, 7},
		{"32-bit", altered(t, second, func(b []byte) []byte { b[4] = byte(elf.ELFCLASS32); return b }), []api.Code{"not_elf"}, 7},
		{"no ELF object", altered(t, second, func([]byte) []byte { return []byte("#!/bin/sh\n") }), []api.Code{"not_elf"}, 7},
		{"an empty file", altered(t, second, func([]byte) []byte { return nil }), []api.Code{"not_elf"}, 7},
		{"half a file", altered(t, second, func(b []byte) []byte { return b[:len(b)/2] }), []api.Code{"not_elf", "object_malformed"}, 7},
		{"a page of a file", altered(t, second, func(b []byte) []byte { return b[:4096] }), []api.Code{"not_elf", "object_malformed"}, 7},
		{"writable by others", copied(func(p string) error { return os.Chmod(p, 0o666) }), []api.Code{"file_untrusted"}, 7},
		{"writable by a group", copied(func(p string) error { return os.Chmod(p, 0o664) }), []api.Code{"file_untrusted"}, 7},
		{"of another user", copied(func(p string) error { return os.Chown(p, 65534, 65534) }), []api.Code{"file_untrusted"}, 7},
		{"a FIFO", special(func(p string) error { return syscall.Mkfifo(p, 0o644) }), []api.Code{"not_regular"}, 7},
		{"a folder", special(func(p string) error { return os.Mkdir(p, 0o755) }), []api.Code{"not_regular"}, 7},
		{"a device", "/dev/null", []api.Code{"not_regular"}, 7},
		{"nothing", "/no/such/file", nil, 1},
		{"a link to nothing", special(func(p string) error { return os.Symlink("/no/such/file", p) }), nil, 1},
		{"a link to itself", special(func(p string) error { return os.Symlink(p, p) }), nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := inventory(t, m.pid)
			for _, dry := range []string{"--dry-run", "--quiet"} {
				r := vos(t, "replace", m.module(), "--with", c.file, "--json", dry).expect(t, c.code)
				got := refusals(t, r)
				if r.Stderr == "" {
					t.Error("nothing is said about it")
				}
				if len(c.want) > 0 && !slices.ContainsFunc(got, func(r api.Refusal) bool { return slices.Contains(c.want, r.Code) }) {
					t.Errorf("refused for %v, want %v\n%s", got, c.want, r.Stderr)
				}
			}
			untouched(t, before)
			m.runs(t, 1)
		})
	}
	t.Run("the same build", func(t *testing.T) {
		before := inventory(t, m.pid)
		for _, file := range []string{m.loaded, altered(t, m.loaded, same)} {
			took(t, vos(t, "replace", m.module(), "--with", file, "--json"), api.Clean)
		}
		untouched(t, before)
		m.runs(t, 1)
	})
	m.replace(t, second)
	m.runs(t, 2)
	m.rollback(t)
	m.runs(t, 1)
}

// TestReplaceOfWhatIsNoLibrary names modules that can't be replaced by any build.
func TestReplaceOfWhatIsNoLibrary(t *testing.T) {
	m := runMixed(t, form{})
	c := altered(t, find(t, inspect(t, m.pid), libc).Path, func(b []byte) []byte { b[buildIDOffset(t, b)] ^= 1; return b })
	before := inventory(t, m.pid)
	for module, want := range map[string]api.Code{
		"mixed": "not_replaceable", "ld-linux-x86-64.so.2": "not_replaceable", "[vdso]": "not_replaceable", libc: "c_library",
	} {
		r := vos(t, "replace", m.target()+":"+module, "--with", c, "--json").expect(t, 7)
		if got := refusals(t, r); !slices.ContainsFunc(got, func(r api.Refusal) bool { return r.Code == want }) {
			t.Errorf("%s: refused for %v, want %s", module, got, want)
		}
	}
	untouched(t, before)
	m.runs(t, 1)
}

// TestReplaceOfACorruptModule needs the running text to be what its file says.
func TestReplaceOfACorruptModule(t *testing.T) {
	m := runMixed(t, form{})
	refused := func() {
		t.Helper()
		before := inventory(t, m.pid)
		if got := refusals(t, vos(t, "replace", m.module(), "--with", mixedBuild(t, 3), "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "module_corrupt" {
			t.Fatalf("refused for %v", got)
		}
		untouched(t, before)
		vos(t, "refresh", m.module()).expect(t, 0)
		vos(t, "verify", "--full", m.target()).expect(t, 0)
	}
	corruptGap(t, m.pid, mixedLibrary)
	refused()
	m.replace(t, mixedBuild(t, 2))
	m.runs(t, 2)
	corruptGap(t, m.pid, mixedLibrary)
	refused()
	m.runs(t, 2)
	m.replace(t, mixedBuild(t, 3))
	m.runs(t, 3)
}

// TestReplaceWhereNothingCanBeMapped leaves a program as it was that may have no
// more memory, descriptors, or system calls.
func TestReplaceWhereNothingCanBeMapped(t *testing.T) {
	for limit, want := range map[string]api.Code{"files": "staging_failed", "memory": "staging_failed", "seccomp": "seccomp"} {
		t.Run(limit, func(t *testing.T) {
			m := runMixed(t, form{}, limit)
			before := inventory(t, m.pid)
			for range 3 {
				r := vos(t, "replace", m.module(), "--with", mixedBuild(t, 2), "--json").expect(t, 7)
				got := refusals(t, r) // one for each file that would be mapped
				if len(got) == 0 || slices.ContainsFunc(got, func(r api.Refusal) bool { return r.Code != want }) {
					t.Fatalf("refused for %v, want %s", got, want)
				}
				untouched(t, before)
			}
			m.runs(t, 1)
			vos(t, "verify", "--full", m.target()).expect(t, 0)
		})
	}
}

// TestReplaceWithAPathThatChanges swaps what a link leads to all the time: what
// was opened counts, wholly.
func TestReplaceWithAPathThatChanges(t *testing.T) {
	m := runMixed(t, form{})
	second := mixedBuild(t, 2)
	folder := publicFolder(t)
	link := filepath.Join(folder, mixedLibrary)
	wrong := altered(t, second, func(b []byte) []byte { return b[:len(b)/3] })
	if err := os.Symlink(second, link); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			fresh := filepath.Join(folder, "fresh")
			if err := os.Symlink([]string{second, wrong, folder}[n%3], fresh); err != nil {
				t.Error(err)
				return
			}
			if err := os.Rename(fresh, link); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	defer swapper.Wait()
	defer close(stop)
	replaced := 0
	for n := 0; n < 20 || replaced == 0 && n < 200; n++ {
		r := vos(t, "replace", m.module(), "--with", link, "--json")
		switch r.Code {
		case 0:
			replaced++
			m.runs(t, 2)
			m.rollback(t)
			m.runs(t, 1)
		case 7:
			for _, refusal := range refusals(t, r) {
				if !strings.HasPrefix(string(refusal.Code), "not_") && refusal.Code != "object_malformed" {
					t.Errorf("refused for %v", refusal)
				}
			}
			m.runs(t, 1)
		default:
			t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
		}
	}
	if replaced == 0 {
		t.Error("it was never replaced")
	}
}
