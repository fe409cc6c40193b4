package live

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestReplaceInCPlusPlus lets builds of a C++ library take turns: objects that one
// made are worked on by another, and exceptions pass through frames of both.
func TestReplaceInCPlusPlus(t *testing.T) {
	const library = "libraising.so"
	for _, f := range []form{
		{name: "usual"},
		{name: "not optimised", library: []string{"-O0"}},
		{name: "cf-protection", library: []string{"-fcf-protection"}},
		{name: "lazily bound", program: []string{"-Wl,-z,lazy"}, library: []string{"-Wl,-z,lazy"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			part := func(build int) testbed.Build {
				return testbed.Build{Name: library, Language: "c++", Source: text(t, "raising_lib.cc"),
					Flags: append([]string{"-shared", "-fPIC", "-Wl,-soname," + library, fmt.Sprintf("-DBUILD=%d", build)}, f.library...)}
			}
			program := testbed.MustCompile(t, testbed.Build{Name: "raising", Language: "c++", Source: text(t, "raising.cc"),
				Files: []string{"report.h"}, Flags: append([]string{"-fpermissive", "-w"}, f.program...), Parts: []testbed.Build{part(1)}})
			s, fixture := start(t, testbed.FixtureOptions{}, program)
			module := s.target() + ":" + library
			runs := func(build int64) {
				t.Helper()
				s.unharmed(t)
				if got := s.last.Counts["build"]; got != build {
					t.Fatalf("build %d runs, not %d", got, build)
				}
			}
			replace := func(build int) {
				t.Helper()
				file := filepath.Join(filepath.Dir(testbed.MustCompile(t, part(build))), library)
				took(t, vos(t, "replace", module, "--with", file, "--json"), api.Replaced)
				runs(int64(build))
			}
			rollback := func(build int64) {
				t.Helper()
				took(t, vos(t, "rollback", module, "--json"), api.RolledBack)
				runs(build)
			}
			runs(1)
			for range 3 {
				replace(2)
				rollback(1)
				replace(3)
				replace(2)
				rollback(3)
				rollback(1)
			}
			replace(3)
			if err := syscall.Kill(s.pid, syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			await(t, "exceptions through frames of the first build", func() bool {
				report, err := fixture.Report(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return report.Counts["passed"] == 2
			})
			runs(3)
			rollback(1)
			vos(t, "verify", "--full", s.target()).expect(t, 0)
		})
	}
}
