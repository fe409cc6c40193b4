package dump

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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
)

func TestMain(m *testing.M) {
	if pid := os.Getenv(checkpointEnv); pid != "" {
		n, err := strconv.Atoi(pid)
		if err == nil {
			err = checkpoints(n)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(testbed.RunTests(m))
}

// kept is a fixture, and where it has what.
type kept struct {
	pid                         int
	Alt, Holes, Shared, Counted uint64
}

func start(t *testing.T) *kept {
	t.Helper()
	return startWith(t, nil)
}

func startWith(t *testing.T, stderr *os.File) *kept {
	t.Helper()
	source, err := os.ReadFile("testdata/kept.c")
	if err != nil {
		t.Fatal(err)
	}
	path := testbed.MustCompile(t, testbed.Build{Name: "kept", Source: string(source), Flags: []string{"-pthread"}})
	cmd := exec.Command(path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
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

// look looks at the fixture, whose standard output leads to the test.
func look(t *testing.T, k *kept, o Options) *Plan {
	t.Helper()
	p, err := procfs.Open(k.pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if o.Inherit == nil {
		o.Inherit = []int{1}
	}
	plan, err := Look(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func commitTo(t *testing.T, plan *Plan, dir string) (Result, error) {
	t.Helper()
	return commitBeside(t, plan, dir, "")
}

func commitBeside(t *testing.T, plan *Plan, dir, parent string) (Result, error) {
	t.Helper()
	w, err := image.Create(dir, image.WriteOptions{Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	return plan.Commit(t.Context(), w)
}

// TestKept writes a program down that goes on, and one that ends, and compares the
// image with what the program has.
func TestKept(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "left running", false: "ended"}[running], func(t *testing.T) {
			k := start(t)
			plan := look(t, k, Options{LeaveRunning: running})
			if len(plan.Refusals) > 0 || plan.Threads != 2 || plan.Kept == 0 || plan.Mapped < plan.Kept {
				t.Fatalf("%+v", plan)
			}
			var before []procfs.Mapping
			before, err := plan.Process.Maps()
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "image")
			result, err := commitTo(t, plan, dir)
			if err != nil || result.Bytes == 0 || result.Freeze == 0 {
				t.Fatal(result, err)
			}
			r, err := image.Open(dir, image.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			compare(t, k, r, before)
			stat, err := plan.Process.Stat()
			if running {
				if err != nil || stat.Zombie() {
					t.Fatalf("it did not go on: %v", err)
				}
				goesOn(t, k)
			} else if err == nil && !stat.Zombie() {
				t.Error("it goes on")
			}
		})
	}
}

// goesOn waits until the fixture has counted.
func goesOn(t *testing.T, k *kept) {
	t.Helper()
	first := counted(t, k)
	for end := time.Now().Add(10 * time.Second); counted(t, k) == first; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the program does not go on")
		}
	}
}

func counted(t *testing.T, k *kept) uint64 {
	t.Helper()
	p, err := procfs.Open(k.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var b [8]byte
	if _, err := m.ReadAt(b[:], int64(k.Counted)); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func compare(t *testing.T, k *kept, r *image.Reader, maps []procfs.Mapping) {
	t.Helper()
	img := r.Image()
	p := &img.Processes[0]
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err != nil || img.Machine.Kernel != strings.TrimSpace(string(release)) {
		t.Errorf("the image is of kernel %q, which is %s (%v)", img.Machine.Kernel, release, err)
	}
	if p.PID != k.pid || p.Session != k.pid || p.Umask != 0o27 || filepath.Base(p.Executable.Path) != "kept" || len(p.Limits) != 16 {
		t.Errorf("process %+v", p)
	}
	usr1 := p.Actions[syscall.SIGUSR1-1]
	if len(p.Actions) != 64 || usr1.Handler == 0 || usr1.Mask != 1<<(syscall.SIGUSR2-1) || usr1.Flags&0x18000000 != 0x18000000 {
		t.Errorf("%d actions, of SIGUSR1 %+v", len(p.Actions), usr1)
	}
	const rt = 34 + 3
	if len(p.Pending) != 1 || p.Pending[0][0] != rt || binary.LittleEndian.Uint32(p.Pending[0][24:]) != 4711 {
		t.Errorf("pending for the process: %x", p.Pending)
	}
	if v := p.Intervals[1]; v.Every != 500*time.Second || v.Left > 1001*time.Second || v.Left < 999*time.Second {
		t.Errorf("interval %+v", v)
	}
	if len(p.Timers) != 1 || p.Timers[0].Signal != int(syscall.SIGUSR1) || p.Timers[0].Value&0xffffffff != 12 ||
		p.Timers[0].Clock != 1 || p.Timers[0].Time.Left > 5000*time.Second || p.Timers[0].Time.Left < 4990*time.Second {
		t.Errorf("timers %+v", p.Timers)
	}
	if len(p.Threads) != 2 {
		t.Fatalf("%d threads", len(p.Threads))
	}
	main, other := &p.Threads[0], &p.Threads[1]
	if main.TID != k.pid || main.Name != "kept" || main.Mask != 1<<(rt-1)|1<<(syscall.SIGHUP-1) || len(main.Pending) != 1 ||
		main.Pending[0][0] != byte(syscall.SIGHUP) || main.Scheduler.Nice != 5 || !slices.Equal(main.Affinity, []uint64{1}) ||
		main.Robust.Head == 0 || main.ClearTID == 0 || main.Rseq == nil || int64(main.Registers.OrigRAX) != -1 {
		t.Errorf("main thread %+v", main)
	}
	if other.Name != "sleeper" || other.AltStack.Address != k.Alt || other.AltStack.Size != 1<<16 || other.Slack != 77777 ||
		other.Registers.RAX != syscall.SYS_PAUSE || main.AltStack.Flags != 2 {
		t.Errorf("second thread %+v, alternate stack of the first %+v", other, main.AltStack)
	}
	at := 0
	for _, m := range maps {
		if m.Kind == procfs.KindVsyscall {
			continue
		}
		if at == len(p.Mappings) || p.Mappings[at].Start != m.Start || p.Mappings[at].End != m.End || p.Mappings[at].Protection != uint32(m.Perms&7) {
			t.Fatalf("mapping %v is not in the image", m)
		}
		at++
	}
	for address, want := range map[uint64]byte{k.Holes + 3<<12: 'a', k.Holes + 9<<12: 'b'} {
		if b := page(t, r, p, address); b[0] != want {
			t.Errorf("at %#x there is %q, not %q", address, b[0], want)
		}
	}
	for i := range p.Mappings {
		m := &p.Mappings[i]
		if m.Start >= k.Holes && m.End <= k.Holes+64<<12 {
			for _, run := range m.Pages {
				if run.Count != 1 || run.Start != k.Holes+3<<12 && run.Start != k.Holes+9<<12 {
					t.Errorf("kept %+v of what was never written", run)
				}
			}
		}
		if m.Start == k.Shared {
			o := img.Objects[m.Object]
			if m.Kind != image.InObject || o.Kind != "shared" || o.Size != 4<<12 || len(o.Pages) == 0 {
				t.Errorf("shared memory %+v, %+v", m, o)
			}
		}
	}
}

// TestParents writes images one after the other: each holds what has changed, and all
// of the memory is to be had from it.
func TestParents(t *testing.T) {
	k := start(t)
	folder := t.TempDir()
	parent := ""
	for n, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(folder, name)
		if _, err := commitBeside(t, look(t, k, Options{LeaveRunning: true}), dir, parent); err != nil {
			t.Fatal(err)
		}
		r, err := image.Open(dir, image.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p := &r.Image().Processes[0]
		written, kept := uint64(0), uint64(0)
		for i := range p.Mappings {
			for _, run := range p.Mappings[i].Pages {
				kept += run.Count
				if run.Place.Up == 0 {
					written += run.Count
				}
			}
		}
		t.Logf("%s: %d of %d pages are its own", name, written, kept)
		if n == 0 && written != kept || n > 0 && (written == 0 || written > kept/2) {
			t.Errorf("%s: %d of %d pages are its own", name, written, kept)
		}
		if b := page(t, r, p, k.Holes+3<<12); b[0] != 'a' {
			t.Errorf("%s: the page is not what it was", name)
		}
		shared := 0
		for _, o := range r.Image().Objects {
			for _, run := range o.Pages {
				if shared++; (run.Place.Up > 0) != (n > 0) {
					t.Errorf("%s: of shared memory there is %+v", name, run)
				}
				if b := make([]byte, image.PageSize); o.Kind == "shared" {
					if err := r.ReadPages(run.Place, b); err != nil || bytes.Equal(b, zeroes[:image.PageSize]) {
						t.Errorf("%s: shared memory that can't be read, or is of zeroes: %v", name, err)
					}
				}
			}
		}
		if shared == 0 {
			t.Error("there is no shared memory")
		}
		if n > 0 && r.Image().Parent == "" {
			t.Error("it has no parent")
		}
		r.Close()
		parent = dir
		goesOn(t, k)
	}
}

// page reads the page of a process at an address.
func page(t *testing.T, r *image.Reader, p *image.Process, address uint64) []byte {
	t.Helper()
	for i := range p.Mappings {
		for _, run := range p.Mappings[i].Pages {
			if address >= run.Start && address < run.Start+run.Count*image.PageSize {
				b := make([]byte, image.PageSize)
				place := run.Place
				place.Offset += address - run.Start
				if err := r.ReadPages(place, b); err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
	}
	t.Fatalf("the page at %#x is not kept", address)
	return nil
}

// TestRefusedOutside refuses a pipe of somebody else that is not said to be given.
func TestRefusedOutside(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "60")
	other.Stdin = read
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	k := startWith(t, write)
	if err := errors.Join(read.Close(), write.Close()); err != nil {
		t.Fatal(err)
	}
	plan := look(t, k, Options{})
	if len(plan.Refusals) != 1 || plan.Refusals[0].Code != "end_outside" {
		t.Fatalf("refusals %v", plan.Refusals)
	}
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := commitTo(t, plan, dir); len(api.Refusals(err)) == 0 {
		t.Errorf("committed: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is an image: %v", err)
	}
	goesOn(t, k)
}

// TestDiskFull runs out of room on the way: the program goes on, and nothing is left.
func TestDiskFull(t *testing.T) {
	k := start(t)
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	}()
	for range 3 {
		if _, err := commitTo(t, look(t, k, Options{}), filepath.Join(folder, "image")); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
		goesOn(t, k)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestGivenUp gives a checkpoint up before it begins: the program goes on.
func TestGivenUp(t *testing.T) {
	k := start(t)
	plan := look(t, k, Options{})
	w, err := image.Create(filepath.Join(t.TempDir(), "image"), image.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := plan.Commit(ctx, w); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	goesOn(t, k)
}
