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
	for _, mark := range []byte{3, 7} {
		build := Zlib.MustOriginal(t)
		if mark == 7 {
			build = Zlib.MustRebuilt(t, "7")
		}
		libraries := RunLibraries(t, build)
		n := RunNginx(t, NginxOptions{Env: libraries.Env()})
		for _, pid := range n.Pids() {
			checkMapped(t, pid, libraries, Zlib.Soname)
		}
		total := checkServed(t, n.Load(t.Context(), LoadOptions{}))
		if total.Marks[mark] != total.Served {
			t.Errorf("%d answers, by mark: %v, not all %d", total.Served, total.Marks, mark)
		}
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
	if total := fresh.Stop(); total.Failed != 0 || total.Connections < 10 {
		t.Errorf("new connections: %v", total)
	}
}

func TestNginxMatchesExpressions(t *testing.T) {
	for _, main := range []string{"", "pcre_jit on;"} {
		libraries := RunLibraries(t, MustLibraryBuilds(t, "libpcre2-8-0", "libpcre2-8.so.0")[0])
		n := RunNginx(t, NginxOptions{Regex: true, Main: main, Env: libraries.Env()})
		for _, pid := range n.Pids() {
			checkMapped(t, pid, libraries, "libpcre2-8.so.0")
		}
		checkServed(t, n.Load(t.Context(), LoadOptions{}))
	}
}
