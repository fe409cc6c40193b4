package live

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// TestNoInterruptReachesTheProgram stops a program ten thousand times whose
// threads wait in every call that a stop might interrupt. None may see EINTR,
// and those that really get a signal must.
func TestNoInterruptReachesTheProgram(t *testing.T) {
	stops := 10000
	f := testbed.RunFixture(t, "eintr")
	before, err := f.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := procfs.Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for n := range stops {
		_, err := tracee.Do(context.Background(), p, tracee.Options{}, func(s *tracee.Session) error {
			if n%2 == 0 {
				if err := s.StopAll(); err != nil {
					return err
				}
			}
			if n%3 == 0 {
				return nil
			}
			if err := s.Borrow(); err != nil {
				return err
			}
			_, err := s.Call(syscall.SYS_GETPID)
			return err
		})
		if err != nil {
			t.Fatalf("stop %d: %v", n, err)
		}
		// The program must get on in between: a call that is restarted waits
		// for its whole time again.
		time.Sleep(time.Duration(n%4) * time.Millisecond)
	}
	time.Sleep(500 * time.Millisecond)
	after, err := f.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := after.Healthy(before); err != nil {
		t.Errorf("%v\n%v", err, after.Counts)
	}
	checkFree(t, f.Pid())
	t.Log(after.Counts)
}
