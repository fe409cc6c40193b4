package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// startProcesses starts testdata/processes.c.
func startProcesses(t *testing.T) *talker {
	t.Helper()
	return startTalker(t, exec.Command(testbed.MustCompile(t, testbed.Build{
		Name: "processes", Source: text(t, "processes.c"), Flags: []string{"-Wl,-z,now"}, // all is bound, and nothing left out
	})))
}

// number sends a line and returns the number that the program answers.
func (k *talker) number(t *testing.T, line string) int {
	t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if !k.lines.Scan() {
		t.Fatalf("no answer to %q: %v", line, k.lines.Err())
	}
	n, err := strconv.Atoi(k.lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestInterceptExec: a program that executes another one is counted until then; the
// other one has nothing of it, and can be attached anew.
func TestInterceptExec(t *testing.T) {
	k := startProcesses(t)
	for range 3 {
		for _, i := range attachAll(t, []int{k.pid}, "--memory") {
			if i.Outcome != api.Attached {
				t.Errorf("attach: %+v", i)
			}
		}
		for round := range 2 {
			k.number(t, "work")
			if got := calls(t, k.pid, "getppid"); got != uint64(100*(round+1)) {
				t.Errorf("%d calls are counted, not %d", got, 100*(round+1))
			}
		}
		k.asks(t, "exec", "ready")
		if own := ownMappings(t, k.pid); len(own) > 0 {
			t.Errorf("the new program has %v", own)
		}
		for _, i := range detachAll(t, []int{k.pid}) {
			if i.Outcome != api.Clean {
				t.Errorf("the new program was detached: %+v", i)
			}
		}
		if got := calls(t, k.pid, "getppid"); got != 0 {
			t.Errorf("%d calls of the new program are counted", got)
		}
		vos(t, "verify", strconv.Itoa(k.pid)).expect(t, 0)
		checkFree(t, k.pid)
	}
}

// TestUsageWatchesExec: who watches a program that executes another one sees on.
func TestUsageWatchesExec(t *testing.T) {
	k := startProcesses(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "usage", strconv.Itoa(k.pid), "--watch", "--functions", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rounds := json.NewDecoder(out)
	awaitCalls := func(want uint64) {
		t.Helper()
		for {
			var u api.Usage
			if err := rounds.Decode(&u); err != nil {
				t.Fatal(err)
			}
			for _, f := range u.Functions {
				if f.Function != "getppid@GLIBC_2.2.5" || u.Module != "processes" {
					continue
				}
				if f.Calls > want {
					t.Fatalf("%d calls are told, not %d", f.Calls, want)
				} else if f.Calls == want {
					return
				}
			}
		}
	}
	var first api.Usage
	if err := rounds.Decode(&first); err != nil { // by then it is attached
		t.Fatal(err)
	}
	k.number(t, "work")
	k.number(t, "work")
	awaitCalls(200)
	k.asks(t, "exec", "ready")
	await(t, "that it is attached again", func() bool {
		p, err := module.Open(k.pid)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		_, on, err := p.Counting()
		return err == nil && on
	})
	k.number(t, "work")
	awaitCalls(100)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out) // the rest of a round
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	detachAll(t, []int{k.pid})
	checkFree(t, k.pid)
}

// TestInterceptChildren: children of an attached program. One that it forked counts for
// itself, from 0, and is detached alone; one in vfork has the memory of its parent, and
// counts there; one that it spawned has nothing of it.
func TestInterceptChildren(t *testing.T) {
	k := startProcesses(t)
	expect := func(pid int, name string, want uint64) {
		t.Helper()
		if got := calls(t, pid, name); got != want {
			t.Errorf("%d calls of %s in process %d are counted, not %d", got, name, pid, want)
		}
	}
	attachAll(t, []int{k.pid})
	k.number(t, "work")
	first, second := k.number(t, "fork"), k.number(t, "fork")
	expect(k.pid, "getppid", 100)
	expect(k.pid, "fork", 2)
	for _, child := range []int{first, second} {
		expect(child, "getppid", 30)
		for _, i := range attachAll(t, []int{child}) {
			if i.Outcome != api.Clean {
				t.Errorf("a child was not attached: %+v", i)
			}
		}
	}
	k.number(t, "vfork")
	expect(k.pid, "getppid", 100+20*5)
	k.number(t, "spawn")
	expect(k.pid, "getppid", 200)
	expect(k.pid, "posix_spawn", 20)
	spawned := k.number(t, "stay")
	await(t, "the program that was spawned", func() bool {
		path, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", spawned))
		return err == nil && string(path) == "processes\x00stay\x00"
	})
	if own := ownMappings(t, spawned); len(own) > 0 {
		t.Errorf("the program that was spawned has %v", own)
	}

	detachAll(t, []int{first})
	k.number(t, "work")
	expect(k.pid, "getppid", 300)
	detachAll(t, []int{k.pid})
	expect(second, "getppid", 30)
	k.number(t, "vfork")
	k.number(t, "spawn")
	third := k.number(t, "fork")
	for _, pid := range []int{k.pid, first, third} {
		expect(pid, "getppid", 0)
	}
	detachAll(t, []int{second})
	for _, pid := range []int{k.pid, first, second, third, spawned} {
		vos(t, "verify", strconv.Itoa(pid)).expect(t, 0)
		checkFree(t, pid)
	}
	for _, pid := range []int{first, second, third, spawned} {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if n := k.number(t, "reap"); n != 4 {
		t.Errorf("%d children have ended, not 4", n)
	}
}
