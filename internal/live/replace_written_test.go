package live

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// writes runs the binary and kills it after its nth write into the memory of other
// programs, before the next; never if n is 0. It returns how many it made.
func writes(t *testing.T, n int, args ...string) (made int) {
	t.Helper()
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	// Each write is held up a little, so that the kill comes before it.
	cmd := exec.Command(testbed.NeedTool(t, "strace"), append([]string{"-f", "-q", "--seccomp-bpf", "-o", "/dev/fd/3",
		"-e", "trace=pwrite64", "-e", "inject=pwrite64:delay_enter=3000", binary}, args...)...)
	cmd.ExtraFiles = []*os.File{tell}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		t.Fatal(err)
	}
	for scan := bufio.NewScanner(told); scan.Scan(); {
		if !strings.Contains(scan.Text(), "pwrite64") || !strings.Contains(scan.Text(), ") = ") {
			continue // the beginning of one, or the end of a thread
		}
		if made++; made == n {
			for _, pid := range testbed.Children(cmd.Process.Pid) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Errorf("kill: %v", err)
				}
			}
		}
	}
	if err := cmd.Wait(); n == 0 && err != nil {
		t.Fatalf("strace vos %v: %v", args, err)
	}
	return made
}

// TestReplaceKilledAtEachWrite kills vos between each two of its writes into a
// program: while a build is mapped, while the unwinder of a C++ program is told of
// it, between the entries, the initial values and the selector, and on the way
// back. The program runs one build as a whole, and the next vos does what was to
// be done, and leaves no more than one that nobody disturbed.
func TestReplaceKilledAtEachWrite(t *testing.T) {
	type program struct {
		*subject
		module, second string
		runs           func(t *testing.T, builds ...int64) // one of them
	}
	c := func(t *testing.T) program {
		m := runMixed(t, form{}, "killed")
		return program{m.subject, m.module(), mixedBuild(t, 2), func(t *testing.T, builds ...int64) {
			t.Helper()
			if len(builds) == 1 {
				m.runs(t, builds[0])
				return
			}
			m.unharmed(t)
			if c := m.last.Counts; c["build"] != c["again"] || c["build"] != c["third"] || c["touched"] != 333 {
				t.Fatalf("the program runs parts of two builds: %v", c)
			}
		}}
	}
	cxx := func(t *testing.T) program {
		const library = "libraising.so"
		part := func(build int) testbed.Build {
			return testbed.Build{Name: library, Language: "c++", Source: text(t, "raising_lib.cc"),
				Flags: []string{"-shared", "-fPIC", "-Wl,-soname," + library, fmt.Sprintf("-DBUILD=%d", build)}}
		}
		path := testbed.MustCompile(t, testbed.Build{Name: "raising", Language: "c++", Source: text(t, "raising.cc"),
			Files: []string{"report.h"}, Flags: []string{"-fpermissive", "-w"}, Parts: []testbed.Build{part(1)}})
		s, _ := start(t, testbed.FixtureOptions{}, path)
		second := filepath.Join(filepath.Dir(testbed.MustCompile(t, part(2))), library)
		return program{s, s.target() + ":" + library, second, func(t *testing.T, builds ...int64) {
			t.Helper()
			s.unharmed(t)
			for _, build := range builds {
				if s.last.Counts["build"] == build {
					return
				}
			}
			t.Fatalf("build %d runs, not one of %v", s.last.Counts["build"], builds)
		}}
	}
	for _, k := range []struct {
		name  string
		start func(t *testing.T) program
		back  bool // the way back is killed
		last  int  // so many of the last writes are all done
	}{{"replace in C", c, false, 5}, {"replace in C++", cxx, false, 11}, {"rollback in C", c, true, 8}} {
		t.Run(k.name, func(t *testing.T) {
			run := func(t *testing.T, n int) (made int, l left) {
				t.Helper()
				p := k.start(t)
				args := []string{"replace", p.module, "--with", p.second}
				if k.back {
					vos(t, args...).expect(t, 0)
					args = []string{"rollback", p.module}
				}
				made = writes(t, n, args...)
				p.runs(t, 1, 2)
				vos(t, "replace", p.module, "--with", p.second).expect(t, 0) // it may run already
				p.runs(t, 2)
				vos(t, "rollback", p.module).expect(t, 0)
				p.runs(t, 1)
				vos(t, "verify", "--full", p.target()).expect(t, 0)
				return made, leftIn(t, p.pid)
			}
			var all int
			var undisturbed left
			t.Run("not killed", func(t *testing.T) { all, undisturbed = run(t, 0) })
			if all == 0 {
				t.Fatal("no write was seen")
			}
			for n := 1; n < all; n++ {
				if !soak && n%8 != 0 && all-n > k.last {
					continue // a build is mapped by many writes of one kind
				}
				t.Run(fmt.Sprintf("after write %d of %d", n, all), func(t *testing.T) {
					if _, l := run(t, n); l.own != undisturbed.own || l.descriptors != undisturbed.descriptors || l.other > undisturbed.other+4 {
						// The stack, with its guard, of a call that was not made yet stays, and malloc
						// has made an arena, with its reserve, for the thread in which one was made.
						t.Errorf("left: %+v, by one that nobody killed: %+v", l, undisturbed)
					}
				})
			}
		})
	}
}
