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
	sessions := 400 // ten rounds of all forms
	if soak {
		sessions = 4000
	}
	for _, name := range testbed.FixtureNames() {
		if slices.Contains(refusing, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := fixture(t, name)
			p, err := procfs.Open(s.pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			held, gone := 0, 0
			for ; held < sessions; time.Sleep(time.Millisecond) {
				if pastDeadline(t) {
					t.Fatalf("%d sessions were held, %d cut short by exec, and there is no time for more", held, gone)
				}
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
			s.unharmed(t)
			t.Logf("%d sessions, %d cut short by exec; %v", held, gone, s.last.Counts)
		})
	}
}

// pastDeadline tells whether a test is about to be ended by go test's -timeout,
// the only limit of what has to happen some time.
func pastDeadline(t *testing.T) bool {
	end, limited := t.Deadline()
	return limited && time.Until(end) < 30*time.Second
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
