package module

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// pinsEnv makes the test binary pin a module of a process over and over, until it
// is killed: its value is the process's id and the module's name.
const pinsEnv = "VOS_TEST_PINS_OF"

func holdPins(text string) error {
	var pid int
	var name string
	if _, err := fmt.Sscan(text, &pid, &name); err != nil {
		return err
	}
	p, err := Open(pid)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(p.Modules, func(m *Module) bool { return m.Name == name })
	fmt.Println("ready")
	for {
		if err := p.pin(context.Background(), p.Modules[i]); err != nil && !patient(err) {
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

// killPins kills a vOS that pins a module, at random instants.
func killPins(t *testing.T, p *Process, name string, kills int) {
	t.Helper()
	for range kills {
		helper := exec.Command(os.Args[0])
		helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", pinsEnv, p.PID(), name))
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
		time.Sleep(10 * time.Millisecond)
		testbed.AssertUndisturbed(t, p.PID())
	}
}

func TestPinKilled(t *testing.T) {
	for _, threads := range []int{0, 8} {
		t.Run(fmt.Sprint(threads, " threads"), func(t *testing.T) {
			const kills = 100
			r, p, m := runOpener(t, threads)
			killPins(t, p, m.Name, kills)
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

// An exception passes through code that no module has, once the unwinder knows it.
func TestRegisterFrames(t *testing.T) {
	dir := t.TempDir()
	file, path := filepath.Join(dir, "page"), filepath.Join(dir, "thrower")
	if out, err := exec.Command("g++", "-O2", "-Wall", "-Werror", "-o", path, "testdata/thrower.cc", "-pthread").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := run(t, path, file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	page, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	const frames, object, call = 1024, 2048, 3072
	code := []byte{0x48, 0x83, 0xec, 8, 0xff, 0xd7, 0x48, 0x83, 0xc4, 8, 0xc3} // sub $8, %rsp; call *%rdi; add $8, %rsp; ret
	r.write(t, page, code)
	// A CIE without augmentation, the CFA at rsp+8 and the return address below
	// it; an FDE that follows the sub; the end.
	eh := []byte{20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0, 0, 0, 0, 0}
	eh = append(eh, 28, 0, 0, 0, 28, 0, 0, 0)
	eh = binary.LittleEndian.AppendUint64(eh, page)
	eh = binary.LittleEndian.AppendUint64(eh, uint64(len(code)))
	eh = append(eh, 0x44, 0x0e, 16, 0x46, 0x0e, 8, 0, 0, 0, 0, 0, 0)
	r.write(t, page+frames, eh)

	p := r.inspect(t)
	for range 20 {
		if err := p.RegisterFrames(t.Context(), page+frames, page+object); err != nil {
			t.Fatal(err)
		}
		before := readWord(t, p, page+call+8)
		r.write(t, page+call, []byte{1})
		for end := time.Now().Add(10 * time.Second); readWord(t, p, page+call+8) == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no exception came through after %d", before)
			}
		}
		r.write(t, page+call, []byte{0})
		for readWord(t, p, page+call+16) != 0 { // the last call ends
			time.Sleep(time.Millisecond)
		}
		if err := p.DeregisterFrames(t.Context(), page+frames); err != nil {
			t.Fatal(err)
		}
		r.checkAlive(t)
	}
}

func readWord(t *testing.T, p *Process, address uint64) uint64 {
	t.Helper()
	memory, err := p.openMemory()
	if err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 8)
	if _, err := memory.ReadAt(word, int64(address)); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(word)
}

// pinMany calls dlopen in a program over and over, for a module that it has, and
// tells how often no thread was at a safe place.
func pinMany(t *testing.T, pid int, name string, times int) {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m := module(t, p, name)
	refused := 0
	var slowest, total time.Duration
	for range times {
		begin := time.Now()
		if err := p.pin(t.Context(), m); patient(err) {
			t.Log(err)
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
		total += time.Since(begin)
		slowest = max(slowest, time.Since(begin))
		time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Millisecond))))
	}
	t.Logf("%d of %d refused, on average %v, at most %v", refused, times, total/time.Duration(times), slowest)
	if refused > times/10 {
		t.Errorf("%d of %d refused", refused, times)
	}
	if n := callStacks(t, p); n != 0 {
		t.Errorf("%d stacks of calls are left", n)
	}
	testbed.AssertUndisturbed(t, pid)
}

// Programs that check themselves.
func TestPinInPrograms(t *testing.T) {
	allocator := gcc(t, t.TempDir(), "allocator", "allocator.c")
	busy := `import hashlib
data, n, want = bytes(1000), 0, None
print("ready", flush=True)
while True:
    h = sum(hash((i, str(i * i))) & 0xff for i in range(1, 2000))
    d = hashlib.sha256(data).digest()
    assert want is None or want == (h, d)
    want = (h, d)
`
	tests := []struct {
		name, module, program string
		args                  []string
		mute                  bool
	}{
		{"allocator", "libc.so.6", allocator, nil, true},
		{"allocator, signals", "libc.so.6", allocator, []string{"signals"}, true},
		{"python3, busy", "libm.so.6", "/usr/bin/python3", []string{"-c", busy}, true},
		{"python3", "libm.so.6", "/usr/bin/python3", []string{"../live/testdata/work.py"}, false},
		{"node", "libm.so.6", "node", []string{"../live/testdata/work.js"}, false},
		{"java", "libjvm.so", "java", []string{"../live/testdata/Work.java"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := testbed.Run(t, testbed.FixtureOptions{Mute: test.mute, Ready: time.Minute, Wrap: func(argv []string) []string {
				return append([]string{testbed.NeedTool(t, test.program)}, argv[1:]...)
			}}, test.program, test.args...)
			pinMany(t, f.Pid(), test.module, 50)
			if test.mute {
				return
			}
			p, err := Open(f.Pid())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			killPins(t, p, test.module, 20)
			before, err := f.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			after, err := f.Report(t.Context())
			if err == nil {
				err = after.Healthy(before)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPinInRedis(t *testing.T) {
	server := testbed.RunRedis(t, testbed.RedisOptions{})
	load := server.Load(t.Context(), testbed.LoadOptions{})
	pinMany(t, server.Pid(), "libm.so.6", 100)
	if totals := load.Stop(); totals.Failed > 0 || totals.Served == 0 {
		t.Errorf("%v: %v", totals, totals.Errors)
	}
}

func TestPinInNginx(t *testing.T) {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	load := nginx.Load(t.Context(), testbed.LoadOptions{})
	for _, pid := range nginx.Pids() {
		pinMany(t, pid, "libz.so.1", 50)
	}
	if totals := load.Stop(); totals.Failed > 0 || totals.Served == 0 {
		t.Errorf("%v: %v", totals, totals.Errors)
	}
}

// A program whose only thread handles a signal all the time has no safe place.
func TestPinRefused(t *testing.T) {
	r := run(t, gcc(t, t.TempDir(), "allocator", "allocator.c"), "handler")
	p := r.inspect(t)
	refusals := api.Refusals(p.pin(t.Context(), module(t, p, "libc.so.6")))
	if len(refusals) != 1 || refusals[0].Code != tracee.CodeNoSafePoint {
		t.Errorf("refusals: %v", refusals)
	}
	t.Log(refusals)
	r.checkAlive(t)
}
