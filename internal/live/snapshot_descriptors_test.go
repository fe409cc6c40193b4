package live

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestDescriptorsComeBack: a program with descriptors of many kinds is checkpointed, ended
// and restored several times. It has what it had, and others see its locks.
func TestDescriptorsComeBack(t *testing.T) {
	python := testbed.NeedTool(t, "python3")
	script, err := filepath.Abs("testdata/descriptors.py")
	if err != nil {
		t.Fatal(err)
	}
	h := startKeeper(t, python, script)
	fired := h.state(t, 1)
	cycles := 3
	if soak {
		cycles = 20
	}
	for i := range cycles {
		image := filepath.Join(t.TempDir(), "image")
		if r := vos(t, "checkpoint", strconv.Itoa(h.pid), "-D", image); r.Code != 0 {
			t.Fatalf("checkpoint: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		h.reap(t)
		if h.locked(t) {
			t.Error("the lock of a program that has ended is held")
		}
		if r := vos(t, "restore", "-D", image); r.Code != 0 {
			t.Fatalf("restore: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if !h.locked(t) {
			t.Error("nobody has the lock that the program had")
		}
		before := fired
		await(t, "the timer to fire", func() bool {
			h.asked++
			fired = h.state(t, h.asked)
			return fired > before
		})
		log, err := os.ReadFile(filepath.Join(h.folder, "log"))
		if want := "ready\n" + strings.Repeat("asked\n", h.asked); err != nil || string(log) != want {
			t.Fatalf("after %d restores the log is %q, error %v", i+1, log, err)
		}
	}
}

// A keeper is a running descriptors.py.
type keeper struct {
	pid    int
	folder string
	asked  int
}

func startKeeper(t *testing.T, python, script string) *keeper {
	t.Helper()
	h := &keeper{folder: t.TempDir(), asked: 1}
	// What whoever started the tests has left open is not the program's.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	cmd := exec.Command(python, script, h.folder)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.pid = cmd.Process.Pid
	t.Cleanup(func() {
		if syscall.Kill(h.pid, syscall.SIGKILL) == nil {
			h.reap(t)
		}
	})
	await(t, "the program to be ready", func() bool {
		log, err := os.ReadFile(filepath.Join(h.folder, "log"))
		return err == nil && string(log) == "ready\n"
	})
	return h
}

// reap waits for the end of the program: its parent, or the nearest subreaper, are the
// tests.
func (h *keeper) reap(t *testing.T) {
	t.Helper()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(h.pid, &status, 0, nil); err != nil || status.Signal() != syscall.SIGKILL {
		t.Fatalf("process %d ended by %v, error %v", h.pid, status.Signal(), err)
	}
}

// locked reports whether somebody has the lock of the program's pid file.
func (h *keeper) locked(t *testing.T) bool {
	t.Helper()
	file, err := os.Open(filepath.Join(h.folder, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatal(err)
	}
	return err != nil
}

// state asks the program for the nth time whether all is right, and returns how often
// its timer has fired.
func (h *keeper) state(t *testing.T, nth int) (fired int) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(h.folder, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("state")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1000)
	n, err := c.Read(b)
	var asked int
	var word string
	if _, scanned := fmt.Sscanf(string(b[:n]), "%d %d %s", &asked, &fired, &word); scanned != nil || err != nil || asked != nth || word != "right" {
		t.Fatalf("answered %q, error %v; want number %d, right", b[:n], err, nth)
	}
	return fired
}
