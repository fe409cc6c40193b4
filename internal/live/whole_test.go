package live

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestProgramIsReplacedAsAWhole: where one process of a program can't be done, none
// is, unless that is asked for.
func TestProgramIsReplacedAsAWhole(t *testing.T) {
	const name = "nginx-whole" // not another nginx that may run here
	installed, err := filepath.EvalSymlinks("/usr/sbin/nginx")
	if err != nil {
		t.Fatal(err)
	}
	folder := publicFolder(t)
	copyFile(t, installed, filepath.Join(folder, name))
	libraries := testbed.RunLibraries(t, testbed.Zlib.MustOriginal(t))
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Env: libraries.Env(), Binary: filepath.Join(folder, name)})
	rebuilt := testbed.Zlib.MustRebuilt(t, "7")
	target := name + ":" + testbed.Zlib.Soname
	spoiled := nginx.Workers()[0]
	corruptGap(t, spoiled, testbed.Zlib.Soname)

	outcomes := func(code int, args ...string) map[int]api.Operation {
		t.Helper()
		all := make(map[int]api.Operation)
		for _, o := range operations(t, vos(t, append(args, "--json")...).expect(t, code)) {
			all[o.PID] = o
		}
		if len(all) != len(nginx.Pids()) {
			t.Fatalf("%v told of %d processes, not %d", args, len(all), len(nginx.Pids()))
		}
		return all
	}
	for _, dry := range [][]string{{"--dry-run"}, nil} {
		for pid, o := range outcomes(7, append([]string{"replace", target, "--with", rebuilt.Path}, dry...)...) {
			want := api.Code("all_or_none")
			if pid == spoiled {
				want = "module_corrupt"
			}
			if o.Outcome != api.Refused || len(o.Refusals) != 1 || o.Refusals[0].Code != want {
				t.Errorf("%v: process %d: %s %v, want %s", dry, pid, o.Outcome, o.Refusals, want)
			}
			withoutTrace(t, pid)
		}
	}
	for pid, o := range outcomes(3, "replace", target, "--with", rebuilt.Path, "--partial") {
		if want := map[bool]api.Outcome{true: api.Refused, false: api.Replaced}[pid == spoiled]; o.Outcome != want {
			t.Errorf("--partial: process %d: %s %v, want %s", pid, o.Outcome, o.Refusals, want)
		}
	}
	withoutTrace(t, spoiled)
	vos(t, "refresh", strconv.Itoa(spoiled)).expect(t, 0)
	for pid, o := range outcomes(0, "replace", target, "--with", rebuilt.Path) {
		if want := map[bool]api.Outcome{true: api.Replaced, false: api.Clean}[pid == spoiled]; o.Outcome != want {
			t.Errorf("after the refresh: process %d: %s %v, want %s", pid, o.Outcome, o.Refusals, want)
		}
	}
	generations := make(map[int]int)
	for _, m := range modules(t, vos(t, "modules", target, "--json").expect(t, 0)) {
		if m.Generation != 1 {
			t.Errorf("%+v", m)
		}
		generations[m.PID]++
	}
	for pid, n := range generations {
		if n != 2 { // the one that was loaded, and the staged one
			t.Errorf("process %d has %d builds", pid, n)
		}
	}
	for pid, o := range outcomes(0, "rollback", target) {
		if o.Outcome != api.RolledBack {
			t.Errorf("rollback: process %d: %s %v", pid, o.Outcome, o.Refusals)
		}
	}
	vos(t, "verify", "--full", name).expect(t, 0)
}

// withoutTrace checks that vos left nothing in a process.
func withoutTrace(t *testing.T, pid int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil || strings.Contains(string(maps), "memfd:vos") {
		t.Errorf("process %d has mappings of vos: %v", pid, err)
	}
	checkFree(t, pid)
}
