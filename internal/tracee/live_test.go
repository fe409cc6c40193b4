package tracee

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// helperEnv makes the test binary hold sessions of a process, over and over,
// until it is killed.
const helperEnv = "VOS_TEST_SESSIONS_OF"

func TestMain(m *testing.M) {
	if pid := os.Getenv(helperEnv); pid != "" {
		if err := holdSessions(pid); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(testbed.RunTests(m))
}

func holdSessions(text string) error {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	p, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for n := 0; ; n++ {
		_, err := Do(context.Background(), p, Options{}, func(s *Session) error { return exercise(s, n) })
		if err != nil {
			return err
		}
	}
}

// exercise does what sessions are for: calls in chains and singly, with all
// threads stopped and with one.
func exercise(s *Session, n int) error {
	if n%3 == 0 {
		if err := s.StopAll(); err != nil {
			return err
		}
	}
	if n%5 == 4 {
		return nil
	}
	if err := s.Borrow(); err != nil {
		return err
	}
	if n%4 == 3 {
		s.borrowed.signal = 0 // the program might listen to all signals
	}
	for range n % 3 {
		calls := make([]Call, 1+n%7)
		for i := range calls {
			calls[i].Number = syscall.SYS_GETPID
		}
		results, err := s.Run(calls)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r != s.ownPID {
				return fmt.Errorf("getpid inside process %d returned %d", s.process.PID(), int64(r))
			}
		}
	}
	return nil
}

// compile builds a program of testdata.
func compile(t *testing.T, source string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-o", out, filepath.Join("testdata", source), "-lpthread")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", source, err, text)
	}
	return out
}

// start runs a program and returns it when it says that it is ready.
func start(t *testing.T, env []string, name string, args ...string) *procfs.Process {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%s said %q, %v", name, line, err)
	}
	p, err := procfs.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// checkFree fails the test if the process is not alive, or if any of its
// threads is traced or stopped.
func checkFree(t *testing.T, p *procfs.Process) {
	t.Helper()
	tids, err := p.Threads()
	if err != nil {
		t.Fatalf("the program is gone: %v", err)
	}
	for _, tid := range tids {
		st, err := p.ThreadStatus(tid)
		if err != nil {
			continue
		}
		if st.State == 'Z' {
			t.Fatalf("thread %d of the program has ended", tid)
		}
		if st.TracerPID != 0 || st.State == 't' || st.State == 'T' {
			t.Fatalf("thread %d: state %c, traced by %d", tid, st.State, st.TracerPID)
		}
	}
}

func TestSessionsLeaveNoTrace(t *testing.T) {
	program := compile(t, "steady.c")
	for _, threads := range []string{"1", "8", "64"} {
		for _, mode := range []string{"spin", "wait", "mixed"} {
			t.Run(threads+" "+mode, func(t *testing.T) {
				p := start(t, []string{"STEADY_EINTR=fatal"}, program, threads, mode)
				time.Sleep(300 * time.Millisecond) // threads map arenas when they first allocate
				maps, err := p.Maps()
				if err != nil {
					t.Fatal(err)
				}
				end := time.Now().Add(time.Second)
				n := 0
				for ; time.Now().Before(end) || n < 15; n++ {
					if _, err := Do(context.Background(), p, Options{}, func(s *Session) error { return exercise(s, n) }); err != nil {
						t.Fatalf("session %d: %v", n, err)
					}
				}
				checkFree(t, p)
				after, err := p.Maps()
				if err != nil {
					t.Fatal(err)
				}
				// The program's own allocations come as anonymous memory.
				if before, now := named(maps), named(after); before != now {
					t.Errorf("%d named mappings before, %d after", before, now)
				}
				t.Logf("%d sessions", n)
			})
		}
	}
}

func named(maps []procfs.Mapping) (n int) {
	for _, m := range maps {
		if m.Kind != procfs.KindAnonymous {
			n++
		}
	}
	return n
}

func TestTracerKilled(t *testing.T) {
	program := compile(t, "steady.c")
	for _, target := range [][]string{{"1", "spin"}, {"1", "wait"}, {"8", "mixed"}, {"64", "mixed"}} {
		t.Run(target[0]+" "+target[1], func(t *testing.T) {
			p := start(t, nil, program, target...)
			for range 75 {
				helper := exec.Command(os.Args[0])
				helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, p.PID()))
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
				time.Sleep(time.Duration(rand.Int64N(int64(8 * time.Millisecond))))
				helper.Process.Kill()
				if err := helper.Wait(); err == nil || err.Error() != "signal: killed" {
					t.Fatalf("the helper ended by itself: %v", err)
				}
				time.Sleep(2 * time.Millisecond)
				checkFree(t, p)
			}
			if _, err := Do(context.Background(), p, Options{}, func(s *Session) error { return exercise(s, 2) }); err != nil {
				t.Fatalf("a session afterwards: %v", err)
			}
			checkFree(t, p)
		})
	}
}

func TestFailureAndPanicAreUndone(t *testing.T) {
	p := start(t, []string{"STEADY_EINTR=fatal"}, compile(t, "steady.c"), "8", "mixed")
	_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		if _, err := s.Call(syscall.SYS_GETPID); err != nil {
			return err
		}
		panic("on purpose")
	})
	if err == nil {
		t.Error("a panic in a session is no error")
	}
	checkFree(t, p)

	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	code := maps[1].Start
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	before := make([]byte, 8)
	if _, err := memory.ReadAt(before, int64(code)); err != nil {
		t.Fatal(err)
	}
	if _, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.Write(code, []byte{1, 2, 3, 4}); err != nil {
			return err
		}
		return os.ErrInvalid
	}); err == nil {
		t.Error("the failure of a session's function is lost")
	}
	after := make([]byte, 8)
	if _, err := memory.ReadAt(after, int64(code)); err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("a write was not undone: % x, then % x", before, after)
	}
	checkFree(t, p)
}

func TestErrorOfCallInside(t *testing.T) {
	p := start(t, nil, compile(t, "steady.c"), "1", "spin")
	if _, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		for _, chained := range []bool{true, false} {
			if !chained {
				s.borrowed.signal = 0
			}
			if _, err := s.Call(syscall.SYS_CLOSE, 9999); err == nil || gone(err) {
				t.Errorf("close of a closed descriptor (chained %v): %v", chained, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
