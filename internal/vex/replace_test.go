package vex

import (
	"os/exec"
	"strconv"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestProgress holds what a request says on its way against what it finds.
func TestProgress(t *testing.T) {
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cat.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cat.Wait()
	}()
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // its loader has done
		t.Fatal(err)
	}
	for _, test := range []struct {
		module string
		want   api.Progress
	}{
		{"libc.so.6", api.Progress{Processes: 1, Inspected: 1, Planned: 1}},
		{"none", api.Progress{Processes: 1, Inspected: 1}},
	} {
		var last api.Progress
		operations := 0
		err := Machine{}.Rollback(t.Context(), api.RollbackRequest{
			Target: api.Target{Program: strconv.Itoa(cat.Process.Pid), Module: test.module},
			Progress: func(p api.Progress) {
				if p.Processes < last.Processes || p.Inspected < last.Inspected || p.Planned < last.Planned || p.Settled < last.Settled {
					t.Errorf("from %+v to %+v", last, p)
				}
				last = p
			},
		}, func(api.Operation) error { operations++; return nil })
		if last != test.want || operations != test.want.Planned {
			t.Errorf("%s: %+v at the end and %d operations (%v), want %+v", test.module, last, operations, err, test.want)
		}
	}
}
