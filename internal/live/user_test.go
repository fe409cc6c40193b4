package live

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// publicMixed runs mixed, in a folder for all users, as a user or, if wrap is nil, as
// root. The second build lies there too, and is root's.
func publicMixed(t *testing.T, wrap func([]string) []string) (m *mixed, second string) {
	t.Helper()
	program := testbed.MustCompile(t, testbed.Build{
		Name: "mixed", Source: text(t, "mixed.c"), Files: []string{"report.h"}, Parts: []testbed.Build{mixedPart(t, 1)},
	})
	program = public(t, program)
	second = filepath.Join(publicFolder(t), mixedLibrary)
	copyFile(t, mixedBuild(t, 2), second)
	m = &mixed{loaded: filepath.Join(filepath.Dir(program), mixedLibrary)}
	m.subject, m.Fixture = start(t, testbed.FixtureOptions{Wrap: wrap}, program)
	return m, second
}

// TestOrdinaryUserReplacesInOwnProgram runs vos without any right of root: builds
// of root and of the user take over, those of another user do not.
func TestOrdinaryUserReplacesInOwnProgram(t *testing.T) {
	run := vosAsUser(t)
	m, second := publicMixed(t, func(argv []string) []string { return append(asUser(), argv...) })
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(bytes.TrimSpace(scope)) != "0" {
		t.Logf("Yama forbids users to trace their own programs (ptrace_scope %s)", scope)
		run(t, "replace", m.module(), "--with", second).expect(t, 5)
		m.runs(t, 1)
		return
	}
	took(t, run(t, "replace", m.module(), "--with", second, "--json"), api.Replaced)
	m.runs(t, 2)
	took(t, run(t, "rollback", m.module(), "--json"), api.RolledBack)
	m.runs(t, 1)
	third := filepath.Join(publicFolder(t), mixedLibrary)
	copyFile(t, mixedBuild(t, 3), third)
	if err := os.Chown(third, nobody-1, nobody-1); err != nil {
		t.Fatal(err)
	}
	if got := refusals(t, run(t, "replace", m.module(), "--with", third, "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "file_untrusted" {
		t.Errorf("a build of another user: %v", got)
	}
	m.runs(t, 1)
	if err := os.Chown(third, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	took(t, run(t, "replace", m.module(), "--with", third, "--json"), api.Replaced)
	m.runs(t, 3)
	took(t, run(t, "replace", m.module(), "--with", second, "--json"), api.Replaced) // it is there already
	m.runs(t, 2)
	// Root goes on with what the user's vos left.
	m.rollback(t)
	m.runs(t, 3)
	m.rollback(t)
	m.runs(t, 1)
	vos(t, "verify", "--full", m.target()).expect(t, 0)
}

// TestOrdinaryUserMayNotReplaceInOthers runs vos as a user on a program of root.
func TestOrdinaryUserMayNotReplaceInOthers(t *testing.T) {
	run := vosAsUser(t)
	m, second := publicMixed(t, nil)
	before := inventory(t, m.pid)
	for _, args := range [][]string{{"--with", second}, {"--with", second, "--dry-run"}} {
		if r := run(t, append([]string{"replace", m.module()}, args...)...).expect(t, 5); r.Stdout != "" || r.Stderr == "" {
			t.Errorf("vos replace %v: %s%s", args, r.Stdout, r.Stderr)
		}
	}
	untouched(t, before)
	m.replace(t, second)
	before = inventory(t, m.pid)
	run(t, "rollback", m.module()).expect(t, 5)
	untouched(t, before)
	m.runs(t, 2)
}
