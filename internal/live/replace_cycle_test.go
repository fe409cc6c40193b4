package live

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// TestReplaceCycles lets another build of libz take over in master and workers of
// nginx, and leads them back, again and again under load: no request fails,
// answers are of the build that runs, and nothing piles up.
func TestReplaceCycles(t *testing.T) {
	cycles := 100
	if soak {
		cycles = 2000
	}
	libraries := testbed.RunLibraries(t, testbed.Zlib.MustOriginal(t))
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Env: libraries.Env()})
	rebuilt := testbed.Zlib.MustRebuilt(t, "7")
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	pids := nginx.Pids()
	machine, err := vex.New()
	if err != nil {
		t.Fatal(err)
	}
	done := func(want api.Outcome) func(api.Operation) error {
		return func(o api.Operation) error {
			if o.Outcome != want {
				t.Errorf("%s of %d: %s, %s %v, not %s", o.Module, o.PID, o.Outcome, o.Error, o.Refusals, want)
			}
			return nil
		}
	}
	change := func(back bool) {
		t.Helper()
		for _, pid := range pids { // by pid: another nginx may run here
			target := api.Target{Program: strconv.Itoa(pid), Module: testbed.Zlib.Soname}
			var err error
			if back {
				err = machine.Rollback(t.Context(), api.RollbackRequest{Target: target}, done(api.RolledBack))
			} else {
				err = machine.Replace(t.Context(), api.ReplaceRequest{Target: target, With: rebuilt.Path}, done(api.Replaced))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	answers := func(mark string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		marks, err := load.NextMarks(ctx, 20)
		if err != nil {
			t.Fatal(err)
		}
		delete(marks, "")
		if len(marks) != 1 || marks[mark] == 0 {
			t.Fatalf("answers by %v, want %s", marks, mark)
		}
	}
	answers("gzip 3")
	change(false)
	before := make([]testbed.Inventory, len(pids))
	for i, pid := range pids {
		before[i] = inventory(t, pid)
	}
	answers("gzip 7")
	change(true)
	answers("gzip 3")
	for n := range cycles {
		change(false)
		if n%10 == 0 {
			answers("gzip 7")
		}
		change(true)
		if n%10 == 0 {
			answers("gzip 3")
		}
	}
	change(false)
	answers("gzip 7")
	totals := load.Stop()
	t.Logf("%d cycles; %v; answers by %v", cycles, totals, totals.Marks)
	if totals.Failed > 0 || totals.Reconnects > 0 || totals.Served == 0 {
		t.Errorf("failed requests: %v", totals.Errors)
	}
	for i, pid := range pids {
		checkFree(t, pid)
		after := inventory(t, pid)
		if len(after.Threads) != len(before[i].Threads) || len(after.Mappings) != len(before[i].Mappings) {
			t.Errorf("process %d: %v", pid, before[i].Diff(after))
		}
		// Connections come and go; what is not a socket stays.
		if n := len(after.Descriptors) - len(before[i].Descriptors); n > 8 {
			t.Errorf("process %d has %d descriptors more", pid, n)
		}
		if grown := after.RSS - before[i].RSS; grown > 2<<20 {
			t.Errorf("process %d has grown by %d KiB", pid, grown>>10)
		}
		vos(t, "verify", "--full", strconv.Itoa(pid)).expect(t, 0)
	}
}
