package live

import (
	"bufio"
	words "encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A writing is a program that writes to its memory all the time, and ends at the first
// byte that it has not written.
type writing struct {
	pid     int
	Counted int64 // where it counts the pages that it has checked and written
}

// startWriting starts one that nobody shares anything with.
func startWriting(t *testing.T) *writing {
	t.Helper()
	source, err := os.ReadFile("../snapshot/dump/testdata/writing.c")
	if err != nil {
		t.Fatal(err)
	}
	program := testbed.MustCompile(t, testbed.Build{Name: "writing", Source: string(source), Flags: []string{"-O2", "-pthread"}})
	folder := t.TempDir()
	direct := filepath.Join(folder, "direct")
	const pages, page = 512, 4096
	content := make([]byte, pages*page)
	for i := range pages { // as the program's own pages are
		for _, w := range []struct{ at, times int }{{0, 1}, {page / 2, 3}, {page - 8, 7}} {
			words.LittleEndian.PutUint64(content[i*page+w.at:], uint64((i+1)*w.times))
		}
	}
	if err := os.WriteFile(direct, content, 0o600); err != nil {
		t.Fatal(err)
	}
	said := filepath.Join(folder, "said")
	out, err := os.OpenFile(said, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, direct)
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &writing{pid: cmd.Process.Pid}
	t.Cleanup(func() {
		if syscall.Kill(w.pid, syscall.SIGTERM) == nil {
			if status := w.wait(t); !status.Exited() || status.ExitStatus() != 0 {
				t.Errorf("the program ended by %v", status)
			}
		}
	})
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "the program to write", func() bool {
		text, err := os.ReadFile(said)
		return err == nil && json.Unmarshal(text, w) == nil
	})
	return w
}

func (w *writing) wait(t *testing.T) (status syscall.WaitStatus) {
	t.Helper()
	if _, err := syscall.Wait4(w.pid, &status, 0, nil); err != nil {
		t.Errorf("wait for %d: %v", w.pid, err)
	}
	return status
}

// goesOn waits until the program has checked all pages again.
func (w *writing) goesOn(t *testing.T) {
	t.Helper()
	const pages = 6144
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var first uint64
	await(t, "the program to write all pages", func() bool {
		var b [8]byte
		if _, err := memory.ReadAt(b[:], w.Counted); err != nil {
			t.Fatal(err)
		}
		now := words.LittleEndian.Uint64(b[:])
		if first == 0 {
			first = now
		}
		return now > first+2*pages
	})
}

// TestSeriesWhileWriting makes checkpoints of such a program one after the other, between
// which what it writes is noted, and builds it again from each that is left.
func TestSeriesWhileWriting(t *testing.T) {
	checkpoints := 10
	if soak {
		checkpoints = 200
	}
	w := startWriting(t)
	images := filepath.Join(t.TempDir(), "images")
	series := exec.Command(binary, "checkpoint", strconv.Itoa(w.pid), "-D", images, "--every", "20ms", "--keep", "4", "--json")
	series.Stderr = os.Stderr
	lines, err := series.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := series.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(lines)
	for n := 0; n < checkpoints; {
		if !scan.Scan() {
			t.Fatalf("the series ended: %v", scan.Err())
		}
		if strings.Contains(scan.Text(), `"outcome":"checkpointed"`) {
			n++
			// Others may look at the program meanwhile, and checkpoint it, too.
			if n == 5 {
				await(t, "a checkpoint beside the series", func() bool {
					r := vos(t, "checkpoint", strconv.Itoa(w.pid), "-D", images+".beside", "--leave-running")
					if r.Code != 0 && !strings.Contains(r.Stderr, "traced") {
						t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
					}
					return r.Code == 0
				})
			}
		} else if !strings.Contains(scan.Text(), "change all the time") && !strings.Contains(scan.Text(), "traced") {
			t.Fatalf("the series went on with %q", scan.Text())
		}
		w.goesOn(t)
	}
	if err := series.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := series.Wait(); err != nil {
		t.Fatalf("the series ended by %v", err)
	}
	checkFree(t, w.pid)
	entries, err := os.ReadDir(images)
	if err != nil || len(entries) < 4 {
		t.Fatalf("%d images, %v", len(entries), err)
	}
	for _, image := range append([]string{images + ".beside"}, names(images, entries)...) {
		if err := syscall.Kill(w.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.wait(t)
		vos(t, "restore", "-D", image).expect(t, 0)
		w.goesOn(t)
		checkFree(t, w.pid)
	}
}

func names(folder string, entries []os.DirEntry) (paths []string) {
	for _, e := range entries {
		paths = append(paths, filepath.Join(folder, e.Name()))
	}
	return paths
}

// TestSnapshotWhileWriting checkpoints a program whose memory is copied while it writes
// to it, and builds it again: it finds each byte as it has written it.
func TestSnapshotWhileWriting(t *testing.T) {
	cycles := 6
	if soak {
		cycles = 60
	}
	w := startWriting(t)
	folder, parent := t.TempDir(), ""
	for n := range cycles {
		image := filepath.Join(folder, strconv.Itoa(n))
		args := []string{"checkpoint", strconv.Itoa(w.pid), "-D", image}
		if parent != "" && n%4 > 0 {
			args = append(args, "--parent", parent)
		}
		if n%3 == 1 {
			vos(t, append(args, "--leave-running")...).expect(t, 0)
		} else {
			vos(t, args...).expect(t, 0)
			if status := w.wait(t); status.Signal() != syscall.SIGKILL {
				t.Fatalf("the program ended by %v", status)
			}
			vos(t, "restore", "-D", image).expect(t, 0)
		}
		parent = image
		w.goesOn(t)
		checkFree(t, w.pid)
	}
}
