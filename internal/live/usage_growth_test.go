package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// growing returns the modules that vos usage names.
func growing(all map[string]api.Usage) (names []string) {
	for name, u := range all {
		if u.Grows {
			names = append(names, name)
		}
	}
	return names
}

// leaker is a program of which one module gets blocks and another one frees them, and
// which opens a third one that loses some, where it is told to.
func leaker(t *testing.T) (k *talker, plugin string) {
	t.Helper()
	source := text(t, "leaker.c")
	part := func(name, macro string) testbed.Build {
		return testbed.Build{Name: name, Source: source, Flags: []string{"-fPIC", "-shared", "-D" + macro, "-Wl,-soname," + name}}
	}
	program := testbed.MustCompile(t, testbed.Build{
		Name: "leaker", Source: source, Flags: []string{"-Wl,--as-needed"},
		Parts: []testbed.Build{part("libholder.so", "HOLDER"), part("libreleaser.so", "RELEASER"), part("libplugin.so", "PLUGIN")},
	})
	return startTalker(t, exec.Command(program)), filepath.Join(filepath.Dir(program), "libplugin.so")
}

// TestUsageWatches reads on while the program opens a module, which is counted then.
func TestUsageWatches(t *testing.T) {
	k, plugin := leaker(t)
	cmd := exec.Command(binary, "usage", strconv.Itoa(k.pid), "--memory", "--watch", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rounds := json.NewDecoder(out)
	asked := false
	for {
		var u api.Usage
		if err := rounds.Decode(&u); err != nil {
			t.Fatal(err)
		}
		if u.Round > 0 && !asked {
			k.asks(t, plugin, "opened")
			asked = true
		}
		if u.Module == "libplugin.so" && u.Calls > 0 && u.ForUS > 0 {
			break
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out) // the rest of a round
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	vos(t, "detach", strconv.Itoa(k.pid)).expect(t, 0)
	checkFree(t, k.pid)
}

// TestUsageNamesLeakingModule tells apart a module whose blocks another one frees from
// one that loses its own, which is opened when the program is attached already.
func TestUsageNamesLeakingModule(t *testing.T) {
	k, plugin := leaker(t)
	target := strconv.Itoa(k.pid)
	all := usageOf(t, target, "--memory", "--for", "4s")
	holder, releaser := all["libholder.so"], all["libreleaser.so"]
	if names := growing(all); len(names) > 0 {
		t.Errorf("%v are said to grow, and do not: %+v, %+v", names, holder, releaser)
	}
	// All that one got since, the other freed, but for the ring.
	const ring = 1000 * 4096
	if left := holder.HeldBytes + releaser.HeldBytes; holder.HeldBytes < 4*ring || left < -ring || left > 2*ring {
		t.Errorf("held by the one: %d, by the other: %d", holder.HeldBytes, releaser.HeldBytes)
	}
	if holder.OwnedBytes > 4*ring || releaser.OwnedBytes != 0 {
		t.Errorf("owned by the one: %d, by the other: %d", holder.OwnedBytes, releaser.OwnedBytes)
	}
	k.asks(t, plugin, "opened")
	all = usageOf(t, target, "--memory", "--for", "8s")
	lossy := all["libplugin.so"]
	if names := growing(all); len(names) != 1 || !lossy.Grows {
		t.Errorf("%v are said to grow, want the plugin alone: %+v", names, lossy)
	}
	// What it has lost is counted exactly, and estimated within four standard errors.
	if d := lossy.OwnedBytes - lossy.HeldBytes; d > 4*lossy.OwnedErrorBytes || -d > 4*lossy.OwnedErrorBytes || lossy.FreedBytes != 0 {
		t.Errorf("lost: %d by counting, %d by samples", lossy.HeldBytes, lossy.OwnedBytes)
	}
	folded := vos(t, "usage", target+":libplugin.so", "--folded").expect(t, 0).Stdout
	if !strings.HasPrefix(folded, "leaker;libplugin.so;plugin_lose;malloc@GLIBC_2.2.5 ") || strings.Count(folded, "\n") != 1 {
		t.Errorf("folded: %q", folded)
	}
	vos(t, "usage", target, "--stop").expect(t, 0)
	checkFree(t, k.pid)
}

// TestUsageNamesLibxml2 lets Python parse documents whose tags all have new names,
// which the dictionary of libxml2 keeps.
func TestUsageNamesLibxml2(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3", "-c", `
import sys
try:
    from lxml import etree
except ImportError:
    sys.exit("make deps installs python3-lxml")
parser = etree.XMLParser(huge_tree=True)  # no end at 10 MB of names
print("ready", flush=True)
n = 0
while True:
    n += 1
    etree.fromstring("<a%d%s/>" % (n, "x" * 400), parser)
`)
	k := startTalker(t, cmd)
	all := usageOf(t, strconv.Itoa(k.pid), "--memory", "--for", "8s")
	if names := growing(all); len(names) != 1 || names[0] != "libxml2.so.2" {
		t.Errorf("%v are said to grow, want libxml2.so.2: %+v", names, all["libxml2.so.2"])
	}
	vos(t, "usage", strconv.Itoa(k.pid), "--stop").expect(t, 0)
	checkFree(t, k.pid)
}

// TestUsageNamesNobody watches a nginx under load that is reloaded again and again:
// all its processes, those that come and those that go.
func TestUsageNamesNobody(t *testing.T) {
	// Of a name of its own, as other nginx may run here.
	binary := filepath.Join(t.TempDir(), fmt.Sprintf("nginx-%d", os.Getpid()))
	image, err := os.ReadFile("/usr/sbin/nginx")
	if err != nil {
		t.Fatal(err)
	}
	for folder := filepath.Dir(binary); strings.Contains(folder, "Test"); folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(binary, image, 0o755); err != nil {
		t.Fatal(err)
	}
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Binary: binary})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	name := filepath.Base(binary)
	vos(t, "attach", name, "--memory").expect(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var reloading sync.WaitGroup
	reloads := 0
	reloading.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(1500 * time.Millisecond):
				if err := syscall.Kill(nginx.Master(), syscall.SIGHUP); err != nil {
					t.Error(err)
				}
				reloads++
			}
		}
	})
	told := 0
	for range 2 {
		r := vos(t, "usage", name, "--memory", "--for", "8s", "--json")
		if r.Code != 0 {
			t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
		}
		for _, u := range lines[api.Usage](t, r) {
			told++
			if u.Grows {
				t.Errorf("%s of %d is said to grow: %+v", u.Module, u.PID, u)
			}
		}
	}
	cancel()
	reloading.Wait()
	if told == 0 || reloads < 4 {
		t.Errorf("%d modules were looked at during %d reloads", told, reloads)
	}
	if totals := load.Stop(); totals.Served == 0 {
		t.Errorf("under load: %v", totals)
	}
	await(t, "the end of the workers before", func() bool { return len(testbed.Children(nginx.Master())) == 2 })
	vos(t, "detach", name).expect(t, 0)
	for _, pid := range nginx.Pids() {
		checkFree(t, pid)
	}
}
