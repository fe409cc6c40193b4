package live

import (
	"context"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// TestTransfersAreNotCutShort stops a program whose threads wait in writes and
// receives that a stop would cut short: such a session waits or is refused.
func TestTransfersAreNotCutShort(t *testing.T) {
	f := testbed.RunFixture(t, "eintr", "write_pipe", "recv_waitall", "-partial", "-nogenuine")
	p, err := procfs.Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	held, refused := 0, 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		_, err := tracee.Do(context.Background(), p, tracee.Options{}, (*tracee.Session).StopAll)
		switch {
		case err == nil:
			held++
		case refusedFor(err, "partial_transfer"):
			refused++
		default:
			t.Fatal(err)
		}
	}
	after, err := f.Report(t.Context())
	if err == nil {
		err = after.Healthy(testbed.Report{})
	}
	if err != nil {
		t.Errorf("%v\n%v", err, after.Counts)
	}
	short := after.Counts["write_pipe.short"] + after.Counts["recv_waitall.short"]
	t.Logf("%d sessions held, %d refused, %d transfers cut short; %v", held, refused, short, after.Counts)
	// A program that is always in such a call must be seen in it.
	if short > 0 {
		t.Errorf("%d transfers were cut short by %d stops", short, held)
	}
	if refused == 0 {
		t.Error("no session was refused")
	}
}
