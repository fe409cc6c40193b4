package handle

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// TestMain is also the vOS that dies: with $DIE_AT it redirects as its arguments
// tell, and is killed at a step in a process.
func TestMain(m *testing.M) {
	if at := os.Getenv("DIE_AT"); at != "" {
		name, pid, _ := strings.Cut(at, " ")
		reached = func(s step, m *member) {
			if string(s) == name && strconv.Itoa(m.pid) == pid {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		pids := strings.Split(os.Getenv("DIE_IN"), " ")
		_, err := redirectAll(context.Background(), pids, Redirection{FD: 3, To: os.Getenv("DIE_TO"), Back: os.Getenv("DIE_TO") == ""})
		fmt.Fprintln(os.Stderr, "not killed:", err)
		os.Exit(1)
	}
	os.Exit(testbed.RunTests(m))
}

func redirectAll(ctx context.Context, pids []string, r Redirection) ([]api.Redirection, error) {
	var all []*procfs.Process
	for _, text := range pids {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		p, err := procfs.Open(pid)
		if err != nil {
			return nil, err
		}
		defer p.Close()
		all = append(all, p)
	}
	return Redirect(ctx, all, r)
}

// TestRedirectAfterDeathAtEachStep kills a vOS right after each step in each process:
// of the first redirection, of another one, and of the way back. The program has one
// binding in all processes after the next vOS, no line of its log is lost, and in the
// end its descriptors are those that it has opened itself.
func TestRedirectAfterDeathAtEachStep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it kills vOS over a program that it traces: as root")
	}
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name+".log") }
	one, two, three := file("one"), file("two"), file("three")
	f := testbed.RunFixture(t, "redirect", "log="+one, "children=1")
	children := testbed.Children(f.Pid())
	if len(children) != 1 {
		t.Fatalf("children: %v", children)
	}
	pids := []string{strconv.Itoa(f.Pid()), strconv.Itoa(children[0])}
	before := linksOf(t, pids)
	redirect := func(to string) {
		t.Helper()
		results, err := redirectAll(t.Context(), pids, Redirection{FD: 3, To: to, Back: to == ""})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if len(results) != 2 || r.Outcome != api.Redirected && r.Outcome != api.Restored {
				t.Fatalf("results: %+v", results)
			}
		}
	}
	cases := []struct {
		name     string
		prepared string // what it is bound to before
		to       string // "" is back
		from     string // the file before
		lands    string // the file afterwards
	}{
		{"first", "", "append:" + two, one, two},
		{"another", "append:" + two, "append:" + three, two, three},
		{"back", "append:" + two, "", two, one},
	}
	for _, c := range cases {
		for _, at := range []step{stepSockets, stepPassed, stepKept, stepBound} {
			for _, pid := range pids {
				t.Run(fmt.Sprintf("%s %s %t", c.name, at, pid == pids[0]), func(t *testing.T) {
					if c.prepared != "" {
						redirect(c.prepared)
					}
					dies(t, string(at)+" "+pid, pids, c.to)
					report, err := f.Report(t.Context())
					if err != nil || report.Errors > 0 {
						t.Fatalf("after the death: %v, %s", err, report.Error)
					}
					for _, p := range pids {
						for _, fd := range []string{"3", "4"} {
							link, err := os.Readlink("/proc/" + p + "/fd/" + fd)
							if err != nil || link != c.from && link != c.lands {
								t.Fatalf("descriptor %s of %s leads to %q, %v", fd, p, link, err)
							}
						}
					}
					redirect("append:" + three)
					redirect("")
					if now := linksOf(t, pids); !slices.Equal(now, before) {
						t.Fatalf("descriptors are\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
					}
				})
			}
		}
	}
	if err := f.Quit(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // its child ends with it
	checkLines(t, one, two, three)
}

// TestRedirectAfterDeathBetweenRecords finds what a vOS has left that died when the
// record was at its place, and still where it came in: a program whose runtime listens
// to all signals makes these calls one by one. It must not be put in the place of the
// record of another redirection.
func TestRedirectAfterDeathBetweenRecords(t *testing.T) {
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name+".log") }
	f := testbed.RunFixture(t, "redirect", "log="+file("one"))
	pids := []string{strconv.Itoa(f.Pid())}
	before := linksOf(t, pids)
	redirect := func(to string) {
		t.Helper()
		results, err := redirectAll(t.Context(), pids, Redirection{FD: 3, To: to, Back: to == ""})
		if err != nil || len(results) != 1 || len(results[0].Refusals) > 0 {
			t.Fatalf("to %q: %+v, %v", to, results, err)
		}
	}
	for _, first := range []string{"", "append:" + file("two")} {
		if first != "" {
			redirect(first)
		}
		redirect("append:" + file("three"))
		leaveCopy(t, f.Pid())
		redirect("append:" + file("four"))
		redirect("append:" + file("five"))
		redirect("")
		if now := linksOf(t, pids); !slices.Equal(now, before) {
			t.Fatalf("descriptors are\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
		}
		redirect("append:" + file("three"))
		leaveCopy(t, f.Pid())
		redirect("")
		if now := linksOf(t, pids); !slices.Equal(now, before) {
			t.Fatalf("descriptors are\n%s\nand were\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
		}
	}
}

// leaveCopy copies the record that a process has.
func leaveCopy(t *testing.T, pid int) {
	t.Helper()
	p, err := procfs.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	links, err := p.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	copied := 0
	for fd, link := range links {
		if link != recordLink {
			continue
		}
		_, err := tracee.Do(t.Context(), p, tracee.Options{}, func(s *tracee.Session) error {
			if err := s.Borrow(); err != nil {
				return err
			}
			_, err := s.Call(syscall.SYS_FCNTL, uint64(fd), fDupFDCloexec, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		copied++
	}
	if copied != 1 {
		t.Fatalf("%d records", copied)
	}
}

// dies runs a vOS that dies.
func dies(t *testing.T, at string, pids []string, to string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DIE_AT="+at, "DIE_IN="+strings.Join(pids, " "), "DIE_TO="+to)
	out, err := cmd.CombinedOutput()
	if err == nil || err.Error() != "signal: killed" {
		t.Fatalf("%v: %s", err, out)
	}
}

// linksOf lists the descriptors of processes.
func linksOf(t *testing.T, pids []string) (all []string) {
	t.Helper()
	for _, pid := range pids {
		entries, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			link, _ := os.Readlink("/proc/" + pid + "/fd/" + e.Name())
			all = append(all, pid+" "+e.Name()+" "+link)
		}
	}
	return all
}

// checkLines checks that the lines "PID N" of all files together are there once each.
func checkLines(t *testing.T, files ...string) {
	t.Helper()
	seen := make(map[string]map[int]bool)
	lines := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			pid, number, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, err := strconv.Atoi(number)
			if err != nil || seen[pid][n] {
				t.Fatalf("%s: line %q, there before: %t", file, line, err == nil)
			}
			if seen[pid] == nil {
				seen[pid] = make(map[int]bool)
			}
			seen[pid][n] = true
			lines++
		}
	}
	for pid, numbers := range seen {
		for n := range len(numbers) {
			if !numbers[n] {
				t.Fatalf("process %s: line %d of %d is lost", pid, n, len(numbers))
			}
		}
	}
	if lines < 100 || len(seen) != 2 {
		t.Errorf("%d lines of %d processes", lines, len(seen))
	}
}
