package tracee

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// calleesEnv is the file with the addresses of the functions that steady has to
// be called; the helper then calls one in each session.
const calleesEnv = "VOS_TEST_CALLEES"

type callees struct{ weigh, sleep, fault, errno uint64 }

func readCallees(file string) (c callees, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	_, err = fmt.Sscanf(string(text), "%v %v %v %v", &c.weigh, &c.sleep, &c.fault, &c.errno)
	return c, err
}

// callPlace takes the modules apart by name, as their owner would by symbols.
func callPlace(p *procfs.Process, c callees) (place CallPlace, err error) {
	maps, err := p.Maps()
	if err != nil {
		return place, err
	}
	for _, m := range maps {
		if m.Perms&procfs.Exec == 0 {
			continue
		}
		r, name := Range{m.Start, m.End}, filepath.Base(m.Path)
		if strings.HasPrefix(name, "libc.") {
			place.Wrappers = append(place.Wrappers, r)
		}
		if name != "steady" {
			place.Unsafe = append(place.Unsafe, r)
		}
	}
	place.Errno = c.errno
	return place, nil
}

// callIn calls one function in one session.
func callIn(p *procfs.Process, c callees, options Options, f Function) (result uint64, err error) {
	place, err := callPlace(p, c)
	if err != nil {
		return 0, err
	}
	_, err = Do(context.Background(), p, options, func(s *Session) error {
		if err := s.BorrowForCall(place); err != nil {
			return err
		}
		result, err = s.CallFunction(f)
		return err
	})
	return result, err
}

func callSleep(p *procfs.Process, file string, n int) error {
	c, err := readCallees(file)
	if err != nil {
		return err
	}
	const longest = 8 // milliseconds
	want := uint64(n%longest) * 1000
	got, err := callIn(p, c, Options{}, Function{Address: c.sleep, Args: [6]uint64{want}})
	if refusals := api.Refusals(err); len(refusals) == 1 && (refusals[0].Code == codePendingCall || refusals[0].Code == CodeNoSafePoint) {
		time.Sleep(time.Millisecond)
		return nil
	}
	if err == nil && got != want {
		err = fmt.Errorf("a function returned %d, not %d", got, want)
	}
	return err
}

// callable runs steady with its functions known.
func callable(t *testing.T, env []string, args ...string) (*procfs.Process, callees, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "callees")
	p := steady(t, append(env, "STEADY_CALLEES="+file), args...)
	c, err := readCallees(file)
	if err != nil {
		t.Fatal(err)
	}
	return p, c, file
}

// TestBorrowForCallWaits borrows only threads that wait in the system calls that it
// is told, and none that runs or waits in another.
func TestBorrowForCallWaits(t *testing.T) {
	p, c, _ := callable(t, nil, "8", "mixed")
	place, err := callPlace(p, c)
	if err != nil {
		t.Fatal(err)
	}
	borrow := func(waits ...uint64) (in uint64, err error) {
		place.Waits = waits
		_, err = Do(t.Context(), p, Options{}, func(s *Session) error {
			if err := s.BorrowForCall(place); err != nil {
				return err
			}
			in = s.borrowed.regs.OrigRAX
			return nil
		})
		return in, err
	}
	tids, err := p.Threads()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, tid := range tids {
		call, err := p.Syscall(tid)
		if err != nil {
			t.Fatal(err)
		}
		nr := uint64(call.Number)
		if !call.InCall || !waitsSafely(nr) {
			continue
		}
		tried++
		if in, err := borrow(nr); err != nil || in != nr {
			t.Errorf("a thread was to wait in %d, and was in %d: %v", nr, in, err)
		}
	}
	if tried == 0 {
		t.Error("no thread waits where it can be borrowed")
	}
	_, err = borrow(syscall.SYS_MSGRCV) // where none waits
	if refusals := api.Refusals(err); len(refusals) != 1 || refusals[0].Code != CodeNoSafePoint {
		t.Errorf("nobody waits there: %v", err)
	}
}

func TestFunctionsLeaveNoTrace(t *testing.T) {
	for _, target := range [][]string{{"1", "spin"}, {"1", "wait"}, {"8", "wait"}, {"8", "mixed"}, {"64", "mixed"}} {
		t.Run(target[0]+" "+target[1], func(t *testing.T) {
			p, c, _ := callable(t, []string{"STEADY_EINTR=fatal"}, target...)
			before := mappings(t, p)
			place, err := callPlace(p, c)
			if err != nil {
				t.Fatal(err)
			}
			for range 60 {
				if _, err := Do(t.Context(), p, Options{}, func(s *Session) error {
					if err := s.BorrowForCall(place); err != nil {
						return err
					}
					for n := range rand.Uint64N(3) {
						got, err := s.CallFunction(Function{Address: c.weigh, Args: [6]uint64{1, 2, 3, 4, n, 2},
							Data: []byte("ab12345\x00"), Pointers: [6]bool{5: true}})
						if err != nil {
							return err
						}
						if want := 5030 + 5*n; got != want {
							return fmt.Errorf("the function returned %d, not %d", got, want)
						}
						if rand.N(2) == 0 {
							continue
						}
						results, err := s.Run([]Call{{Number: syscall.SYS_GETPID}, {Number: syscall.SYS_GETPID}})
						if err != nil {
							return err
						}
						if results[0] != s.ownPID || results[1] != s.ownPID {
							return fmt.Errorf("getpid returned %v", results)
						}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			checkFree(t, p)
			after := mappings(t, p)
			if a, b := strings.Join(before, "\n"), strings.Join(after, "\n"); a != b {
				t.Errorf("mapped before:\n%s\nafter:\n%s", a, b)
			}
		})
	}
}

func TestFunctionTracerKilled(t *testing.T) {
	for _, target := range [][]string{{"1", "spin"}, {"1", "wait"}, {"8", "mixed"}} {
		t.Run(target[0]+" "+target[1], func(t *testing.T) {
			const kills = 75
			p, c, file := callable(t, nil, target...)
			before := len(mappings(t, p))
			for range kills {
				helper := exec.Command(os.Args[0])
				helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, p.PID()), calleesEnv+"="+file)
				helper.Stderr = os.Stderr
				out, err := helper.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := helper.Start(); err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
					t.Fatalf("the helper said %q, %v", line, err)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(30 * time.Millisecond))))
				helper.Process.Kill()
				if err := helper.Wait(); err == nil || err.Error() != "signal: killed" {
					t.Fatalf("the helper ended by itself: %v", err)
				}
				checkFree(t, p)
			}
			time.Sleep(20 * time.Millisecond) // the last function ends
			// A stack is mapped in two parts, one line of maps each.
			left := (len(mappings(t, p)) - before) / 2
			t.Logf("%d kills left %d stacks", kills, left)
			if left > kills/10 {
				t.Errorf("%d kills left %d stacks of functions", kills, left)
			}
			if _, err := callIn(p, c, Options{}, Function{Address: c.sleep}); err != nil {
				t.Errorf("a call afterwards: %v", err)
			}
			checkFree(t, p)
		})
	}
}

func TestFunctionThatIsSlow(t *testing.T) {
	for _, target := range [][]string{{"1", "wait"}, {"8", "mixed"}} {
		t.Run(target[0]+" "+target[1], func(t *testing.T) {
			p, c, _ := callable(t, nil, target...)
			before := mappings(t, p)
			slow := Function{Address: c.sleep, Args: [6]uint64{500_000}}
			begin := time.Now()
			_, err := callIn(p, c, Options{StopTimeout: 80 * time.Millisecond}, slow)
			if !errors.Is(err, ErrStillRunning) || time.Since(begin) > 400*time.Millisecond {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
			// The next one has to wait until the memory for the way home is free.
			if got, err := callIn(p, c, Options{}, Function{Address: c.sleep}); err != nil || got != 0 {
				t.Errorf("a call meanwhile: %d, %v", got, err)
			}
			if time.Since(begin) < 500*time.Millisecond {
				t.Errorf("a call while another was pending, after %v", time.Since(begin))
			}
			checkFree(t, p)
			_, err = callIn(p, c, Options{StopTimeout: 80 * time.Millisecond}, slow)
			if !errors.Is(err, ErrStillRunning) {
				t.Fatal(err)
			}
			_, err = Do(t.Context(), p, Options{}, (*Session).Borrow)
			if refusals := api.Refusals(err); len(refusals) != 1 || refusals[0].Code != codePendingCall {
				t.Errorf("a session meanwhile: %v", err)
			}
			checkFree(t, p)
			time.Sleep(600 * time.Millisecond)
			if got, err := callIn(p, c, Options{}, Function{Address: c.sleep, Args: [6]uint64{7}}); err != nil || got != 7 {
				t.Errorf("a call afterwards: %d, %v", got, err)
			}
			checkFree(t, p)
			if a, b := strings.Join(before, "\n"), strings.Join(mappings(t, p), "\n"); a != b {
				t.Errorf("mapped before:\n%s\nafter:\n%s", a, b)
			}
		})
	}
}

func TestFunctionThatFaults(t *testing.T) {
	p, c, _ := callable(t, []string{"STEADY_EINTR=fatal"}, "8", "mixed")
	before := mappings(t, p)
	for range 10 {
		if _, err := callIn(p, c, Options{}, Function{Address: c.fault}); err == nil || !strings.Contains(err.Error(), "signal 11") {
			t.Fatalf("a fault in a function: %v", err)
		}
	}
	checkFree(t, p)
	if a, b := strings.Join(before, "\n"), strings.Join(mappings(t, p), "\n"); a != b {
		t.Errorf("mapped before:\n%s\nafter:\n%s", a, b)
	}
}

// A thread that is borrowed out of a sleep sleeps on for what is left of it.
func TestFunctionInSleep(t *testing.T) {
	build := testbed.Build{Name: "sleeper", Flags: []string{"-Wall", "-Werror"}, Source: `
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static long answer(void) { return 42; }
int main(int argc, char **argv) {
	FILE *f = fopen(argv[1], "w");
	fprintf(f, "%p\n", (void *)answer);
	fclose(f);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct timespec t = {0, 400000000}, a, b;
		clock_gettime(CLOCK_MONOTONIC, &a);
		if (nanosleep(&t, NULL)) abort();
		clock_gettime(CLOCK_MONOTONIC, &b);
		long ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
		if (ms < 399 || ms > 600) return dprintf(2, "slept for %ld ms\n", ms), 1;
	}
}`}
	file := filepath.Join(t.TempDir(), "callees")
	f := testbed.Run(t, testbed.FixtureOptions{Mute: true}, testbed.MustCompile(t, build), file)
	p, err := procfs.Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var answer uint64
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text), "%v", &answer); err != nil {
		t.Fatal(err)
	}
	for range 8 { // the later ones at the end of a sleep that others have interrupted
		time.Sleep(170 * time.Millisecond)
		if got, err := callIn(p, callees{}, Options{}, Function{Address: answer}); err != nil || got != 42 {
			t.Fatalf("got %d, %v", got, err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	checkFree(t, p)
}
