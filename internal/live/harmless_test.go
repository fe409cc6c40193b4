package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// refusing are the fixtures that no session may be held with; what each must be
// refused for is tested in refuse_test.go.
var refusing = []string{"m32", "seccomp", "vforker"}

// TestSessionsHarmNoFixture holds sessions, of every form, with each fixture:
// signals, threads and children that come and go, restartable sequences, small
// stacks, a Go program. Each watches what a careless stop would break.
func TestSessionsHarmNoFixture(t *testing.T) {
	span := 2 * time.Second
	if soak {
		span = 20 * time.Second
	}
	for _, name := range testbed.FixtureNames() {
		if slices.Contains(refusing, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f := testbed.RunFixture(t, name)
			before, err := f.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p, err := procfs.Open(f.Pid())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			held, gone := 0, 0
			for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Millisecond) {
				_, err := tracee.Do(context.Background(), p, tracee.Options{}, func(s *tracee.Session) error {
					return session(s, held+gone)
				})
				switch {
				case err == nil:
					held++
				case name == "exec" && (errors.Is(err, procfs.ErrGone) || refusedFor(err, "no_gadget") || refusedFor(err, "no_scratch")):
					gone++ // it became another program in the middle, or has no C library or stack yet
				default:
					t.Fatalf("session %d: %v", held, err)
				}
			}
			after, err := f.Report(t.Context())
			if err == nil {
				err = after.Healthy(before)
			}
			if err != nil {
				t.Errorf("after %d sessions: %v\n%v", held, err, after.Counts)
			}
			if stopped := name == "stopped"; !stopped {
				checkFree(t, f.Pid())
			}
			if held == 0 {
				t.Errorf("no session was held, %d ended with the program", gone)
			}
			t.Logf("%d sessions, %d cut short by exec; %v", held, gone, after.Counts)
		})
	}
}

func refusedFor(err error, code api.Code) bool {
	var refusal api.Refusal
	return errors.As(err, &refusal) && refusal.Code == code
}

// session is one of the forms that a session takes.
func session(s *tracee.Session, n int) error {
	if n%2 == 0 {
		if err := s.StopAll(); err != nil {
			return err
		}
	}
	if n%5 == 0 {
		return nil
	}
	if err := s.Borrow(); err != nil {
		if refusedFor(err, "uninterruptible") {
			return nil // for a moment, in a fork or a page that is read
		}
		return err
	}
	calls := make([]tracee.Call, 1+n%40)
	for i := range calls {
		calls[i].Number = syscall.SYS_GETPPID
	}
	results, err := s.Run(calls)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r != results[0] {
			return fmt.Errorf("getppid returned %d and %d", results[0], r)
		}
	}
	return nil
}
