package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/testbed"
)

var removeAtEnd []string // directories of compiled fixtures

// TestMain fails a run that leaks descriptors.
func TestMain(m *testing.M) {
	kernel.PagemapScan() // probes are made once and leave nothing open
	before := openDescriptors()
	code := m.Run()
	for _, path := range removeAtEnd {
		os.RemoveAll(path)
	}
	after := openDescriptors()
	for fd, target := range after {
		if _, was := before[fd]; !was && code == 0 {
			fmt.Fprintf(os.Stderr, "leaked descriptor %s: %s\n", fd, target)
			code = 1
		}
	}
	os.Exit(code)
}

func openDescriptors() map[string]string {
	entries, _ := os.ReadDir("/proc/self/fd")
	open := make(map[string]string)
	for _, e := range entries {
		// The directory that is being listed is gone by now; the poller of the
		// runtime comes with the first pipe and stays.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil &&
			target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			open[e.Name()] = target
		}
	}
	return open
}

func open(t testing.TB, pid int) *Process {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func self(t testing.TB) *Process { return open(t, os.Getpid()) }

// sleeper starts a program that waits to be killed.
func sleeper(t testing.TB) (*exec.Cmd, *Process) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p := open(t, cmd.Process.Pid)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		// Sleeping in its last call: everything is loaded.
		s, err := p.Syscall(p.PID())
		if err == nil && s.InCall && s.Number == syscall.SYS_CLOCK_NANOSLEEP {
			return cmd, p
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("sleep does not sleep: %+v, %v", s, err)
		}
	}
}

// lookInto opens a process's memory and page map for the length of a test.
func lookInto(t *testing.T, p *Process) ([]Mapping, *Memory, *Pagemap) {
	t.Helper()
	maps, err := p.Maps()
	if err != nil || len(maps) == 0 {
		t.Fatalf("maps: %v, %v", maps, err)
	}
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	pagemap, err := p.OpenPagemap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pagemap.Close() })
	return maps, memory, pagemap
}

func TestProcessOutlivesNothing(t *testing.T) {
	cmd, p := sleeper(t)
	maps, memory, pagemap := lookInto(t, p)
	gone := func(when string) {
		t.Helper()
		_, mapsErr := p.Maps()
		_, memoryErr := memory.ReadAt(make([]byte, 8), int64(maps[0].Start))
		_, pagesErr := pagemap.PrivatePages(nil, maps[0].Start, maps[0].End)
		pagemap.scan = !pagemap.scan
		_, entriesErr := pagemap.PrivatePages(nil, maps[0].Start, maps[0].End)
		_, openErr := p.OpenMapped(maps[0])
		_, pssErr := p.PSS()
		_, auxvErr := p.Auxv()
		_, exeErr := p.Executable()
		for what, err := range map[string]error{
			"maps": mapsErr, "memory": memoryErr, "pages": pagesErr, "page map": entriesErr,
			"mapped": openErr, "pss": pssErr, "auxv": auxvErr, "executable": exeErr,
		} {
			if !errors.Is(err, ErrGone) {
				t.Errorf("%s: %s: %v, want ErrGone", when, what, err)
			}
		}
		if state := p.FileState(maps[0]); state.Change != FileUnknown || !errors.Is(state.Why, ErrGone) {
			t.Errorf("%s: file state %+v, want unknown as it is gone", when, state)
		}
	}

	cmd.Process.Kill()
	for s, err := p.Stat(); !s.Zombie(); s, err = p.Stat() {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	gone("zombie")
	cmd.Wait()
	gone("reaped")
	if p.Alive() {
		t.Error("alive after it was reaped")
	}
	if _, err := p.Stat(); !errors.Is(err, ErrGone) {
		t.Errorf("stat: %v, want ErrGone", err)
	}
	if _, err := p.Status(); !errors.Is(err, ErrGone) {
		t.Errorf("status: %v, want ErrGone", err)
	}
	if _, err := p.Threads(); !errors.Is(err, ErrGone) {
		t.Errorf("threads: %v, want ErrGone", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("open: %v, want ErrGone", err)
	}
}

func TestProcesses(t *testing.T) {
	cmd, _ := sleeper(t)
	pids, err := Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{os.Getpid(), cmd.Process.Pid} {
		if _, found := slices.BinarySearch(pids, pid); !found {
			t.Errorf("process %d is not in %v", pid, pids)
		}
	}
	for _, pid := range pids {
		p, err := Open(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		if stat, err := p.Stat(); err == nil && stat.KernelThread() {
			if _, err := p.Maps(); !errors.Is(err, ErrNoMemory) && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("maps of kernel thread %d: %v, want ErrNoMemory", pid, err)
			}
		}
		p.Close()
	}
}

func TestThreads(t *testing.T) {
	p := self(t)
	tids, err := p.Threads()
	if err != nil {
		t.Fatal(err)
	}
	if _, found := slices.BinarySearch(tids, p.PID()); !found {
		t.Errorf("%v lacks the main thread", tids)
	}
	for _, tid := range tids {
		stat, err := p.ThreadStat(tid)
		if err != nil || stat.PID != tid {
			t.Errorf("stat of thread %d: %+v, %v", tid, stat, err)
		}
		status, err := p.ThreadStatus(tid)
		if err != nil || status.PID != tid || status.TGID != p.PID() {
			t.Errorf("status of thread %d: %+v, %v", tid, status, err)
		}
	}
	if _, err := p.ThreadStat(p.PID() + 1<<22); !errors.Is(err, ErrGone) {
		t.Errorf("stat of a thread that is none: %v", err)
	}
}

func TestPermission(t *testing.T) {
	testbed.NeedRoot(t)
	// A thread that has given up its rights asks about a process of root.
	cmd, p := sleeper(t)
	_ = cmd
	asUser(t, func() {
		if _, err := p.Maps(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("maps: %v, want a permission error", err)
		}
		if _, err := p.OpenMemory(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("memory: %v, want a permission error", err)
		}
		if _, err := p.OpenPagemap(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("page map: %v, want a permission error", err)
		}
		if _, err := p.Stat(); err != nil {
			t.Errorf("stat, which anyone may: %v", err)
		}
	})
}
