package tracee

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
	if at := os.Getenv(dieEnv); at != "" {
		return dieInSolo(p, at)
	}
	callees := os.Getenv(calleesEnv)
	fmt.Println("ready")
	for n := 0; ; n++ {
		if callees != "" {
			if err := callSleep(p, callees, n); err != nil {
				return err
			}
			continue
		}
		_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
			if os.Getenv(togetherEnv) != "" {
				return onlyTogether(s)
			}
			return exercise(s, n)
		})
		if err != nil {
			return err
		}
	}
}

// togetherEnv makes these sessions let all threads make calls at the same time, and
// nothing else.
const togetherEnv = "VOS_TEST_TOGETHER"

func onlyTogether(s *Session) error {
	if err := s.StopAll(); err != nil {
		return err
	}
	if err := s.Borrow(); err != nil {
		return err
	}
	if err := s.GiveBack(); err != nil {
		return err
	}
	for range 5 {
		if err := askTogether(s); err != nil {
			return err
		}
	}
	return nil
}

// exercise does what sessions are for: calls in chains and singly, with all
// threads stopped and with one.
func exercise(s *Session, n int) error {
	if n%3 == 0 {
		if err := s.StopAll(); err != nil {
			return err
		}
		if n%2 == 0 {
			if err := askAll(s, n%4 == 0); err != nil {
				return err
			}
			if err := askTogether(s); err != nil {
				return err
			}
			if err := takeOne(s); err != nil {
				return err
			}
			if err := aroundOne(s); err != nil {
				return err
			}
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
		run := s.Run
		if n%2 == 1 && s.AtOnce() == nil {
			run = s.RunAtOnce
		}
		results, err := run(calls)
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

// askAll lets every thread make calls that write to memory, by itself or one by one.
func askAll(s *Session, byItself bool) error {
	pops := s.gadgets.PopRDX
	if !byItself {
		s.gadgets.PopRDX = 0
	}
	defer func() { s.gadgets.PopRDX = pops }()
	for tid := range s.threads {
		status, err := s.process.ThreadStatus(tid)
		if err != nil {
			return err
		}
		if err := s.BorrowThread(&status); err != nil {
			return err
		}
		if byItself && s.borrowed.signal != 0 && !s.asksAtOnce(s.borrowed) {
			return fmt.Errorf("thread %d can't make calls by itself: %+v", tid, s.gadgets)
		}
		const words = 40
		number, size := s.MaxAsk()
		number, size = min(number, words), min(size, 8*words)
		data, results, err := s.Ask(size, func(at uint64) (calls []Call) {
			for i := range number {
				switch {
				case i%3 == 0 || 8*i+8 > size:
					calls = append(calls, Call{Number: syscall.SYS_GETTID, Args: [6]uint64{3: 8}})
				default: // the mask, as it is now
					calls = append(calls, Call{Number: syscall.SYS_RT_SIGPROCMASK, Args: [6]uint64{0, 0, at + uint64(8*i), 8}})
				}
			}
			return calls
		})
		if err != nil {
			return err
		}
		if len(results) != number || len(data) != size {
			return fmt.Errorf("%d results and %d bytes of %d calls that write %d", len(results), len(data), number, size)
		}
		const unblockable = 1<<(syscall.SIGKILL-1) | 1<<(syscall.SIGSTOP-1)
		for i, r := range results {
			var wrote uint64
			if 8*i+8 <= size {
				wrote = binary.LittleEndian.Uint64(data[8*i:])
			}
			switch {
			case i%3 == 0 || 8*i+8 > size:
				if r != uint64(tid) || wrote != 0 {
					return fmt.Errorf("gettid in thread %d returned %d and wrote %#x", tid, int64(r), wrote)
				}
			case r != 0 || wrote|unblockable|1<<(max(s.borrowed.signal, 1)-1) != everySignal:
				return fmt.Errorf("rt_sigprocmask in thread %d returned %d and wrote %#x", tid, int64(r), wrote)
			}
		}
		if err := s.GiveBack(); err != nil {
			return err
		}
	}
	return nil
}

// askTogether lets all threads make calls at the same time.
func askTogether(s *Session) error {
	var statuses []*procfs.Status
	for tid := range s.threads {
		status, err := s.process.ThreadStatus(tid)
		if err != nil {
			return err
		}
		statuses = append(statuses, &status)
	}
	const size = 16
	answers, err := s.AskEach(statuses, size, func(at uint64) []Call {
		return []Call{{Number: syscall.SYS_GETTID, Args: [6]uint64{3: 8}}, {Number: syscall.SYS_RT_SIGPROCMASK, Args: [6]uint64{0, 0, at + 8, 8}},
			{Number: syscall.SYS_GETPID, Args: [6]uint64{3: 8}}}
	})
	if err != nil {
		return err
	}
	for i, a := range answers {
		const usual = 1<<(syscall.SIGKILL-1) | 1<<(syscall.SIGSTOP-1) | 1<<(syscall.SIGURG-1)
		if want := []uint64{uint64(statuses[i].PID), 0, s.ownPID}; !slices.Equal(a.Results, want) {
			return fmt.Errorf("the calls of thread %d returned %v, want %v", statuses[i].PID, a.Results, want)
		}
		wrote := []uint64{binary.LittleEndian.Uint64(a.Data), binary.LittleEndian.Uint64(a.Data[8:]) | usual}
		if want := []uint64{0, everySignal}; len(a.Data) != size || !slices.Equal(wrote, want) {
			return fmt.Errorf("the calls of thread %d wrote %#x, want %#x", statuses[i].PID, wrote, want)
		}
	}
	return nil
}

// takeOne takes a descriptor that a thread makes.
func takeOne(s *Session) error {
	if err := s.Borrow(); err != nil {
		return err
	}
	const value = 7
	taken, err := s.Take(Call{Number: sysEventfd2, Args: [6]uint64{value, syscall.O_CLOEXEC}})
	if err != nil {
		return err
	}
	defer taken.Close()
	count := make([]byte, 8)
	if _, err := taken.Read(count); err != nil || binary.LittleEndian.Uint64(count) != value {
		return fmt.Errorf("the eventfd that was taken has % x: %w", count, err)
	}
	if _, err := s.Take(Call{Number: syscall.SYS_DUP, Args: [6]uint64{^uint64(0)}}); !errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("a descriptor that could not be made: %v", err)
	}
	if err := s.GiveBack(); err != nil {
		return err
	}
	return nil
}

const sysEventfd2 = 290

// aroundOne has a thread open a descriptor, and close it behind something that is done, or
// fails.
func aroundOne(s *Session) error {
	if err := s.Borrow(); err != nil {
		return err
	}
	if s.AtOnce() != nil { // its only thread waits for a span of time
		return s.GiveBack()
	}
	there := func() bool {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", s.process.PID(), aroundDescriptor))
		return err == nil
	}
	failed := errors.New("failed")
	for _, result := range []error{nil, failed} {
		done := false
		err := s.Around(Call{Number: syscall.SYS_DUP3, Args: [6]uint64{0, aroundDescriptor, syscall.O_CLOEXEC}}, func() error {
			done = there()
			return result
		}, Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{aroundDescriptor}})
		if !errors.Is(err, result) || !done || there() {
			return fmt.Errorf("around what ends by %v: %w; it was there: %v, it is: %v", result, err, done, there())
		}
	}
	err := s.Around(Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{^uint64(0)}}, func() error { panic("after a call that failed") },
		Call{Number: syscall.SYS_GETPID})
	if !errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("around a call that fails: %v", err)
	}
	return s.GiveBack()
}

const aroundDescriptor = 200

// withoutTaken waits until a process has none of the descriptors of takeOne and aroundOne.
func withoutTaken(t *testing.T, p *procfs.Process) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		links, err := p.Descriptors()
		if err != nil {
			t.Fatal(err)
		}
		if _, around := links[aroundDescriptor]; !around && !slices.Contains(slices.Collect(maps.Values(links)), "anon_inode:[eventfd]") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("descriptors %v: one was left", links)
		}
	}
}

//go:embed testdata/steady.c
var steadySource string

// steady runs the program of testdata, in an IPC namespace with which its
// semaphores go.
func steady(t *testing.T, env []string, args ...string) *procfs.Process {
	t.Helper()
	path := testbed.MustCompile(t, testbed.Build{Name: "steady", Source: steadySource, Flags: []string{"-Wall", "-Werror"}})
	f := testbed.Run(t, testbed.FixtureOptions{Env: env, Mute: true, Attr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC}}, path, args...)
	p, err := procfs.Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func checkFree(t *testing.T, p *procfs.Process) { t.Helper(); testbed.AssertUndisturbed(t, p.PID()) }

func TestSessionsLeaveNoTrace(t *testing.T) {
	const sessions = 60 // each form of them
	for _, threads := range []string{"1", "8", "64"} {
		for _, mode := range []string{"spin", "wait", "mixed"} {
			t.Run(threads+" "+mode, func(t *testing.T) {
				p := steady(t, []string{"STEADY_EINTR=fatal"}, threads, mode)
				before := mappings(t, p)
				for n := range sessions {
					if _, err := Do(context.Background(), p, Options{}, func(s *Session) error { return exercise(s, n) }); err != nil {
						t.Fatalf("session %d: %v", n, err)
					}
				}
				checkFree(t, p)
				if diff := cmp.Diff(before, mappings(t, p)); diff != "" {
					t.Errorf("what is mapped (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// mappings returns the lines of a process's maps, all of them.
func mappings(t *testing.T, p *procfs.Process) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

func TestTracerKilled(t *testing.T) {
	for _, target := range [][]string{{"1", "spin"}, {"1", "wait"}, {"8", "mixed"}, {"64", "mixed"}} {
		t.Run(target[0]+" "+target[1], func(t *testing.T) {
			p := steady(t, nil, target...)
			for n := range 75 {
				helper := exec.Command(os.Args[0])
				helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, p.PID()))
				if n%2 == 1 {
					helper.Env = append(helper.Env, togetherEnv+"=1")
				}
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
				withoutTaken(t, p)
			}
			if _, err := Do(context.Background(), p, Options{}, func(s *Session) error { return exercise(s, 2) }); err != nil {
				t.Fatalf("a session afterwards: %v", err)
			}
			checkFree(t, p)
		})
	}
}

func TestFailureAndPanicAreUndone(t *testing.T) {
	p := steady(t, []string{"STEADY_EINTR=fatal"}, "8", "mixed")
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
	p := steady(t, nil, "1", "spin")
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
