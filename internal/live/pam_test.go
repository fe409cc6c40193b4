package live

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestReplaceOfAPAMModule replaces a module that libpam opens for a transaction
// that is kept and for others that come and go: what the module remembers of the
// first, and the function by which libpam frees it, hold.
func TestReplaceOfAPAMModule(t *testing.T) {
	const name = "pam_turn.so"
	build := func(n int) string {
		return testbed.MustCompile(t, testbed.Build{
			Name: name, Source: text(t, "pam_turn.c"), Flags: []string{"-shared", "-fPIC", fmt.Sprintf("-DBUILD=%d", n)},
		})
	}
	folder := publicFolder(t)
	copyFile(t, build(1), filepath.Join(folder, name))
	rules := fmt.Sprintf("auth required %s turn\n", filepath.Join(folder, name))
	if err := os.WriteFile(filepath.Join(folder, "turn"), []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	program := testbed.MustCompile(t, testbed.Build{
		Name: "pam", Source: text(t, "pam.c"), Files: []string{"report.h"}, Libs: []string{"-l:libpam.so.0"},
	})
	s, _ := start(t, testbed.FixtureOptions{}, program, folder)
	answers := func(build int) {
		t.Helper()
		s.unharmed(t)
		before := s.last.Counts
		s.unharmed(t)
		for _, of := range []string{"kept", "fresh"} {
			this, other := fmt.Sprintf("%s.%d", of, build), fmt.Sprintf("%s.%d", of, 3-build)
			if s.last.Counts[this] == before[this] || s.last.Counts[other] != before[other] {
				t.Fatalf("build %d is to answer: %v, then %v", build, before, s.last.Counts)
			}
		}
	}
	answers(1)
	for range 2 {
		took(t, vos(t, "replace", s.target()+":"+name, "--with", build(2), "--json"), api.Replaced)
		answers(2)
		took(t, vos(t, "rollback", s.target()+":"+name, "--json"), api.RolledBack)
		answers(1)
	}
	took(t, vos(t, "replace", s.target()+":"+name, "--with", build(2), "--json"), api.Replaced)
	answers(2)
	vos(t, "verify", "--full", s.target()).expect(t, 0)
}
