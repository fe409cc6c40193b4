package testbed

import (
	"slices"
	"testing"
	"time"
)

// checkMapped fails the test if a process does not run with the libraries.
func checkMapped(t *testing.T, pid int, l *Libraries, sonames ...string) {
	t.Helper()
	for _, soname := range sonames {
		if files, err := MappedFiles(pid, soname); err != nil || !slices.Equal(files, []string{l.Path(soname)}) {
			t.Errorf("process %d has mapped %v, %v, not %s", pid, files, err, l.Path(soname))
		}
	}
}

// Which build of libz compresses shows in every answer.
func TestNginxShowsItsZlib(t *testing.T) {
	for mark, build := range map[string]LibraryBuild{"gzip 3": Zlib.MustOriginal(t), "gzip 7": Zlib.MustRebuilt(t, "7")} {
		libraries := RunLibraries(t, build)
		n := RunNginx(t, NginxOptions{Env: libraries.Env()})
		for _, pid := range n.Pids() {
			checkMapped(t, pid, libraries, Zlib.Soname)
		}
		total := checkServed(t, n.Load(t.Context(), LoadOptions{}))
		if total.Marks[mark] != total.Served {
			t.Errorf("%d answers, by mark: %v, not all %s", total.Served, total.Marks, mark)
		}
	}
}

// A program that runs does not see an upgrade: it goes on with a file that has no
// name any more.
func TestNginxRunsOnAfterAnUpgrade(t *testing.T) {
	libraries := RunLibraries(t, Zlib.MustOriginal(t))
	n := RunNginx(t, NginxOptions{Env: libraries.Env()})
	load := n.Load(t.Context(), LoadOptions{})
	if err := load.Await(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	if err := libraries.Install(Zlib.MustRebuilt(t, "7")); err != nil {
		t.Fatal(err)
	}
	for _, pid := range n.Pids() {
		if files, err := MappedFiles(pid, Zlib.Soname); err != nil || !slices.Equal(files, []string{libraries.Path(Zlib.Soname) + " (deleted)"}) {
			t.Errorf("process %d has mapped %v, %v", pid, files, err)
		}
	}
	if marks, err := load.NextMarks(t.Context(), 50); err != nil || len(marks) != 1 || marks["gzip 3"] < 50 {
		t.Errorf("by mark: %v, %v, want 50 of gzip 3", marks, err)
	}
	if total := load.Stop(); total.Failed != 0 {
		t.Error(total)
	}
}

// Clients shake hands once and keep the connection.
func TestNginxServesTLS(t *testing.T) {
	var old []LibraryBuild
	for _, soname := range []string{"libssl.so.3", "libcrypto.so.3"} {
		old = append(old, MustLibraryBuilds(t, "libssl3", soname)[0])
	}
	libraries := RunLibraries(t, old...)
	n := RunNginx(t, NginxOptions{TLS: true, Env: libraries.Env()})
	for _, pid := range n.Pids() {
		checkMapped(t, pid, libraries, "libssl.so.3", "libcrypto.so.3")
	}
	total := checkServed(t, n.Load(t.Context(), LoadOptions{Conns: 20, Fresh: -1}))
	if total.Connections != 20 {
		t.Errorf("%d connections of 20 clients", total.Connections)
	}
	fresh := n.Load(t.Context(), LoadOptions{})
	time.Sleep(300 * time.Millisecond)
	if total := fresh.Stop(); total.Failed != 0 || total.Connections < 6 {
		t.Errorf("new connections: %v", total)
	}
}

// Which build of libpcre2 matches shows in some answers, except where it makes
// machine code of expressions.
func TestNginxMatchesExpressions(t *testing.T) {
	original, changed := Pcre2.MustOriginal(t), Pcre2.MustRebuilt(t, "!")
	for _, run := range []struct {
		build      LibraryBuild
		main, mark string
	}{{original, "", "usual"}, {original, "pcre_jit on;", "usual"}, {changed, "", "other"}, {changed, "pcre_jit on;", "usual"}} {
		libraries := RunLibraries(t, run.build)
		n := RunNginx(t, NginxOptions{Regex: true, Main: run.main, Env: libraries.Env()})
		for _, pid := range n.Pids() {
			checkMapped(t, pid, libraries, Pcre2.Soname)
		}
		total := checkServed(t, n.Load(t.Context(), LoadOptions{}))
		if total.Marks[run.mark] == 0 || total.Marks["usual"]+total.Marks["other"] != total.Marks[run.mark] {
			t.Errorf("%s with %q: by mark: %v, not all %s", run.build.Version, run.main, total.Marks, run.mark)
		}
	}
}
