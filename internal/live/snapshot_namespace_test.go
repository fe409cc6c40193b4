package live

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestSnapshotTakenIDs restores a server whose id is taken, by itself: nobody has waited
// for its end. It gets the id in a namespace of its own, which ends with it.
func TestSnapshotTakenIDs(t *testing.T) {
	k := startKept(t, "redis")
	image := filepath.Join(t.TempDir(), "image")
	k.rest(t)
	vos(t, "checkpoint", k.target(), "-D", image).expect(t, 0)
	if s := lines[api.Snapshot](t, vos(t, "restore", "-D", image, "--json").expect(t, 7)); len(s) != 1 || s[0].Refusals[0].Code != "pid_taken" {
		t.Fatalf("restored where its id is taken: %+v", s)
	}
	vos(t, "restore", "-D", image, "--pid-any", "--dry-run").expect(t, 10)
	if left := k.inside(t); left != nil {
		t.Fatalf("a plan has made %+v", left)
	}
	s := lines[api.Snapshot](t, vos(t, "restore", "-D", image, "--pid-any", "--json").expect(t, 0))
	if len(s) != 1 || s[0].PID == k.pid || s[0].Outcome != api.Restored || len(s[0].Residual) == 0 {
		t.Fatalf("restored: %+v", s)
	}
	k.next(t)
	there := k.inside(t)
	if there == nil || there.program != s[0].PID {
		t.Fatalf("there is %+v, not process %d", there, s[0].PID)
	}
	checkFree(t, s[0].PID)
	vos(t, "verify", "--full", strconv.Itoa(s[0].PID)).expect(t, 0)
	vos(t, "refresh", strconv.Itoa(s[0].PID)).expect(t, 0)
	// Its /proc shows its namespace.
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/%d/comm", s[0].PID, k.pid)); err != nil || string(name) != "redis-server\n" {
		t.Errorf("it finds itself as %q, %v", name, err)
	}
	k.endInside(t, there)
	// Where nobody has the id, it is the same as always.
	k.wait(t)
	vos(t, "restore", "-D", image, "--pid-any").expect(t, 0)
	k.last-- // it answered once since the image
	k.next(t)
	if left := k.inside(t); left != nil {
		t.Errorf("there is a namespace: %+v", left)
	}
}

// TestSnapshotTakenIDsKilled kills vos at random instants of such a restore: there is
// nothing, or the whole server, which answers.
func TestSnapshotTakenIDsKilled(t *testing.T) {
	kills := 15
	if soak {
		kills = 300
	}
	k := startKept(t, "redis")
	image := filepath.Join(t.TempDir(), "image")
	k.rest(t)
	vos(t, "checkpoint", k.target(), "-D", image).expect(t, 0)
	args := []string{"restore", "-D", image, "--pid-any"}
	limit := whole(t, args...)
	last := k.last
	built := 0
	for n := range kills + 1 {
		if n > 0 {
			killAfter(t, time.Duration(rand.Int64N(int64(limit*3/2))), args)
		}
		if there := k.inside(t); there != nil {
			k.last = last
			k.next(t)
			checkFree(t, there.program)
			k.endInside(t, there)
			built++
		}
	}
	t.Logf("behind %d of %d restores that were killed the program was there", built-1, kills)
	if built == 0 {
		t.Error("a restore that was not killed left nothing")
	}
	k.wait(t)
}

// TestSnapshotUnkeptNamespaces refuses the namespaces that are not made again.
func TestSnapshotUnkeptNamespaces(t *testing.T) {
	for _, kind := range []string{"--user", "--time"} {
		root := startAlone(t, testbed.NeedTool(t, "unshare"), kind, "--fork", testbed.NeedTool(t, "sleep"), "1000")
		var inside string
		await(t, "a program in its namespace", func() bool {
			for _, r := range below(t, root) {
				inside = strconv.Itoa(r.pid)
				return field(r.pid, "Name") == "sleep"
			}
			return false
		})
		if r := vos(t, "check", inside).expect(t, 7); !strings.Contains(r.Stderr, "foreign_namespace") {
			t.Errorf("%s: %s", kind, r.Stderr)
		}
		if r := vos(t, "checkpoint", inside, "-D", filepath.Join(t.TempDir(), "image")).expect(t, 7); !strings.Contains(r.Stderr, "foreign_namespace") {
			t.Errorf("%s: %s", kind, r.Stderr)
		}
	}
}

// A namespace is what such a restore has left: its first process, and the program.
type namespace struct{ first, program int }

// inside returns what a restore into a namespace has left, once that is sure, or nil. Its
// first process has become a child of the tests.
func (k *kept) inside(t *testing.T) (there *namespace) {
	t.Helper()
	await(t, "what was half built to be gone", func() bool {
		there = nil
		children := childrenOf(t, os.Getpid())
		for _, first := range children {
			switch name := field(first, "Name"); {
			case first == k.pid || name == "":
			case strings.HasPrefix(field(first, "State"), "Z"):
				var status syscall.WaitStatus
				if _, err := syscall.Wait4(first, &status, syscall.WNOHANG, nil); err != nil {
					t.Fatal(err)
				}
				return false
			case name != "vos-init":
				return false
			default:
				for _, program := range childrenOf(t, first) {
					if ids := strings.Fields(field(program, "NSpid")); len(ids) > 0 && ids[len(ids)-1] == k.target() {
						there = &namespace{first, program}
					}
				}
				return there != nil && field(there.program, "TracerPid") == "0"
			}
		}
		return true
	})
	return there
}

// endInside ends the program of a namespace, whose first process ends with it.
func (k *kept) endInside(t *testing.T, there *namespace) {
	t.Helper()
	if err := syscall.Kill(there.program, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(there.first, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("the first process of the namespace ended with %v, %v", status, err)
	}
}

// childrenOf are the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && field(n, "PPid") == strconv.Itoa(pid) {
			children = append(children, n)
		}
	}
	return children
}

// field is one of /proc/PID/status, "" of what has ended.
func field(pid int, name string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
