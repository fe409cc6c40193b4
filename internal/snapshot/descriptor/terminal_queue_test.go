package descriptor

import (
	"os"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// TestQueues looks at what waits in a pseudo terminal, in both directions.
func TestQueues(t *testing.T) {
	h := newHeld(t)
	h.at(5, "/dev/ptmx", os.O_RDWR)
	master := h.taken(5)
	number, err := master.TerminalNumber()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.SetLocked(false); err != nil {
		t.Fatal(err)
	}
	h.at(6, kernel.SlavePath(number), os.O_RDWR|syscall.O_NOCTTY)
	settings, err := master.Settings()
	if err != nil {
		t.Fatal(err)
	}
	settings[12] &^= 8 // ECHO of c_lflag
	if err := master.SetSettings(settings); err != nil {
		t.Fatal(err)
	}
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{GoesOn: true})
	if err != nil || len(refusals) > 0 {
		t.Fatalf("look: %v, error %v", refusals, err)
	}
	q, err := found.Queues()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !q.Holds(h.pid) || q.Holds(1) {
		t.Error("the process does not have the master, or another one does")
	}
	expect := func(when string, waiting, written bool) {
		t.Helper()
		if q.Waiting() != waiting || q.Written() != written {
			t.Errorf("%s: something waits: %t, something was written: %t", when, q.Waiting(), q.Written())
		}
	}
	expect("at first", false, false)
	h.write(5, "typed\n")
	expect("typed", true, false)
	h.wants(6, "typed\n")
	expect("read", false, false)
	h.write(6, "written")
	expect("written", true, true)
	h.wants(5, "written")
	expect("in the end", false, false)
}

// TestNoQueues asks for those of a program without a terminal.
func TestNoQueues(t *testing.T) {
	h := newHeld(t)
	found, _, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{GoesOn: true})
	if err != nil {
		t.Fatal(err)
	}
	q, err := found.Queues()
	if err != nil || q != nil || q.Waiting() || q.Written() || q.Holds(h.pid) || q.Close() != nil {
		t.Errorf("%+v, %v", q, err)
	}
}
