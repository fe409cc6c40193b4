package dump

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// writing starts the fixture that writes to its memory all the time.
func writing(t *testing.T, args ...string) *kept {
	t.Helper()
	source, err := os.ReadFile("testdata/writing.c")
	if err != nil {
		t.Fatal(err)
	}
	// The pages of the file are as the fixture's own.
	const pages = 512
	content := make([]byte, pages*image.PageSize)
	for i := range pages {
		for _, w := range []struct{ at, times int }{{0, 1}, {image.PageSize / 2, 3}, {image.PageSize - 8, 7}} {
			binary.LittleEndian.PutUint64(content[i*image.PageSize+w.at:], uint64((i+1)*w.times))
		}
	}
	file := filepath.Join(t.TempDir(), "direct")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	path := testbed.MustCompile(t, testbed.Build{Name: "writing", Source: string(source), Flags: []string{"-O2", "-pthread"}})
	cmd := exec.Command(path, append([]string{file}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the fixture: %v", err)
		}
		if said.Len() > 0 {
			t.Errorf("the fixture said: %s", said.String())
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{pid: cmd.Process.Pid}
	if err := json.Unmarshal(line, k); err != nil {
		t.Fatal(err)
	}
	return k
}

// alwaysPrecopy lets the least program's memory be copied while it runs.
func alwaysPrecopy(t *testing.T) {
	before := precopyLeast
	precopyLeast = 0
	t.Cleanup(func() { precopyLeast = before })
}

// TestPrecopiedAsHeld compares, of a program that writes all the time, every page of an
// image with the memory as it is while it is held.
func TestPrecopiedAsHeld(t *testing.T) {
	alwaysPrecopy(t)
	k := writing(t)
	compareWhileWriting(t, k, 12, nil, true)
	goesOn(t, k)
}

// TestSeriesAsHeld does so of checkpoints between which writes stay noted. Most have the
// one before as their parent, some none, and some an older one.
func TestSeriesAsHeld(t *testing.T) {
	alwaysPrecopy(t)
	k := writing(t)
	series := &Series{}
	compareWhileWriting(t, k, 24, series, true)
	if len(series.trackers) != 1 {
		t.Error("it does not go on to note writes")
	}
	if err := series.Close(); err != nil {
		t.Fatal(err)
	}
	untracked(t, k)
	goesOn(t, k)
}

// compareWhileWriting does it so many times. With tracks writes must be noted.
func compareWhileWriting(t *testing.T, k *kept, times int, series *Series, tracks bool) {
	t.Helper()
	parent, first := "", ""
	for n := range times {
		plan := look(t, k, Options{LeaveRunning: true, Inherit: []int{1, 2}, Series: series})
		if len(plan.Refusals) > 0 {
			t.Fatal(plan.Refusals)
		}
		var c *commit
		var copied []image.Run
		noted := false
		held := map[image.Span][]byte{}
		plan.written = func(s *tracee.Session, now *commit) error {
			if c, noted = now, now.tracker != nil; noted {
				copied = slices.Clone(now.tracker.copied)
			}
			for i := range now.memory.mappings {
				m := &now.memory.mappings[i]
				if m.Kind != image.Anonymous {
					continue
				}
				b := make([]byte, m.End-m.Start)
				for _, r := range m.Pages { // what is not there is zeroes, or can't be read
					if _, err := s.Memory().ReadAt(b[r.Start-m.Start:endOf(r)-m.Start], int64(r.Start)); err != nil {
						return err
					}
				}
				held[image.Span{Start: m.Start, End: m.End}] = b
			}
			// And what the image leaves out as zeroes is such.
			plain := &memory{mappings: slices.Clone(now.memory.mappings)}
			if err := plain.scan(now.pagemap, now.guards, nil); err != nil {
				return err
			}
			page := make([]byte, image.PageSize)
			for _, m := range plain.mappings {
				if m.Kind != image.Anonymous {
					continue
				}
				b := held[image.Span{Start: m.Start, End: m.End}]
				for _, r := range m.Pages {
					for at := r.Start; at < endOf(r); at += image.PageSize {
						if _, err := s.Memory().ReadAt(page, int64(at)); err != nil {
							return err
						}
						if !bytes.Equal(page, b[at-m.Start:][:image.PageSize]) {
							return fmt.Errorf("the image lacks the page at %#x", at)
						}
					}
				}
			}
			return nil
		}
		dir := filepath.Join(t.TempDir(), "image")
		if _, err := commitBeside(t, plan, dir, parent); err != nil {
			t.Fatal(err)
		}
		if !noted && tracks {
			t.Skip("the kernel does not note writes")
		}
		if noted && !tracks {
			t.Error("writes are noted by two")
		}
		if tracks && (len(copied) == 0 || series == nil && c.copiedBefore == 0) {
			t.Errorf("nothing was copied while it ran: %d bytes", c.copiedBefore)
		}
		switch {
		case n == 0:
			parent, first = dir, dir
		case n%3 < 2:
			parent = dir
		case n%4 == 0:
			parent = first
		default:
			parent = ""
		}
		r, err := image.Open(dir, image.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p := &r.Image().Processes[0]
		for _, m := range p.Mappings {
			want, found := held[image.Span{Start: m.Start, End: m.End}]
			if !found {
				continue
			}
			if slices.Contains(m.VMFlags, "uw") {
				t.Errorf("%#x: the image has vOS's own tracking: %v", m.Start, m.VMFlags)
			}
			got := make([]byte, len(want))
			for _, r1 := range m.Pages {
				if err := r.ReadPages(r1.Place, got[r1.Start-m.Start:endOf(r1)-m.Start]); err != nil {
					t.Fatal(err)
				}
			}
			for at := 0; at < len(want); at += image.PageSize {
				if !bytes.Equal(got[at:at+image.PageSize], want[at:at+image.PageSize]) {
					t.Fatalf("checkpoint %d: the page at %#x is not as it was when it was held", n, m.Start+uint64(at))
				}
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if series == nil {
			untracked(t, k)
		}
	}
}

// untracked waits until nothing of vOS is left in the program.
func untracked(t *testing.T, k *kept) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		p, err := procfs.Open(k.pid)
		if err != nil {
			t.Fatal(err)
		}
		links, err := p.Descriptors()
		flags, err2 := p.MappingFlags()
		p.Close()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		left := ""
		for _, link := range links {
			if strings.Contains(link, "userfaultfd") {
				left = link
			}
		}
		for at, f := range flags {
			if slices.Contains(f, "uw") {
				left = fmt.Sprintf("tracking at %#x", at)
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is left", left)
		}
	}
}

// checkpointEnv makes the test binary write checkpoints of a process to a folder until
// it is killed.
const checkpointEnv = "VOS_TEST_CHECKPOINTS_OF"

func checkpoints(pid int) error {
	precopyLeast = 0
	p, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var series *Series // or each on its own
	if os.Getpid()%2 == 0 {
		series = &Series{}
	}
	parent := ""
	for n := 0; ; n++ {
		plan, err := Look(context.Background(), p, Options{LeaveRunning: true, Inherit: []int{1, 2}, Series: series})
		if err != nil {
			return err
		}
		dir := filepath.Join(os.Args[1], strconv.Itoa(n))
		w, err := image.Create(dir, image.WriteOptions{Parent: parent})
		if err != nil {
			return err
		}
		// It may have a child just now, or its mappings may change all the time.
		if _, err := plan.Commit(context.Background(), w); err != nil && len(api.Refusals(err)) == 0 {
			return err
		}
		if _, err := os.Stat(dir); err == nil && series != nil && n%8 > 0 {
			parent = dir
			continue
		}
		parent = ""
		if err := emptied(os.Args[1]); err != nil {
			return err
		}
	}
}

func emptied(folder string) error {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(folder, e.Name())))
	}
	return err
}

// TestTwoSeries makes checkpoints of two series in turn: each image has the memory as it
// is, as only one of them tracks the program.
func TestTwoSeries(t *testing.T) {
	alwaysPrecopy(t)
	k := writing(t)
	one, two := &Series{}, &Series{}
	for range 4 {
		compareWhileWriting(t, k, 2, one, true)
		compareWhileWriting(t, k, 2, two, false)
	}
	if len(one.trackers) != 1 || len(two.trackers) != 0 {
		t.Errorf("%d and %d trackers", len(one.trackers), len(two.trackers))
	}
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Fatal(err)
	}
	untracked(t, k)
}

// TestKilledWhileCopying kills vOS at random instants of copying a program that writes,
// forks, moves and unmaps. It checks all that it reads, and ends at the first wrong byte.
func TestKilledWhileCopying(t *testing.T) {
	kills := 40
	if os.Getenv("VOS_SOAK") != "" {
		kills = 300
	}
	k := writing(t, "fork")
	for n := range kills {
		helper := exec.Command(os.Args[0], t.TempDir())
		helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", checkpointEnv, k.pid))
		var said bytes.Buffer
		helper.Stderr = &said
		out, err := helper.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := helper.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("the helper said %q, %v, %s", line, err, said.String())
		}
		time.Sleep(time.Duration(rand.Int64N(int64(80 * time.Millisecond))))
		_ = helper.Process.Kill()
		if err := helper.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Fatalf("kill %d: the helper ended by itself: %v: %s", n, err, said.String())
		}
		goesOn(t, k)
		untracked(t, k)
	}
}
