package live

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestReplaceByDebugFiles replaces stripped builds whose code looks as if a
// structure had another layout: debug files tell whether it has.
func TestReplaceByDebugFiles(t *testing.T) {
	const library = "libdebugged.so"
	objcopy := testbed.NeedTool(t, "objcopy")
	part := func(build int, flags ...string) testbed.Build {
		usual := []string{"-shared", "-fPIC", "-Wl,-soname," + library, fmt.Sprintf("-DBUILD=%d", build)}
		return testbed.Build{Name: library, Source: text(t, "debugged_lib.c"), Flags: append(usual, flags...)}
	}
	// split makes of a build what distributions make: a library, and its debug file.
	split := func(path string) (stripped, debug string) {
		t.Helper()
		folder := publicFolder(t)
		stripped, debug = filepath.Join(folder, library), filepath.Join(folder, library+".debug")
		for _, args := range [][]string{{"--strip-unneeded", path, stripped}, {"--only-keep-debug", path, debug}} {
			if out, err := exec.Command(objcopy, args...).CombinedOutput(); err != nil {
				t.Fatalf("objcopy %v: %v: %s", args, err, out)
			}
		}
		return stripped, debug
	}
	program := testbed.MustCompile(t, testbed.Build{
		Name: "debugged", Source: text(t, "debugged.c"), Files: []string{"report.h"}, Parts: []testbed.Build{part(1)},
	})
	first, firstDebug := split(filepath.Join(filepath.Dir(program), library))
	second, secondDebug := split(testbed.MustCompile(t, part(2)))
	swapped, swappedDebug := split(testbed.MustCompile(t, part(2, "-DSWAPPED")))
	folder := publicFolder(t)
	copyFile(t, program, filepath.Join(folder, "debugged"))
	copyFile(t, first, filepath.Join(folder, library))
	s, _ := start(t, testbed.FixtureOptions{}, filepath.Join(folder, "debugged"))
	runs := func(build int64) {
		t.Helper()
		s.unharmed(t)
		if got := s.last.Counts["build"]; got != build {
			t.Fatalf("build %d runs, not %d", got, build)
		}
	}
	replace := func(with string, more ...string) result {
		return vos(t, append([]string{"replace", s.target() + ":" + library, "--json", "--with", with}, more...)...)
	}
	runs(1)
	for _, c := range []struct {
		name, with string
		debug      []string
		want       api.Code
	}{
		{"no debug file", second, nil, "layout_drift"},
		{"one debug file", second, []string{"--debug-file", secondDebug}, "layout_drift"},
		{"debug files of other builds", second, []string{"--debug-file", swappedDebug, "--old-debug-file", firstDebug}, "debug_file_differs"},
		{"another layout", swapped, []string{"--debug-file", swappedDebug, "--old-debug-file", firstDebug}, "layout_changed"},
	} {
		before := inventory(t, s.pid)
		got := refusals(t, replace(c.with, c.debug...).expect(t, 7))
		if !slices.ContainsFunc(got, func(r api.Refusal) bool { return r.Code == c.want }) {
			t.Errorf("%s: refused for %v, want %s", c.name, got, c.want)
		}
		untouched(t, before)
		runs(1)
	}
	took(t, replace(second, "--debug-file", secondDebug, "--old-debug-file", firstDebug), api.Replaced)
	runs(2)
	took(t, vos(t, "rollback", s.target()+":"+library, "--json"), api.RolledBack)
	runs(1)
	took(t, replace(second, "--debug-file", secondDebug, "--old-debug-file", firstDebug), api.Replaced)
	runs(2)
	vos(t, "verify", "--full", s.target()).expect(t, 0)
}
