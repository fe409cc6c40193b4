package live

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// attachAll attaches every process by its pid, as another program of the name may run
// here, and detaches it when the test ends.
func attachAll(t *testing.T, pids []int, flags ...string) (all []api.Interception) {
	t.Helper()
	for _, pid := range pids {
		r := vos(t, append([]string{"attach", strconv.Itoa(pid), "--json"}, flags...)...).expect(t, 0)
		all = append(all, lines[api.Interception](t, r)...)
	}
	return all
}

func detachAll(t *testing.T, pids []int) (all []api.Interception) {
	t.Helper()
	for _, pid := range pids {
		r := vos(t, "detach", strconv.Itoa(pid), "--json").expect(t, 0)
		all = append(all, lines[api.Interception](t, r)...)
	}
	return all
}

// TestAttachCommand attaches nginx under load, once more, with memory, and detaches
// it: what each command says is what the process has.
func TestAttachCommand(t *testing.T) {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	pids := nginx.Pids()
	before := make(map[int]testbed.Inventory)
	for _, pid := range pids {
		before[pid] = inventory(t, pid)
	}
	vos(t, "attach", strconv.Itoa(pids[0]), "--dry-run").expect(t, 10)
	if left := before[pids[0]].Diff(inventory(t, pids[0])); len(left) > 0 {
		t.Errorf("a plan changed %v", left)
	}
	outcomes := func(all []api.Interception, want api.Outcome, memory, anew bool) {
		t.Helper()
		for _, i := range all {
			if i.Outcome != want || i.Memory != memory || i.Restarted != anew || want == api.Attached && (i.Slots == 0 || i.Functions == 0) {
				t.Errorf("%+v, want %s", i, want)
			}
		}
	}
	outcomes(attachAll(t, pids), api.Attached, false, false)
	outcomes(attachAll(t, pids), api.Clean, false, false)
	for _, i := range detachAll(t, pids) {
		if i.Outcome != api.Detached || i.Mapped != 0 || len(i.Residual) > 0 {
			t.Errorf("%+v, want it detached", i)
		}
	}
	for _, pid := range pids {
		if left := strings.Join(before[pid].Diff(inventory(t, pid)), "\n"); strings.Contains(left, "vos-") {
			t.Errorf("process %d has, after all: %v", pid, left)
		}
	}
	outcomes(attachAll(t, pids), api.Attached, false, false)
	outcomes(attachAll(t, pids, "--memory"), api.Attached, true, true)
	outcomes(attachAll(t, pids), api.Clean, true, false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := load.Await(ctx, 100); err != nil {
		t.Fatal(err)
	}
	for _, i := range detachAll(t, pids) {
		if i.Outcome != api.Detached || (i.Mapped != 0) != (len(i.Residual) > 0) {
			t.Errorf("%+v, want it detached, and what is left listed", i)
		}
	}
	outcomes(detachAll(t, pids), api.Clean, false, false)
	if totals := load.Stop(); totals.Failed > 0 || totals.Served == 0 {
		t.Errorf("under load: %v", totals)
	}
	for _, pid := range pids {
		checkFree(t, pid)
	}
}
