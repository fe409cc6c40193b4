package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// restoreEnv makes the test binary restore the image in this directory, with its own
// standard descriptors, after it has said so on descriptor 3.
const restoreEnv = "VOS_TEST_RESTORE"

func restoreOnly(dir string) error {
	reader, err := image.Open(dir, image.ReadOptions{})
	if err != nil {
		return err
	}
	defer reader.Close()
	if _, err := os.NewFile(3, "ready").WriteString("."); err != nil {
		return err
	}
	plan, err := Look(context.Background(), reader, Options{Inherit: map[int]*os.File{0: os.Stdin, 1: os.Stdout, 2: os.Stderr}})
	if err != nil {
		return err
	}
	_, err = plan.Commit(context.Background())
	return err
}

// write keeps the image in a directory.
func (m *memoryImage) write(t testing.TB, folder string) string {
	t.Helper()
	folder, err := os.MkdirTemp(folder, "vos-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	dir := filepath.Join(folder, "image")
	w, err := image.Create(dir, image.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img := m.image
	if len(m.pages) > 0 {
		place, err := w.Append(m.pages)
		if err != nil || place.Offset != 0 {
			t.Fatalf("append pages: at %d: %v", place.Offset, err)
		}
	}
	img.Model = image.Minimal
	if _, err := w.Commit(&img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestKilledAtAnyInstant kills vOS at random instants of restoring. The program must be
// there, whole, or nothing of it.
func TestKilledAtAnyInstant(t *testing.T) {
	kills := 60
	if os.Getenv("VOS_SOAK") != "" {
		kills = 600
	}
	s := start(t, "threads", "24", "mixed", "5")
	s.report(t)
	img := dump(t, s.pid)
	s.wait(t)
	dir := img.write(t, "")

	whole := s.restoreFor(t, dir, -1)
	s.last.Progress = 0
	s.report(t)
	s.kill(t)
	there, gone := 0, 0
	bound := float64(whole)
	for range kills {
		s.restoreFor(t, dir, time.Duration(rand.Float64()*bound))
		s.last.Progress = 0
		if s.settled(t) {
			there++
			bound *= 0.9 // so that both happen, on any machine
			s.report(t)
			s.kill(t)
		} else {
			gone++
			bound *= 1.1
		}
		noTrace(t, img)
	}
	t.Logf("of %d restores that were killed, the last within %v, %d had restored the program", kills, time.Duration(bound), there)
	if there == 0 || gone == 0 {
		t.Errorf("%d restored, %d not: the instants were not of both sorts", there, gone)
	}
}

// restoreFor lets another process restore the image, which it is killed in after a
// time, and returns how long it took. A negative time lets it end.
func (s *subject) restoreFor(t *testing.T, dir string, limit time.Duration) time.Duration {
	t.Helper()
	ready, report, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), restoreEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.files[0], s.files[1], s.files[2]
	cmd.ExtraFiles = []*os.File{report}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	report.Close()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the restoring process: %v", err)
	}
	started := time.Now()
	if limit >= 0 {
		time.Sleep(limit)
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 || limit < 0 && err != nil {
		t.Fatalf("restore: %v", err)
	}
	return time.Since(started)
}

// settled waits until a killed restore has left the process to itself, or dead, and
// reports whether it lives. All that is dead is reaped.
func (s *subject) settled(t *testing.T) bool {
	t.Helper()
	const killed = 1 << (syscall.SIGKILL - 1)
	free := 0
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		reap()
		process, err := procfs.Open(s.pid)
		if err != nil {
			return false
		}
		status, err := process.Status()
		process.Close()
		if err != nil {
			continue
		}
		if status.TracerPID != 0 || status.State == 'Z' || (status.Pending|status.SharedPending)&killed != 0 {
			free = 0
		} else if free++; free == 4 {
			return true
		}
	}
	t.Fatalf("process %d is neither free nor gone", s.pid)
	return false
}

// reap waits for all children that have ended, and reports whether there is none left.
func reap() (none bool) {
	for {
		pid, err := syscall.Wait4(-1, nil, unix.WALL|unix.WNOHANG, nil)
		if err != nil || pid == 0 {
			return errors.Is(err, syscall.ECHILD)
		}
	}
}

// noTrace looks for what a restore may have left: processes and threads. What dies with
// vOS may take a moment.
func noTrace(t *testing.T, img *memoryImage) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		left = nil
		if !reap() {
			left = append(left, "a child")
		}
		for _, thread := range img.image.Processes[0].Threads {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", thread.TID)); !errors.Is(err, fs.ErrNotExist) {
				left = append(left, fmt.Sprintf("thread %d", thread.TID))
			}
		}
		if left == nil {
			return
		}
	}
	t.Errorf("left of a restore that was killed: %v", left)
}
