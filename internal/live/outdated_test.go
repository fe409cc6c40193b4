package live

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// upgradedSoname is what the library is called that the tests replace.
const upgradedSoname = "libupgraded.so.1"

// upgradedProgram compiles a program that opens libraries as it is told.
func upgradedProgram(t *testing.T) string {
	t.Helper()
	return testProgram(t, "upgraded")
}

// generation compiles a build of the library.
func generation(t *testing.T, n int) string {
	t.Helper()
	return testbed.MustCompile(t, testbed.Build{
		Name: fmt.Sprintf("libupgraded.so.1.%d", n), Source: fmt.Sprintf("int generation(void) { return %d; }\n", n),
		Flags: []string{"-shared", "-fPIC", "-Wl,-soname," + upgradedSoname, "-Wl,--build-id"},
	})
}

// lastingFolder makes a folder that is not one for temporary files.
func lastingFolder(t *testing.T) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp(base, "vos-live-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// replaceFile puts another file at a path, as package managers do: by a rename.
func replaceFile(t *testing.T, from, to string) {
	t.Helper()
	copyFile(t, from, to+".dpkg-new")
	if err := os.Rename(to+".dpkg-new", to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// buildID returns what readelf says of a file.
func buildID(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("readelf", "-n", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(out), "Build ID: ")
	id, _, _ := strings.Cut(after, "\n")
	if !found || len(id) < 16 {
		t.Fatalf("%s has no build-id", path)
	}
	return id
}

// outdated returns what vos outdated says of a process, and checks its exit code.
func outdated(t *testing.T, s *subject, code int) []api.OutdatedModule {
	t.Helper()
	return lines[api.OutdatedModule](t, vos(t, "outdated", s.target(), "--json").expect(t, code))
}

// current checks that nothing of a process is outdated.
func current(t *testing.T, s *subject) {
	t.Helper()
	if found := outdated(t, s, 0); len(found) > 0 {
		t.Errorf("false alarm: %+v", found)
	}
}

// TestOutdatedModules replaces and deletes the files of libraries under a
// program, in every way that happens.
func TestOutdatedModules(t *testing.T) {
	folder, fleeting := lastingFolder(t), publicFolder(t)
	program, old, new := filepath.Join(folder, "upgraded"), generation(t, 1), generation(t, 2)
	copyFile(t, upgradedProgram(t), program)
	at := func(name string) string { return filepath.Join(folder, name) }
	for _, name := range []string{"replaced/lib.so", "deleted/lib.so", "again/lib.so", "kept/lib.so", "versioned/libupgraded.so.1.1", "alike/libupgraded.so.1.1"} {
		copyFile(t, old, at(name))
	}
	symlink(t, "libupgraded.so.1.1", at("versioned/"+upgradedSoname))
	symlink(t, "libupgraded.so.1.1", at("alike/"+upgradedSoname))
	unpacked := filepath.Join(fleeting, "unpacked.so")
	copyFile(t, old, unpacked)
	s, _ := start(t, testbed.FixtureOptions{}, program, at("replaced/lib.so"), at("deleted/lib.so"), at("again/lib.so"), at("kept/lib.so"),
		at("versioned/"+upgradedSoname), at("alike/"+upgradedSoname), "memfd="+old, "delete="+unpacked)

	temporary := api.OutdatedModule{
		PID: s.pid, Program: "upgraded", Module: upgradedSoname, Path: unpacked, RunningBuildID: buildID(t, old),
		Change: api.FileDeleted, Verdict: api.VerdictNone, Refusals: []api.Refusal{},
	}
	check := func(code int, want ...api.OutdatedModule) {
		t.Helper()
		found := make(map[string]api.OutdatedModule)
		for _, m := range outdated(t, s, code) {
			// What this test runs in is not what it is about.
			m.Unit, m.UserUnit, m.Container = "", false, ""
			found[m.Path] = m
		}
		expected := map[string]api.OutdatedModule{unpacked: temporary}
		for _, m := range want {
			expected[m.Path] = m
		}
		if diff := cmp.Diff(expected, found); diff != "" {
			t.Error(diff)
		}
	}
	check(0)
	r := vos(t, "outdated", s.target()).expect(t, 0)
	if r.Stdout != "" || !strings.Contains(r.Stderr, "nothing outdated") {
		t.Errorf("%s%s", r.Stdout, r.Stderr)
	}

	replaceFile(t, new, at("replaced/lib.so"))
	remove(t, at("deleted/lib.so"))
	replaceFile(t, old, at("again/lib.so"))
	for folder, build := range map[string]string{"versioned": new, "alike": old} {
		remove(t, at(folder+"/"+upgradedSoname))
		remove(t, at(folder+"/libupgraded.so.1.1"))
		copyFile(t, build, at(folder+"/libupgraded.so.1.2"))
		symlink(t, "libupgraded.so.1.2", at(folder+"/"+upgradedSoname))
	}
	module := func(path, change, installed string) api.OutdatedModule {
		verdict := api.VerdictRestart
		if installed != "" {
			verdict = api.VerdictReplace
		}
		return api.OutdatedModule{
			PID: s.pid, Program: "upgraded", Module: upgradedSoname, Path: at(path), RunningBuildID: buildID(t, old),
			InstalledBuildID: installed, Change: change, Verdict: verdict, Refusals: []api.Refusal{},
		}
	}
	check(10, module("replaced/lib.so", api.FileReplaced, buildID(t, new)), module("deleted/lib.so", api.FileDeleted, ""),
		module("versioned/libupgraded.so.1.1", api.FileDeleted, buildID(t, new)))

	executable := module("upgraded", api.FileReplaced, buildID(t, new))
	executable.Module, executable.RunningBuildID, executable.Verdict = "upgraded", buildID(t, program), api.VerdictRestart
	executable.Obstacles = []api.Refusal{{Code: "not_replaceable", Subject: "upgraded",
		Detail: "it is the executable; libraries can be replaced", Remedy: "restart the program to use the new build"}}
	replaceFile(t, new, program)
	check(10, executable, module("replaced/lib.so", api.FileReplaced, buildID(t, new)), module("deleted/lib.so", api.FileDeleted, ""),
		module("versioned/libupgraded.so.1.1", api.FileDeleted, buildID(t, new)))
	if found := lines[api.OutdatedModule](t, vos(t, "outdated", s.target()+":upgraded", "--json").expect(t, 10)); len(found) != 1 {
		t.Errorf("asked about one module: %+v", found)
	}
	vos(t, "outdated", s.target()+":"+libc).expect(t, 0)
	s.unharmed(t)
}

// TestOutdatedPackages names packages and versions of a program in a root
// directory of its own, by dpkg's files there.
func TestOutdatedPackages(t *testing.T) {
	root := rootFolder(t, upgradedProgram(t))
	const inside = "/usr/lib/x86_64-linux-gnu/" + upgradedSoname
	copyFile(t, generation(t, 1), root+inside)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/dpkg/info/libupgraded1:amd64.list", "/.\n/lib\n/lib/x86_64-linux-gnu/"+upgradedSoname+"\n")
	write("var/lib/dpkg/status", "Package: libupgraded1\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.3-1\n")
	s, _ := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
		return append([]string{"chroot", root}, argv...)
	}}, "/bin/upgraded", inside)
	current(t, s)

	// dpkg notes times to the second, in the zone of the root: here UTC.
	time.Sleep(1100 * time.Millisecond)
	line := func(at time.Time, old, new string) string {
		return fmt.Sprintf("%s upgrade libupgraded1:amd64 %s %s\n", at.UTC().Format(time.DateTime), old, new)
	}
	replaceFile(t, generation(t, 2), root+inside)
	now := time.Now()
	write("var/log/dpkg.log", line(now.Add(-time.Hour), "1.0-1", "1.1-1")+line(now, "1.1-1", "1.2-1")+line(now.Add(time.Second), "1.2-1", "1.3-1"))
	check := func(running string) {
		t.Helper()
		found := outdated(t, s, 10)
		if len(found) != 1 || found[0].Package != "libupgraded1" || found[0].InstalledVersion != "1.3-1" || found[0].RunningVersion != running ||
			found[0].Path != root+inside || found[0].InstalledBuildID != buildID(t, generation(t, 2)) {
			t.Errorf("%+v; want version %q", found, running)
		}
	}
	check("1.1-1")
	for _, text := range []string{"libupgraded1", "1.1-1", "1.3-1"} {
		if r := vos(t, "outdated", s.target()).expect(t, 10); !strings.Contains(r.Stdout, text) {
			t.Errorf("%s is not said: %s", text, r.Stdout)
		}
	}

	// What the container's own user writes there may be anything.
	remove(t, filepath.Join(root, "var/log/dpkg.log"))
	for _, hostile := range []func() error{
		func() error { return os.Symlink("/proc/kmsg", filepath.Join(root, "var/log/dpkg.log")) },
		func() error { return exec.Command("mkfifo", filepath.Join(root, "var/log/dpkg.log")).Run() },
		func() error { return os.Mkdir(filepath.Join(root, "var/log/dpkg.log"), 0o755) },
		func() error { return os.Symlink("dpkg.log", filepath.Join(root, "var/log/dpkg.log")) },
	} {
		if err := hostile(); err != nil {
			t.Fatal(err)
		}
		check("")
		remove(t, filepath.Join(root, "var/log/dpkg.log"))
	}
	s.unharmed(t)
}

// TestOutdatedPackagesOfRPM names packages and versions of a program in a root
// directory of its own that real rpm installed the library in, and upgraded it.
func TestOutdatedPackagesOfRPM(t *testing.T) {
	root := rootFolder(t, upgradedProgram(t))
	const inside = "/usr/lib64/" + upgradedSoname
	install := func(version string, n int) {
		t.Helper()
		testbed.InstallRPM(t, root, testbed.RPM{Name: "libupgraded", Version: version, Release: "1.el9", Files: map[string]string{inside: generation(t, n)}})
	}
	install("2:1.0", 1)
	s, _ := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
		return append([]string{"chroot", root}, argv...)
	}}, "/bin/upgraded", inside)
	current(t, s)

	// dnf notes times to the second.
	time.Sleep(1100 * time.Millisecond)
	now := time.Now()
	install("2:1.1", 2)
	check := func(name, running, problem string) {
		t.Helper()
		found := outdated(t, s, 10)
		if len(found) != 1 || found[0].Path != root+inside || found[0].InstalledBuildID != buildID(t, generation(t, 2)) {
			t.Fatalf("%+v", found)
		}
		m, installed := found[0], ""
		if name != "" {
			installed = "2:1.1-1.el9"
		}
		if m.Package != name || m.InstalledVersion != installed || m.RunningVersion != running || !strings.Contains(m.PackageProblem, problem) || problem == "" && m.PackageProblem != "" {
			t.Errorf("%+v; want %q, running %q, %q", m, name, running, problem)
		}
	}
	check("libupgraded", "", "") // rpm itself keeps no versions of before

	line := func(at time.Time, text string) string {
		return at.Format("2006-01-02T15:04:05-0700") + " " + text + "\n"
	}
	log := filepath.Join(root, "var/log/dnf.rpm.log")
	err := os.MkdirAll(filepath.Dir(log), 0o755)
	if err == nil {
		err = os.WriteFile(log, []byte(line(now, "INFO --- logging initialized ---")+
			line(now.Add(time.Second), "SUBDEBUG Upgrade: libupgraded-2:1.1-1.el9.x86_64")+
			line(now.Add(time.Second), "SUBDEBUG Upgraded: libupgraded-2:1.0-1.el9.x86_64")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	check("libupgraded", "2:1.0-1.el9", "")
	for _, text := range []string{"libupgraded", "2:1.0-1.el9", "2:1.1-1.el9"} {
		if r := vos(t, "outdated", s.target()).expect(t, 10); !strings.Contains(r.Stdout, text) {
			t.Errorf("%s is not said: %s", text, r.Stdout)
		}
	}

	// What the container's own user writes there may be anything, and the command
	// says what it could not learn.
	database := filepath.Join(root, testbed.RPMFolder, "rpmdb.sqlite")
	if err := os.WriteFile(database, []byte(strings.Repeat("no database ", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	check("", "", "ask rpm: ")
	if r := vos(t, "outdated", s.target(), "--verbose").expect(t, 10); !strings.Contains(r.Stdout, "no package: ask rpm: ") {
		t.Errorf("the problem is not said: %s", r.Stdout)
	}
	for _, hostile := range []func() error{
		func() error { return os.Symlink("/proc/kmsg", database) },
		func() error { return exec.Command("mkfifo", database).Run() },
		func() error { return os.Mkdir(database, 0o755) },
		func() error { return os.Symlink("rpmdb.sqlite", database) },
	} {
		remove(t, database)
		if err := hostile(); err != nil {
			t.Fatal(err)
		}
		check("", "", "")
	}
	s.unharmed(t)
}

// TestOutdatedElsewhere looks at programs that do not see the files that vos
// sees, or no longer see those that they have mapped.
func TestOutdatedElsewhere(t *testing.T) {
	old, new := generation(t, 1), generation(t, 2)
	prepare := func(t *testing.T) (folder, program, library string) {
		folder = lastingFolder(t)
		program, library = filepath.Join(folder, "upgraded"), filepath.Join(folder, "libupgraded.so")
		copyFile(t, upgradedProgram(t), program)
		copyFile(t, old, library)
		return folder, program, library
	}
	t.Run("a mount namespace with its own copy", func(t *testing.T) {
		_, program, library := prepare(t)
		s, f := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
			return append([]string{"unshare", "--mount", "sh", "-ec",
				`cd "${0%/*}"; mount -t tmpfs private "$PWD"; cp -r . "$PWD"; exec "$0" "$@"`}, argv...)
		}}, program, library)
		s.pid = descendant(t, f.Pid(), "upgraded")
		current(t, s)
		replaceFile(t, new, library) // outside, which it does not see
		current(t, s)
		replaceFile(t, new, fmt.Sprintf("/proc/%d/root%s", s.pid, library))
		if found := outdated(t, s, 10); len(found) != 1 || found[0].Change != api.FileReplaced || found[0].InstalledBuildID != buildID(t, new) {
			t.Errorf("%+v", found)
		}
		s.unharmed(t)
	})
	for name, argument := range map[string]string{"a root directory that it moved to": "chroot=", "a mount namespace that it moved to": "hide="} {
		t.Run(name, func(t *testing.T) {
			folder, program, library := prepare(t)
			hidden := filepath.Join(folder, "empty")
			if argument == "hide=" {
				hidden = folder
			}
			if err := os.MkdirAll(hidden, 0o755); err != nil {
				t.Fatal(err)
			}
			s, _ := start(t, testbed.FixtureOptions{}, program, library, argument+hidden)
			current(t, s)
			replaceFile(t, new, library)
			if found := outdated(t, s, 10); len(found) != 1 || found[0].Change != api.FileReplaced || found[0].InstalledBuildID != buildID(t, new) {
				t.Errorf("%+v", found)
			}
			s.unharmed(t)
		})
	}
}

// TestNothingOutdated looks at programs that run code of their own making, have
// files for memory, and delete what they have opened.
func TestNothingOutdated(t *testing.T) {
	for name, program := range map[string]func(t *testing.T) *subject{
		"code made at run time": func(t *testing.T) *subject {
			s, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "mappings"))
			return s
		},
		"Node": func(t *testing.T) *subject { return script(t, "node", "work.js") },
		"Java": func(t *testing.T) *subject { return script(t, "java", "Work.java") },
	} {
		t.Run(name, func(t *testing.T) {
			s := program(t)
			current(t, s)
			s.unharmed(t)
		})
	}
}
