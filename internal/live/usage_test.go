package live

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
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
		if left := strings.Join(before[pid].Diff(inventory(t, pid)), "\n"); strings.Contains(left, "/memfd:vos-") {
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

// A talker is a program that is asked, and answers, by lines.
type talker struct {
	pid   int
	in    io.Writer
	lines *bufio.Scanner
}

// startTalker starts a program that says when it is ready, and ends it with the test.
func startTalker(t *testing.T, cmd *exec.Cmd) *talker {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(cmd.Process.Pid, 0); err != nil {
			t.Errorf("the program has ended: %v", err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	k := &talker{pid: cmd.Process.Pid, in: in, lines: bufio.NewScanner(out)}
	k.hears(t, "ready")
	return k
}

// hears waits for a line.
func (k *talker) hears(t *testing.T, want string) {
	t.Helper()
	if !k.lines.Scan() || k.lines.Text() != want {
		t.Fatalf("the program says %q, %v, want %q", k.lines.Text(), k.lines.Err(), want)
	}
}

// asks sends a line, and waits for the answer.
func (k *talker) asks(t *testing.T, line, want string) {
	t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	k.hears(t, want)
}

// usageOf returns what vos usage tells of a target, by modules.
func usageOf(t *testing.T, target string, flags ...string) map[string]api.Usage {
	t.Helper()
	all := make(map[string]api.Usage)
	for _, u := range lines[api.Usage](t, vos(t, append([]string{"usage", target, "--json"}, flags...)...).expect(t, 0)) {
		if _, twice := all[u.Module]; twice {
			t.Errorf("%s is told twice", u.Module)
		}
		all[u.Module] = u
	}
	return all
}

// TestUsageOfNginx counts the calls of nginx's workers while it answers: each request
// is received by one recv.
func TestUsageOfNginx(t *testing.T) {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	attachAll(t, nginx.Workers())
	calls := func() (received uint64) {
		t.Helper()
		for _, pid := range nginx.Workers() {
			for _, u := range usageOf(t, strconv.Itoa(pid), "--functions") {
				if u.Used > u.Imported || u.Used != len(u.Functions) {
					t.Errorf("%s uses %d of %d functions, %d are told", u.Module, u.Used, u.Imported, len(u.Functions))
				}
				for _, f := range u.Functions {
					if f.Function == "recv@GLIBC_2.2.5" {
						received += f.Calls
					}
				}
			}
		}
		return received
	}
	before, served := calls(), load.Totals().Served
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := load.Await(ctx, 1000); err != nil {
		t.Fatal(err)
	}
	served = load.Totals().Served - served
	const atOnce = 100 // requests under way at the first reading
	if received := calls() - before; received+atOnce < uint64(served) {
		t.Errorf("%d calls of recv for %d requests", received, served)
	}
	worker := strconv.Itoa(nginx.Workers()[0])
	for name, u := range usageOf(t, worker, "--for", "1s") {
		if u.ForUS < 1_000_000 || name == "nginx" && u.CallsPerSecond == 0 {
			t.Errorf("%s under load: %+v", name, u)
		}
	}
	if totals := load.Stop(); totals.Failed > 0 {
		t.Errorf("under load: %v", totals)
	}
	for _, pid := range nginx.Workers() {
		vos(t, "usage", strconv.Itoa(pid), "--stop").expect(t, 0)
		if i := vos(t, "usage", strconv.Itoa(pid), "--stop", "--json").expect(t, 0); i.Stdout != "" {
			t.Errorf("it is counted on: %s", i.Stdout)
		}
		checkFree(t, pid)
	}
}

// TestUsageCountsForCallers holds the bytes of a program that the C library allocates
// for it against what malloc_usable_size says of its blocks.
func TestUsageCountsForCallers(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "copier", Source: text(t, "copier.c"), Flags: []string{"-fno-builtin"}})
	k := startTalker(t, exec.Command(program))
	target := strconv.Itoa(k.pid)
	attachAll(t, []int{k.pid}, "--memory")
	if _, err := io.WriteString(k.in, "work\n"); err != nil {
		t.Fatal(err)
	}
	if !k.lines.Scan() {
		t.Fatalf("no answer: %v", k.lines.Err())
	}
	got, err := strconv.ParseInt(k.lines.Text(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	all := usageOf(t, target, "--memory")
	own, library := all["copier"], all["libc.so.6"]
	if own.HeldBytes != got {
		t.Errorf("it holds %d bytes, %d by counting: %+v", got, own.HeldBytes, own)
	}
	if own.OwnedBytes < got/2 || own.OwnedBytes > 2*got || library.OwnedBytes > got/4 {
		t.Errorf("it owns %d bytes, %d by samples, the library %d", got, own.OwnedBytes, library.OwnedBytes)
	}
	if slack := int64(64 << 10); library.HeldBytes > slack || library.HeldBytes < -slack {
		t.Errorf("the C library holds what it got for the program: %+v", library)
	}
	// open, fopen, and two of pipe; the program's last ten of open stay.
	if own.Opens != 4*30 || own.Closes != 4*30-10 {
		t.Errorf("%d opened, %d closed", own.Opens, own.Closes)
	}
	vos(t, "usage", target, "--stop").expect(t, 0)
	checkFree(t, k.pid)
}

// TestUsageTrustsNoTable scribbles over a table: who reads it is refused, and so is
// who would change it, and the program goes on.
func TestUsageTrustsNoTable(t *testing.T) {
	k, _ := leaker(t)
	target := strconv.Itoa(k.pid)
	attachAll(t, []int{k.pid}, "--memory")
	base := inspect(t, k.pid).Interceptors()[0].Config().Base
	memory, err := os.OpenFile("/proc/"+target+"/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	const importer = 512 + 16 // where the first module ends
	for _, scribbled := range []int64{0, 8, importer} {
		was := make([]byte, 8)
		if _, err := memory.ReadAt(was, int64(base)+scribbled); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.WriteAt([]byte("scribble"), int64(base)+scribbled); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"usage", target}, {"attach", target}, {"detach", target}, {"usage", target, "--stop"}} {
			r := vos(t, args...).expect(t, 7)
			if !strings.Contains(r.Stderr, "(interceptor_corrupt)") {
				t.Errorf("vos %v says %s", args, r.Stderr)
			}
		}
		if _, err := memory.WriteAt(was, int64(base)+scribbled); err != nil {
			t.Fatal(err)
		}
	}
	vos(t, "detach", target).expect(t, 0)
	checkFree(t, k.pid)
}
