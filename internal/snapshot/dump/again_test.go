package dump

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// changing starts a program that changes when it is told to, in a session of its own.
func changing(t *testing.T, how string) (k *kept, change func()) {
	t.Helper()
	source, err := os.ReadFile("testdata/changes.c")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testbed.MustCompile(t, testbed.Build{Name: "changes", Source: string(source)}), how)
	cmd.Dir = t.TempDir()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		for err := error(nil); err == nil || errors.Is(err, syscall.EINTR); { // its child is the test's now
			_, err = syscall.Wait4(-cmd.Process.Pid, nil, 0, nil)
		}
	})
	lines := bufio.NewScanner(out)
	says := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("it says %q (%v), not %q", lines.Text(), lines.Err(), want)
		}
	}
	says("ready")
	return &kept{pid: cmd.Process.Pid}, func() {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		says("changed")
	}
}

// TestBornSince refuses a program that has had a child since it was looked at: it goes
// on, with its child, and there is no image.
func TestBornSince(t *testing.T) {
	k, change := changing(t, "child")
	plan := look(t, k, Options{})
	if len(plan.Refusals) > 0 {
		t.Fatalf("refusals %v", plan.Refusals)
	}
	change()
	dir := filepath.Join(t.TempDir(), "image")
	_, err := commitTo(t, plan, dir)
	if all := api.Refusals(err); len(all) != 1 || all[0].Code != codeChildren {
		t.Errorf("committed: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is an image: %v", err)
	}
	if stat, err := plan.Process.Stat(); err != nil || stat.Zombie() {
		t.Errorf("the program has ended: %v", err)
	}
}

// TestMovedSince keeps the current directory of the stop, not that of the look.
func TestMovedSince(t *testing.T) {
	k, change := changing(t, "directory")
	plan := look(t, k, Options{LeaveRunning: true})
	change()
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := commitTo(t, plan, dir); err != nil {
		t.Fatal(err)
	}
	r, err := image.Open(dir, image.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Image().Processes[0].Directory; got != "/" {
		t.Errorf("its directory is %s", got)
	}
}
