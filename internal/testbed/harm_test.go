package testbed

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests in this file are careless on purpose: a fixture that finds nothing
// wrong proves something only if it would find it.

// attach stops one thread in the plainest way.
func attach(t *testing.T, tid int) {
	t.Helper()
	if err := syscall.PtraceAttach(tid); err != nil {
		t.Fatalf("attach %d: %v", tid, err)
	}
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(tid, &status, syscall.WALL, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || !status.Stopped() {
			t.Fatalf("wait for %d: %v, %#x", tid, err, status)
		}
		if status.StopSignal() == syscall.SIGSTOP {
			return
		}
		if err := syscall.PtraceCont(tid, int(status.StopSignal())); err != nil {
			t.Fatalf("continue %d: %v", tid, err)
		}
	}
}

func detach(t *testing.T, tid int) {
	t.Helper()
	if err := syscall.PtraceDetach(tid); err != nil {
		t.Fatalf("detach %d: %v", tid, err)
	}
}

// meddle stops thread tid until it is found at one of the instructions in code,
// changes it by do, and lets it go; it does so until the fixture sees it.
func meddle(t *testing.T, f *Fixture, tid int, code [][]byte, do func(*syscall.PtraceRegs)) Report {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r Report
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		attach(t, tid)
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(tid, &regs); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 8)
		_, err := syscall.PtracePeekText(tid, uintptr(regs.Rip), text)
		here := false
		for _, c := range code {
			here = here || err == nil && bytes.HasPrefix(text, c)
		}
		if here {
			do(&regs)
		}
		detach(t, tid)
		if here {
			time.Sleep(5 * time.Millisecond)
			if r, err = f.Report(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r.Errors > 0 {
				return r
			}
		}
	}
	t.Fatalf("the fixture saw nothing wrong: %+v", r)
	return r
}

func TestEintrSeesStops(t *testing.T) {
	f := RunFixture(t, "eintr", "epoll_wait", "semop", "sigtimedwait", "recv_timeout", "nanosleep", "poll")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tids, err := threads(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		for _, tid := range tids {
			attach(t, tid)
		}
		for _, tid := range tids {
			detach(t, tid)
		}
		time.Sleep(10 * time.Millisecond)
	}
	r, err := f.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"epoll_wait", "semop", "sigtimedwait", "recv_timeout"} {
		if r.Counts[kind+".eintr"] == 0 {
			t.Errorf("%s: 20 stops, and no EINTR", kind)
		}
	}
	// The kernel restarts these by itself.
	for _, kind := range []string{"nanosleep", "poll"} {
		if n := r.Counts[kind+".eintr"]; n != 0 {
			t.Errorf("%s: %d EINTR", kind, n)
		}
	}
}

var loopInstruction = [][]byte{{0xe2, 0xfe}}

func TestThreadsSeesChanges(t *testing.T) {
	for _, test := range []struct {
		place string
		do    func(tid int, regs *syscall.PtraceRegs) error
	}{
		{"a general register", func(tid int, regs *syscall.PtraceRegs) error {
			regs.R14 ^= 1
			return syscall.PtraceSetRegs(tid, regs)
		}},
		{"the carry flag", func(tid int, regs *syscall.PtraceRegs) error {
			regs.Eflags &^= 1
			return syscall.PtraceSetRegs(tid, regs)
		}},
		{"the red zone", func(tid int, regs *syscall.PtraceRegs) error {
			_, err := syscall.PtracePokeData(tid, uintptr(regs.Rsp-64), make([]byte, 8))
			return err
		}},
	} {
		t.Run(test.place, func(t *testing.T) {
			f := RunFixture(t, "threads", "1", "busy")
			r := meddle(t, f, f.Pid(), loopInstruction, func(regs *syscall.PtraceRegs) {
				if err := test.do(f.Pid(), regs); err != nil {
					t.Fatal(err)
				}
			})
			if !strings.Contains(r.Error, test.place) || r.Counts["busy.bad_integer"] == 0 {
				t.Errorf("seen as %q", r.Error)
			}
		})
	}
}

func TestCoroutineSeesWritesBelowStack(t *testing.T) {
	f := RunFixture(t, "coroutine")
	spin := [][]byte{{0x49, 0xff, 0xc9, 0x75}, {0x75, 0xfb, 0x48, 0x89}} // dec %r9; jnz
	r := meddle(t, f, f.Pid(), spin, func(regs *syscall.PtraceRegs) {
		// As a large signal frame would: from the red zone down, and farther than the
		// free end of the stack, which is up to 4,352 bytes.
		frame := bytes.Repeat([]byte{1}, 4<<10+512)
		if _, err := syscall.PtracePokeData(f.Pid(), uintptr(regs.Rsp-128)-uintptr(len(frame)), frame); err != nil {
			t.Fatal(err)
		}
	})
	if r.Counts["below.changed"] == 0 || r.Counts["canary.changed"] == 0 {
		t.Errorf("seen as %+v", r.Counts)
	}
}

// A tracer that takes a thread out of its critical section, and puts it back
// into the middle, makes the kernel forget the section.
func TestRseqSeesLostIncrement(t *testing.T) {
	f := RunFixture(t, "rseq")
	tids, err := threads(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	tid, entry := tids[1], entryPoint(t, f.Pid())
	spin := [][]byte{{0xff, 0xc9, 0x75, 0xfc}, {0x75, 0xfc, 0x48, 0xff}} // dec %ecx; jnz
	r := meddle(t, f, tid, spin, func(regs *syscall.PtraceRegs) {
		away := *regs
		away.Rip = entry
		if err := syscall.PtraceSetRegs(tid, &away); err != nil {
			t.Fatal(err)
		}
		if err := syscall.PtraceSingleStep(tid); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(tid, nil, syscall.WALL, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // others increment
		if err := syscall.PtraceSetRegs(tid, regs); err != nil {
			t.Fatal(err)
		}
	})
	if r.Counts["lost"] == 0 {
		t.Errorf("seen as %+v", r.Counts)
	}
}

// entryPoint returns the address of _start of a running position-independent
// program: its first instruction may be stepped over at any time.
func entryPoint(t *testing.T, pid int) uint64 {
	t.Helper()
	file, err := elf.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var base uint64
	if _, err := fmt.Sscanf(string(maps), "%x-", &base); err != nil {
		t.Fatal(err)
	}
	return base + file.Entry
}
