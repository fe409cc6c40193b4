package live

import (
	"context"
	"strconv"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// TestThousandRefreshes corrupts and refreshes every module of every nginx
// process a thousand times under load: no request fails, and descriptors,
// threads, mappings and memory are as before.
func TestThousandRefreshes(t *testing.T) {
	cycles := 1000
	if soak {
		cycles = 5000
	}
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := load.Await(ctx, 200); err != nil {
		t.Fatal(err)
	}
	machine, err := vex.New()
	if err != nil {
		t.Fatal(err)
	}
	// What the first refresh leaves behind (dead stack memory) is there before
	// the count begins.
	refreshAll(t, machine, nginx)

	pids := nginx.Pids()
	before := make([]testbed.Inventory, len(pids))
	for i, pid := range pids {
		if before[i], err = testbed.TakeInventory(pid); err != nil {
			t.Fatal(err)
		}
	}
	refreshed := 0
	for range cycles {
		refreshed += refreshAll(t, machine, nginx)
	}
	totals := load.Stop()
	t.Logf("%d refreshes of modules; %v", refreshed, totals)
	if totals.Failed > 0 || totals.Reconnects > 0 || totals.Served == 0 {
		t.Errorf("failed requests: %v", totals.Errors)
	}
	for i, pid := range pids {
		checkFree(t, pid)
		after, err := testbed.TakeInventory(pid)
		if err != nil {
			t.Fatal(err)
		}
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
	}
}

// refreshAll corrupts an idle byte of every module of every process, refreshes
// them all, and returns how many it were.
func refreshAll(t *testing.T, machine api.Executive, nginx *testbed.Nginx) int {
	t.Helper()
	got := 0
	for _, pid := range nginx.Pids() { // by pid: another nginx may run here
		want, err := corruptEvery(pid)
		if err != nil {
			t.Fatal(err)
		}
		if want < 3 {
			t.Fatalf("only %d modules of process %d were corrupted", want, pid)
		}
		healed := 0
		target := api.Target{Program: strconv.Itoa(pid)}
		err = machine.Refresh(t.Context(), api.RefreshRequest{Target: target}, func(o api.Operation) error {
			switch o.Outcome {
			case api.Refreshed:
				healed++
			case api.Clean:
			default:
				t.Errorf("%s of %d: %s %s %v", o.Module, o.PID, o.Outcome, o.Error, o.Refusals)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if healed != want {
			t.Fatalf("%d modules of process %d were corrupted, %d refreshed", want, pid, healed)
		}
		got += healed
	}
	return got
}
