package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestTargetsThatAreRefused names to vos what it can't work on: each gets its
// exit code, and where vos refuses, the code that scripts compare.
func TestTargetsThatAreRefused(t *testing.T) {
	plain := fixture(t, "plain")
	foreign, _ := start(t, testbed.FixtureOptions{}, compiled(t, "m32"))
	kernelThread := strconv.Itoa(kernelThread(t))
	const gone = "99999999" // above the largest pid that Linux gives
	tests := []struct {
		name string
		args string
		code int
		want api.Code
	}{
		{"no such pid", gone, 6, ""},
		{"no program of that name", "no-such-program", 6, ""},
		{"no executable of that path", "/no/such/program", 6, ""},
		{"no unit of that name", "no-such.service", 6, ""},
		{"no container of that id", "0123456789abcdef", 6, ""},
		{"unknown module", plain.target() + ":libnosuch.so.1", 6, ""},
		{"no module is said", plain.target() + ":", 2, ""},
		{"no target", "", 2, ""},
		{"two targets", plain.target() + " " + plain.target(), 2, ""},
		{"unknown flag", "--no-such-flag " + plain.target(), 2, ""},
		{"another machine", "node/" + plain.target(), 4, ""},
		{"no time", "--timeout 1ns " + plain.target(), 1, ""},
		{"kernel thread", kernelThread, 7, "kernel_thread"},
		{"zombie", strconv.Itoa(zombie(t)), 7, "zombie"},
		{"32-bit program", foreign.target(), 7, "not_64_bit"},
	}
	for _, test := range tests {
		for _, command := range []string{"verify", "refresh", "modules"} {
			t.Run(test.name+"/"+command, func(t *testing.T) {
				if test.args == kernelThread && kernelThread == "0" {
					t.Skip("a container's pid namespace has no kernel thread")
				}
				args := append([]string{command, "--json"}, strings.Fields(test.args)...)
				r := vos(t, args...).expect(t, test.code)
				if r.Stderr == "" {
					t.Error("nothing is said about it")
				}
				if got := refusals(t, r); test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || got[0].Code != test.want) {
					t.Errorf("refused for %v, want %q", got, test.want)
				}
			})
		}
	}
	plain.unharmed(t)
	foreign.unharmed(t)
}

// TestListedTargetThatIsNoProgram names to vos ps what it can tell little about: it
// is never silent, and gives the true reason.
func TestListedTargetThatIsNoProgram(t *testing.T) {
	dead := strconv.Itoa(zombie(t))
	r := vos(t, "ps", dead, "--json").expect(t, 7)
	if got := refusals(t, r); len(got) != 1 || got[0].Code != "zombie" || !strings.Contains(r.Stderr, dead) {
		t.Errorf("zombie: %v\n%s", got, r.Stderr)
	}
	if strings.Contains(vos(t, "ps", "--quick").expect(t, 0).Stdout, " "+dead+" ") {
		t.Error("a zombie is listed as a program")
	}
	vos(t, "ps", "99999999").expect(t, 6)
	if pid := kernelThread(t); pid != 0 {
		if got := refusals(t, vos(t, "ps", strconv.Itoa(pid), "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "kernel_thread" {
			t.Errorf("thread of the kernel: %v", got)
		}
	}

	foreign, _ := start(t, testbed.FixtureOptions{}, compiled(t, "m32"))
	r = vos(t, "ps", foreign.target()).expect(t, 0)
	if !strings.Contains(r.Stderr, "32-bit") || strings.Contains(r.Stderr, "root") {
		t.Errorf("a 32-bit program: %s", r.Stderr)
	}
	programs := lines[api.Program](t, vos(t, "ps", foreign.target(), "--json").expect(t, 0))
	if len(programs) != 1 || programs[0].Threads == 0 || len(programs[0].Refusals) != 1 || programs[0].Refusals[0].Code != "not_64_bit" {
		t.Errorf("a 32-bit program: %+v", programs)
	}
	foreign.unharmed(t)
}

// refusals returns all that a command's JSON says, each of them complete.
func refusals(t *testing.T, r result) (all []api.Refusal) {
	t.Helper()
	for line := range strings.Lines(r.Stdout) {
		var v struct{ Refusals []api.Refusal }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("decode %q: %v", line, err)
		}
		for _, refusal := range v.Refusals {
			if refusal.Subject == "" || refusal.Detail == "" || refusal.Remedy == "" {
				t.Errorf("refusal %+v is not complete", refusal)
			}
			all = append(all, refusal)
		}
	}
	return all
}

// firstPIDNamespace is the one that kernel threads are in (PROC_PID_INIT_INO).
const firstPIDNamespace = "pid:[4026531836]"

// kernelThread returns the pid of one, or 0 in a namespace that has none.
func kernelThread(t *testing.T) int {
	t.Helper()
	pids, err := procfs.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if p, err := procfs.Open(pid); err == nil {
			stat, err := p.Stat()
			p.Close()
			if err == nil && stat.KernelThread() {
				return pid
			}
		}
	}
	if namespace, err := os.Readlink("/proc/self/ns/pid"); err != nil || namespace == firstPIDNamespace {
		t.Fatalf("no kernel thread is found in %s: %v", namespace, err)
	}
	return 0
}

// zombie returns a child that has ended and is not waited for during the test.
func zombie(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	await(t, "the end of a child", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
	return cmd.Process.Pid
}

// testProgram compiles a program of testdata with report.h.
func testProgram(t *testing.T, name string, parts ...testbed.Build) string {
	t.Helper()
	return testbed.MustCompile(t, testbed.Build{
		Name: name, Source: source(t, name), Files: []string{"report.h"}, Parts: parts,
		Flags: []string{"-Wl,-z,now"}, // nothing is looked up later, in files that are spoiled by then
	})
}

func source(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".c"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestProcessesThatAreRefused has something to heal in programs in which no
// thread can be borrowed: vos sees it, and touches nothing.
func TestProcessesThatAreRefused(t *testing.T) {
	tests := []struct {
		name  string
		start func(t *testing.T) (s *subject, end func()) // end, if any, takes the hindrance away
		want  api.Code
	}{
		{"traced by gdb", tracedByGDB, "already_traced"},
		{"main thread in vfork", inVfork, "uninterruptible"},
		{"seccomp filter that kills", func(t *testing.T) (*subject, func()) { return fixture(t, "seccomp", "kill"), nil }, "seccomp"},
		{"seccomp filter that denies", func(t *testing.T) (*subject, func()) { return fixture(t, "seccomp", "eperm"), nil }, "seccomp"},
		{"strict seccomp", func(t *testing.T) (*subject, func()) {
			s, _ := start(t, testbed.FixtureOptions{}, testbed.MustCompile(t, testbed.Build{Name: "strict", Source: source(t, "strict")}))
			return s, nil
		}, "seccomp"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, end := test.start(t)
			at := fmt.Sprintf("0x%x", corruptGap(t, s.pid, libc))
			for range 2 {
				if d := differences(t, vos(t, "verify", s.target(), "--json").expect(t, 10)); len(d) != 1 || d[0].Address != at {
					t.Errorf("it differs in %+v, not at %s alone", d, at)
				}
				r := vos(t, "refresh", s.target()+":"+libc, "--json").expect(t, 7)
				if got := refusals(t, r); len(got) != 1 || got[0].Code != test.want {
					t.Errorf("refused for %v, not %s", got, test.want)
				}
			}
			// All modules: those that need nothing are well.
			vos(t, "refresh", s.target()).expect(t, 3)
			if end != nil {
				end()
				refreshed(t, vos(t, "refresh", s.target(), "--json"), libc)
				vos(t, "verify", s.target(), "--full").expect(t, 0)
			}
			s.unharmed(t)
		})
	}
}

// tracedByGDB starts a program and has gdb trace it until end.
func tracedByGDB(t *testing.T) (*subject, func()) {
	s := fixture(t, "plain")
	gdb := exec.Command("gdb", "-nx", "-batch", "-p", s.target(), "-ex", "echo attached\\n", "-ex", "shell cat")
	stdin, err := gdb.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gdb.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		stdin.Close() // cat ends, then gdb, which detaches
		if err := gdb.Wait(); err != nil {
			t.Errorf("gdb: %v", err)
		}
	}
	t.Cleanup(end)
	await(t, "gdb", func() bool {
		disturbance, err := testbed.Disturbance(s.pid, false)
		return err == nil && strings.Count(disturbance, "(tracing stop)") == 3
	})
	return s, end
}

// inVfork starts a program whose main thread waits in vfork until end.
func inVfork(t *testing.T) (*subject, func()) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s, f := start(t, testbed.FixtureOptions{}, testProgram(t, "vfork"), fifo)
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		await(t, "the end of the child", func() bool {
			r, err := f.Report(t.Context())
			return err == nil && r.Counts["children"] == 1
		})
	}
	t.Cleanup(end)
	return s, end
}

func idleLibrary(t *testing.T) testbed.Build {
	return testbed.Build{Name: "libidle.so", Source: source(t, "idle"), Flags: []string{"-shared", "-fPIC", "-Wl,-soname,libidle.so", "-Wl,--build-id"}}
}

// TestModulesThatAreRefused spoils the file of a library, or what a process has
// of it. That module is refused, the others are healed.
func TestModulesThatAreRefused(t *testing.T) {
	program := testProgram(t, "linked", idleLibrary(t))
	tests := []struct {
		name  string
		spoil func(t *testing.T, library string) error
		want  api.Code
	}{
		{"truncated", func(_ *testing.T, library string) error { return os.Truncate(library, 4096) }, "file_truncated"},
		{"emptied", func(_ *testing.T, library string) error { return os.Truncate(library, 0) }, "not_elf"},
		{"overwritten with garbage", func(_ *testing.T, library string) error {
			return overwrite(library, 0, strings.Repeat("garbage!", 2000))
		}, "not_elf"},
		{"its tables overwritten with garbage", func(_ *testing.T, library string) error {
			return overwrite(library, 64, strings.Repeat("\xff\xfe\xfd\xfc", 300))
		}, "not_elf"},
		{"written in place", func(_ *testing.T, library string) error { return overwrite(library, 0x1100, "\x90") }, "file_modified"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := public(t, program)
			library := filepath.Join(filepath.Dir(path), "libidle.so")
			s, _ := start(t, testbed.FixtureOptions{}, path)
			time.Sleep(50 * time.Millisecond) // so that what is written now is later than the start
			if err := test.spoil(t, library); err != nil {
				t.Fatal(err)
			}
			corruptGap(t, s.pid, libc)
			target := s.target() + ":" + library
			for _, command := range []string{"verify", "refresh"} {
				if got := refusals(t, vos(t, command, target, "--json").expect(t, 7)); len(got) == 0 || got[0].Code != test.want {
					t.Errorf("vos %s refused for %v, not %s", command, got, test.want)
				}
			}
			for _, m := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
				if refused := m.Path == library; m.Refreshable == refused || (len(m.Refusals) > 0) != refused {
					t.Errorf("%s: refreshable %v, %v", m.Path, m.Refreshable, m.Refusals)
				}
			}
			vos(t, "verify", s.target()).expect(t, 10) // corruption in libc is certain
			for _, o := range operations(t, vos(t, "refresh", s.target(), "--json").expect(t, 3)) {
				want := api.Clean
				switch {
				case o.Path == library:
					want = api.Refused
				case o.Module == libc:
					want = api.Refreshed
				}
				if o.Outcome != want {
					t.Errorf("%s: %s, not %s", o.Path, o.Outcome, want)
				}
			}
			vos(t, "verify", s.target()).expect(t, 3)
			s.unharmed(t)
		})
	}
}

// overwrite writes into a file, in place.
func overwrite(path string, at int64, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), at)
	return errors.Join(err, f.Close())
}

// TestAnotherBuildInMemoryIsRefused makes a process's build-id of a module
// another one than the file's.
func TestAnotherBuildInMemoryIsRefused(t *testing.T) {
	s := fixture(t, "cxx")
	m := find(t, inspect(t, s.pid), "libthrower.so")
	note, ok := uint64(0), false
	sections, err := m.Object.Sections()
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range sections {
		if section.Name == ".note.gnu.build-id" {
			note, ok = section.Addr+m.Bias+16, true
		}
	}
	if !ok {
		t.Fatal("it has no build-id")
	}
	if _, err := testbed.Corrupt(s.pid, note, []byte{1, 2, 3, 4}); err != nil {
		t.Fatal(err)
	}
	vos(t, "verify", s.target()).expect(t, 10)
	if got := refusals(t, vos(t, "refresh", s.target()+":libthrower.so", "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "build_id_differs" {
		t.Errorf("refused for %v", got)
	}
	s.unharmed(t)
}

// TestTextRelocationsAreToldApart works on a library whose text the loader has
// changed, and rightly so.
func TestTextRelocationsAreToldApart(t *testing.T) {
	s := fixture(t, "textrel")
	found := differences(t, vos(t, "verify", s.target(), "--json").expect(t, 0))
	for _, d := range found {
		if d.Kind != api.KindTextrel || d.Module != "libtextrel.so" {
			t.Errorf("found %+v", d)
		}
	}
	if len(found) == 0 {
		t.Error("the text relocation is not told")
	}
	refreshed(t, vos(t, "refresh", s.target(), "--json"))
	s.unharmed(t)

	at := fmt.Sprintf("0x%x", corruptGap(t, s.pid, "libtextrel.so"))
	corrupt := 0
	for _, d := range differences(t, vos(t, "verify", s.target(), "--json").expect(t, 10)) {
		if d.Kind == api.KindCorruption {
			corrupt++
			if d.Address != at {
				t.Errorf("found %+v, corrupt is %s", d, at)
			}
		}
	}
	if corrupt != 1 {
		t.Errorf("%d differences are corruption", corrupt)
	}
	if got := refusals(t, vos(t, "refresh", s.target()+":libtextrel.so", "--json").expect(t, 7)); len(got) != 1 || got[0].Code != "textrel" {
		t.Errorf("refused for %v", got)
	}
	s.unharmed(t)
}

// TestOutputThatCannotBeWritten closes or fills what vos prints to.
func TestOutputThatCannotBeWritten(t *testing.T) {
	s := fixture(t, "plain")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	run := func(out io.Writer, args ...string) int {
		cmd := exec.Command(binary, args...)
		cmd.Stdout = out
		_ = cmd.Run() // its exit code is what is tested
		return cmd.ProcessState.ExitCode()
	}
	piped := func(args ...string) int { // to a reader that is gone
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return run(w, args...)
	}
	for _, args := range [][]string{{"modules", s.target()}, {"modules", s.target(), "--json"}, {"ps", s.target()}} {
		if code := run(full, args...); code != 1 {
			t.Errorf("vos %v to a full disk: exit code %d", args, code)
		}
		if code := piped(args...); code != 1 {
			t.Errorf("vos %v to a closed pipe: exit code %d", args, code)
		}
	}
	for _, write := range []func(...string) int{func(args ...string) int { return run(full, args...) }, piped} {
		corruptGap(t, s.pid, libc)
		if code := write("refresh", s.target(), "--json"); code != 3 && code != 1 {
			t.Errorf("a refresh that can't be told of: exit code %d", code)
		}
		vos(t, "refresh", s.target()).expect(t, 0)
		vos(t, "verify", s.target()).expect(t, 0)
	}
	s.unharmed(t)
}
