package tracee

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
)

func start(t *testing.T, name string, args ...string) *procfs.Process {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	time.Sleep(50 * time.Millisecond)
	p, err := procfs.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestCallInside(t *testing.T) {
	p := start(t, "sleep", "100")
	for range 5 {
		times, err := Do(context.Background(), p, Options{}, func(s *Session) error {
			if err := s.Borrow(); err != nil {
				return err
			}
			for range 3 {
				pid, err := s.Call(syscall.SYS_GETPID)
				if err != nil {
					return err
				}
				if pid != uint64(p.PID()) {
					t.Errorf("getpid inside %d returned %d", p.PID(), pid)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(times.Borrow)
	}
	st, err := p.Status()
	if err != nil || st.TracerPID != 0 || st.State != 'S' {
		t.Errorf("afterwards: %+v, %v", st, err)
	}
	b, _ := os.ReadFile("/proc/self/stat")
	_ = b
}
