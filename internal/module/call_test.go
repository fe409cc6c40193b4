package module

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// pinsEnv makes the test binary pin a module of a process over and over, until it
// is killed.
const pinsEnv = "VOS_TEST_PINS_OF"

func holdPins(text string) error {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	p, err := Open(pid)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(p.Modules, func(m *Module) bool { return m.Name == "libguest.so" })
	fmt.Println("ready")
	for {
		if err := p.Pin(context.Background(), p.Modules[i]); err != nil && !patient(err) {
			return err
		}
	}
}

// patient reports whether an error is the refusal that no thread could be
// borrowed for a call, or that one is still in a call.
func patient(err error) bool {
	refusals := api.Refusals(err)
	return len(refusals) == 1 && (refusals[0].Code == tracee.CodeNoSafePoint || refusals[0].Code == "pending_call")
}

// runOpener runs testdata/opener.c.
func runOpener(t *testing.T, threads int) (*program, *Process, *Module) {
	t.Helper()
	_, guest := buildHost(t)
	dir := t.TempDir()
	other := gcc(t, dir, "libother.so", "guest.c", "-shared", "-fPIC", "-Wl,-soname,libother.so")
	r := run(t, gcc(t, dir, "opener", "opener.c", "-ldl", "-pthread"), guest, other, strconv.Itoa(threads))
	p := r.inspect(t)
	return r, p, module(t, p, "libguest.so")
}

// callStacks counts the stacks of calls that are still mapped.
func callStacks(t *testing.T, p *Process) (n int) {
	t.Helper()
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Perms&(procfs.Read|procfs.Write|procfs.Exec) == 0 && m.Inode == 0 && (m.Size() == 8<<10 || m.Size() == 512<<10) {
			n++
		}
	}
	return n
}

func mapped(t *testing.T, p *Process, m *Module) bool {
	t.Helper()
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(maps, func(now procfs.Mapping) bool { return now.Start == m.mapping.Start && now.Path == m.Path })
}

func TestPin(t *testing.T) {
	for _, threads := range []int{0, 8} {
		t.Run(fmt.Sprint(threads, " threads"), func(t *testing.T) {
			r, p, m := runOpener(t, threads)
			if !m.Opened {
				t.Fatal("the library does not count as opened")
			}
			pinned := 0
			begin := time.Now()
			for range 200 {
				if err := p.Pin(t.Context(), m); err == nil {
					pinned++
				} else if !patient(err) {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Millisecond))))
			}
			t.Logf("pinned %d of 200 times in %v", pinned, time.Since(begin))
			if pinned < 150 {
				t.Errorf("pinned %d of 200 times", pinned)
			}
			r.checkAlive(t)
			if n := callStacks(t, p); n != 0 {
				t.Errorf("%d stacks of calls are left", n)
			}
			if err := syscall.Kill(r.Pid(), syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			if !mapped(t, p, m) {
				t.Error("dlclose has unmapped a pinned module")
			}
			r.checkAlive(t)
		})
	}
}

func TestPinOfClosed(t *testing.T) {
	r, p, m := runOpener(t, 2)
	if err := syscall.Kill(r.Pid(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if mapped(t, p, m) {
		t.Fatal("dlclose unmaps nothing")
	}
	if refusals := api.Refusals(p.Pin(t.Context(), m)); len(refusals) != 1 || refusals[0].Code != codeUnmapped {
		t.Errorf("pin of a closed module: %v", refusals)
	}
	r.checkAlive(t)
}

func TestPinKilled(t *testing.T) {
	for _, threads := range []int{0, 8} {
		t.Run(fmt.Sprint(threads, " threads"), func(t *testing.T) {
			const kills = 100
			r, p, m := runOpener(t, threads)
			for range kills {
				helper := exec.Command(os.Args[0])
				helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", pinsEnv, p.PID()))
				helper.Stderr = os.Stderr
				out, err := helper.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := helper.Start(); err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
					t.Fatalf("the helper said %q, %v", line, err)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond))))
				helper.Process.Kill()
				if err := helper.Wait(); err == nil || err.Error() != "signal: killed" {
					t.Fatalf("the helper ended by itself: %v", err)
				}
				r.checkAlive(t)
			}
			left := callStacks(t, p)
			t.Logf("%d kills left %d stacks", kills, left)
			if left > kills/5 {
				t.Errorf("%d kills left %d stacks of calls", kills, left)
			}
			if err := p.Pin(t.Context(), m); err != nil && !patient(err) {
				t.Errorf("a pin afterwards: %v", err)
			}
			r.checkAlive(t)
		})
	}
}

func TestFramesNotNeeded(t *testing.T) {
	host, _ := buildHost(t)
	r := run(t, host)
	if err := r.inspect(t).RegisterFrames(t.Context(), 0, 0); !errors.Is(err, ErrNotNeeded) {
		t.Errorf("without an unwinder: %v", err)
	}
	r.checkAlive(t)
}
