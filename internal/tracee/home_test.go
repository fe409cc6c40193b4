package tracee

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestWayHomeFromRestart: a thread that goes on with a wait by restart_syscall comes home
// to the wait itself, as the kernel forgets the rest of it on the way.
func TestWayHomeFromRestart(t *testing.T) {
	cmd := exec.Command(testbed.NeedTool(t, "sleep"), "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := procfs.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	awaitCall := func(number int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			call, err := p.Syscall(p.PID())
			if err == nil && call.InCall && call.Number == number {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("it is in %+v, not in system call %d; %v", call, number, err)
			}
		}
	}
	awaitCall(syscall.SYS_CLOCK_NANOSLEEP)
	for n, number := range []int{syscall.SYS_RESTART_SYSCALL, syscall.SYS_RESTART_SYSCALL} {
		_, err := Do(t.Context(), p, Options{}, func(s *Session) error {
			if err := s.StopAll(); err != nil {
				return err
			}
			regs := s.wayHome(s.threads[p.PID()])
			if regs.RAX != syscall.SYS_CLOCK_NANOSLEEP || regs.OrigRAX != outsideSyscall {
				t.Errorf("stopped %d times it comes home to system call %d", n+1, regs.RAX)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		awaitCall(number)
	}
}
