package restore

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"errors"

	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A subject is a fixture whose process comes and goes.
type subject struct {
	pid     int
	files   [3]*os.File // its ends
	stdin   *os.File
	answers *os.File
	stdout  *bufio.Scanner // of them
	last    testbed.Report
}

// start starts a fixture of package testbed.
func start(t *testing.T, name string, args ...string) *subject {
	t.Helper()
	build, err := testbed.Source(name)
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, append([]string{testbed.MustCompile(t, build)}, args...)...)
}

// startCommand starts a program that says that it is ready.
func startCommand(t testing.TB, argv ...string) *subject {
	t.Helper()
	s := &subject{}
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	s.files[0], s.stdin = pipe()
	s.answers, s.files[1] = pipe()
	s.files[2] = os.Stderr
	s.stdout = bufio.NewScanner(s.answers)
	s.stdout.Buffer(nil, 1<<20)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.files[0], s.files[1], s.files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.pid = cmd.Process.Pid
	t.Cleanup(func() { s.kill(t) })
	if !s.stdout.Scan() || s.stdout.Text() != "ready" {
		t.Fatalf("%v printed %q: %v", argv, s.stdout.Text(), s.stdout.Err())
	}
	return s
}

// kill ends the process, if there is one, and reaps it.
func (s *subject) kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(s.pid, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
		return
	}
	s.wait(t)
}

// wait waits until the process has ended, and returns how.
func (s *subject) wait(t testing.TB) (status syscall.WaitStatus) {
	t.Helper()
	for {
		_, err := syscall.Wait4(s.pid, &status, unix.WALL, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			t.Errorf("wait for process %d: %v", s.pid, err)
		}
		return status
	}
}

// report asks the fixture how it fares: it must be healthy, and have worked.
func (s *subject) report(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := s.stdin.WriteString("report\n"); err != nil {
			t.Fatal(err)
		}
		if err := s.answers.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if !s.stdout.Scan() {
			threads := s.threads()
			if strings.Contains(threads, "zombie") {
				threads += fmt.Sprintf("ended by %v", s.wait(t).Signal())
			}
			t.Fatalf("the fixture says nothing: %v\n%s", s.stdout.Err(), threads)
		}
		var r testbed.Report
		if err := json.Unmarshal(s.stdout.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		err := r.Healthy(s.last)
		if r.Errors > 0 || err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
		if err == nil {
			s.last = r
			return
		}
	}
}

// threads tells what each thread does.
func (s *subject) threads() string {
	var b strings.Builder
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.pid))
	for _, name := range names {
		status, _ := os.ReadFile(filepath.Join(name, "status"))
		call, _ := os.ReadFile(filepath.Join(name, "syscall"))
		fmt.Fprintf(&b, "%s: %s, %s, blocked %s, pending %s, in %s", filepath.Base(name), field(string(status), "Name"),
			field(string(status), "State"), field(string(status), "SigBlk"), field(string(status), "SigPnd"), call)
	}
	return b.String()
}

// quit tells the fixture to end, which it must do in good order.
func (s *subject) quit(t *testing.T) {
	t.Helper()
	if _, err := s.stdin.WriteString("quit\n"); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(t); status.ExitStatus() != 0 {
		t.Fatalf("the restored program ended with exit code %d, signal %v", status.ExitStatus(), status.Signal())
	}
}

// cycle dumps and kills the process, and restores it.
func (s *subject) cycle(t *testing.T) Result {
	t.Helper()
	img := dump(t, s.pid)
	s.wait(t)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", s.pid)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("process %d is still there: %v", s.pid, err)
	}
	return s.restore(t, img)
}

// restore restores the process.
func (s *subject) restore(t *testing.T, img *memoryImage) Result {
	t.Helper()
	plan, err := Look(t.Context(), img, Options{Inherit: map[int]*os.File{0: s.files[0], 1: s.files[1], 2: s.files[2]}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := plan.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestCycles(t *testing.T) {
	for _, test := range []struct {
		name, fixture string
		args          []string
	}{
		{"plain", "plain", nil},
		{"static", "static", nil},
		{"threads", "threads", []string{"64", "busy"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, test.fixture, test.args...)
			for range 5 {
				s.report(t)
				r := s.cycle(t)
				t.Logf("restored process %d in %v, %d KiB", r.PID, r.Total, r.Bytes>>10)
			}
			s.report(t)
			s.quit(t)
		})
	}
}
