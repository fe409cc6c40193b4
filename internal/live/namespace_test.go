package live

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestOtherNamespacesAreHealed heals programs whose files, pids, networks and
// users are not those that vos sees.
func TestOtherNamespacesAreHealed(t *testing.T) {
	tests := []struct {
		name string
		wrap func(t *testing.T, program string) []string // what runs the program, whose path comes last
		path func(t *testing.T, folder string) string    // of the program within; where it is compiled if nil
	}{
		{"mount namespace with a private tmpfs", func(t *testing.T, program string) []string {
			return []string{"unshare", "--mount", "sh", "-ec",
				`mount -t tmpfs private "${1%/*}"; cp -r "$0"/. "${1%/*}"; exec "$1"`, filepath.Dir(program)}
		}, inside},
		{"overlay as root directory, as in a container", func(t *testing.T, program string) []string {
			return []string{"unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "sh", "-ec",
				`mount -t tmpfs layers "$0"; mkdir "$0"/upper "$0"/work "$0"/root
				mount -t overlay overlay -o lowerdir=/,upperdir="$0"/upper,workdir="$0"/work "$0"/root
				mount -t proc proc "$0"/root/proc; exec chroot "$0"/root "$1"`, publicFolder(t)}
		}, nil},
		{"pid namespace, as its first process", func(*testing.T, string) []string {
			return []string{"unshare", "--pid", "--fork", "--mount-proc"}
		}, nil},
		{"pid namespace in a pid namespace", func(*testing.T, string) []string {
			const child = `"$0" "$@"; exit $?`
			return []string{"unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", child,
				"unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", child}
		}, nil},
		{"network namespace", func(*testing.T, string) []string { return []string{"unshare", "--net"} }, nil},
		{"user namespace", func(*testing.T, string) []string { return []string{"unshare", "--user", "--map-root-user"} }, nil},
		{"time, ipc and uts namespaces", func(*testing.T, string) []string {
			return []string{"unshare", "--time", "--monotonic", "100000", "--boottime", "100000", "--ipc", "--uts", "--fork"}
		}, nil},
		{"changed root directory", func(t *testing.T, program string) []string {
			return []string{"chroot", rootFolder(t, program)}
		}, func(*testing.T, string) string { return "/bin/cxx" }},
		{"another user", func(t *testing.T, program string) []string { return asUser() },
			func(t *testing.T, program string) string { return public(t, program) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			program := compiled(t, "cxx")
			argv := test.wrap(t, program)
			path := program
			if test.path != nil {
				path = test.path(t, program)
			}
			s, f := start(t, testbed.FixtureOptions{
				Wrap: func(own []string) []string { return append(argv, own...) },
			}, path)
			s.pid = descendant(t, f.Pid(), "cxx")
			for _, m := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
				if m.Outdated || !m.Refreshable || m.Kind != "vdso" && m.File != api.FileSame {
					t.Errorf("%s: file %s, outdated %v, refreshable %v, %v", m.Path, m.File, m.Outdated, m.Refreshable, m.Refusals)
				}
			}
			heal(t, s, vos, "cxx", loader, libc, "libthrower.so", "libstdc++.so.6")
		})
	}
}

// inside is the program's path in a folder that is empty from outside.
func inside(t *testing.T, program string) string {
	return filepath.Join(publicFolder(t), filepath.Base(program))
}

// rootFolder makes a root directory in which a program can run as /bin/NAME.
func rootFolder(t *testing.T, program string) string {
	t.Helper()
	root := publicFolder(t)
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		t.Fatalf("ldd: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			switch {
			case strings.HasPrefix(word, filepath.Dir(program)): // $ORIGIN needs /proc
				copyFile(t, word, filepath.Join(root, "lib/x86_64-linux-gnu", filepath.Base(word)))
			case strings.HasPrefix(word, "/"):
				copyFile(t, word, filepath.Join(root, word))
			}
		}
	}
	copyFile(t, program, filepath.Join(root, "bin", filepath.Base(program)))
	return root
}

// descendant returns the process below pid, or pid itself, that runs a program.
func descendant(t *testing.T, pid int, name string) int {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && string(bytes.TrimSpace(comm)) == name {
		return pid
	}
	for _, child := range testbed.Children(pid) {
		return descendant(t, child, name)
	}
	t.Fatalf("no %s runs below process %d", name, pid)
	return 0
}

// nobody is a user without rights.
const nobody = 65534

// asUser is the begin of a command line that is carried out as nobody.
func asUser() []string {
	id := strconv.Itoa(nobody)
	return []string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"}
}

// public copies a program and what lies beside it to where all users may run it.
func public(t *testing.T, program string) string {
	t.Helper()
	folder := publicFolder(t)
	names, err := os.ReadDir(filepath.Dir(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		copyFile(t, filepath.Join(filepath.Dir(program), name.Name()), filepath.Join(folder, name.Name()))
	}
	return filepath.Join(folder, filepath.Base(program))
}

// vosAsUser returns vos, run as nobody.
func vosAsUser(t *testing.T) func(t *testing.T, args ...string) result {
	t.Helper()
	path := filepath.Join(publicFolder(t), "vos")
	copyFile(t, binary, path)
	return func(t *testing.T, args ...string) result {
		t.Helper()
		var stdout, stderr bytes.Buffer
		argv := append(append(asUser(), path), args...)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = filepath.Dir(path)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatalf("vos %v: %v", args, err)
		}
		return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	}
}

// TestOrdinaryUserHealsOwnProgram runs vos without any right of root.
func TestOrdinaryUserHealsOwnProgram(t *testing.T) {
	path, run := public(t, compiled(t, "cxx")), vosAsUser(t)
	s, _ := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string { return append(asUser(), argv...) }}, path)
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(bytes.TrimSpace(scope)) != "0" {
		t.Logf("Yama forbids users to trace their own programs (ptrace_scope %s)", scope)
		corruptGap(t, s.pid, libc)
		run(t, "refresh", s.target()).expect(t, 5)
		s.unharmed(t)
		return
	}
	heal(t, s, run, "cxx", loader, libc, "libthrower.so")

	// Without the right to open what is mapped, a file that is no longer at its
	// path can't be compared with: that is said, and the others are healed.
	library := filepath.Join(filepath.Dir(path), "libthrower.so")
	if err := os.Remove(library); err != nil {
		t.Fatal(err)
	}
	corruptGap(t, s.pid, libc)
	r := run(t, "refresh", s.target(), "--json").expect(t, 3)
	for _, o := range operations(t, r) {
		switch {
		case o.Module == "libthrower.so" && (o.Outcome != api.Refused || len(o.Refusals) != 1 || o.Refusals[0].Code != "file_unreadable"),
			o.Module == libc && o.Outcome != api.Refreshed:
			t.Errorf("%s: %s %v", o.Module, o.Outcome, o.Refusals)
		}
	}
	run(t, "verify", s.target()).expect(t, 3)
	vos(t, "verify", s.target(), "--full").expect(t, 0)
	s.unharmed(t)
}

// TestOrdinaryUserMayNotTouchOthers runs vos as a user on a program of root.
func TestOrdinaryUserMayNotTouchOthers(t *testing.T) {
	s, run := fixture(t, "plain"), vosAsUser(t)
	at := corruptGap(t, s.pid, libc)
	for _, command := range []string{"verify", "refresh", "modules"} {
		r := run(t, command, s.target()).expect(t, 5)
		if r.Stdout != "" || !strings.Contains(r.Stderr, "remedy: run as root") {
			t.Errorf("vos %s: %s%s", command, r.Stdout, r.Stderr)
		}
	}
	programs := lines[api.Program](t, run(t, "ps", s.target(), "--json").expect(t, 0))
	if len(programs) != 1 || !programs[0].Partial || len(programs[0].Unread) == 0 || programs[0].Name != "plain" {
		t.Errorf("vos ps: %+v", programs)
	}
	if d := differences(t, vos(t, "verify", s.target(), "--json").expect(t, 10)); len(d) != 1 || d[0].Address != fmt.Sprintf("0x%x", at) {
		t.Errorf("it was touched: %+v", d)
	}
	s.unharmed(t)
}

// TestNamesThatMislead heals programs whose files have names that may be taken
// for something else, while they are there and after they were deleted.
func TestNamesThatMislead(t *testing.T) {
	for _, name := range []string{"x (deleted)", "a\nb", "1234", "--all", "y:z", "a b\tc"} {
		t.Run(strconv.Quote(name), func(t *testing.T) {
			path := filepath.Join(publicFolder(t), name)
			copyFile(t, compiled(t, "plain"), path)
			s, _ := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
				return append([]string{"bash", "-c", `exec -a plain "$0"`}, argv...) // it reports as plain
			}}, path)
			found := false
			for _, m := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
				if m.Kind == "executable" {
					found = m.Path == path && m.File == api.FileSame
				}
			}
			if !found {
				t.Errorf("its executable is not known as %q", path)
			}
			heal(t, s, vos, name, libc)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			heal(t, s, vos, name, libc)
			for _, m := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
				if m.Kind == "executable" && (m.File != api.FileDeleted || !m.Outdated) {
					t.Errorf("deleted, but its file is said to be %s, outdated %v", m.File, m.Outdated)
				}
			}
		})
	}
}

// TestIDsOfAnotherNamespace heals a program of many threads whose ids, as it knows
// them itself, are those of other processes outside.
func TestIDsOfAnotherNamespace(t *testing.T) {
	s, f := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
		return append([]string{"unshare", "--pid", "--fork", "--mount-proc"}, argv...)
	}}, compiled(t, "threads"), "16", "mixed", "1")
	s.pid = descendant(t, f.Pid(), "threads")
	p, err := procfs.Open(s.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	status, err := p.Status()
	if err != nil || len(status.NSPIDs) != 2 || status.NSPIDs[1] != 1 {
		t.Fatalf("its ids are %v, %v", status.NSPIDs, err)
	}
	for range 5 {
		heal(t, s, vos, "threads", libc, loader)
	}
}
