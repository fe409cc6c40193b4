package live

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestProbesStay sets real uprobes on functions that a program calls all the
// time, heals corruption on the very pages, and takes the probes out again: the
// probes are no corruption, and count on.
func TestProbesStay(t *testing.T) {
	for _, function := range []string{"usual", "nop5"} {
		t.Run(function, func(t *testing.T) {
			path := filepath.Join(publicFolder(t), "probed")
			copyFile(t, testProgram(t, "probed"), path)
			s, _ := start(t, testbed.FixtureOptions{}, path)
			m := find(t, inspect(t, s.pid), "probed")
			at := symbolOffset(t, m, function)
			offset, ok := m.Object.FileOffset(at)
			if !ok {
				t.Fatalf("%s is not in the file", function)
			}
			probe := setProbe(t, path, offset)
			if probe == nil {
				t.Skip("this kernel has no uprobe_events; TestBreakpointSetByHandStays does without")
			}
			await(t, "the first hit", func() bool { return probe.hits(t) > 0 })
			onlyProbes(t, vos(t, "verify", s.target(), "--json").expect(t, 0), function)
			onlyProbes(t, vos(t, "verify", s.target(), "--full", "--json").expect(t, 0), function)
			refreshed(t, vos(t, "refresh", s.target()+":"+libc, "--json"))

			for range 3 {
				corruptGap(t, s.pid, "probed")
				corruptPages(t, s.pid, "probed")
				vos(t, "verify", s.target()).expect(t, 10)
				vos(t, "refresh", s.target(), "--json").expect(t, 0)
				onlyProbes(t, vos(t, "verify", s.target(), "--full", "--json").expect(t, 0), function)
				before := probe.hits(t)
				s.unharmed(t)
				await(t, "a hit after the refresh", func() bool { return probe.hits(t) > before })
			}
			probe.remove(t)
			s.unharmed(t)
			if r := vos(t, "verify", s.target(), "--full", "--json").expect(t, 0); r.Stdout != "" {
				t.Errorf("without the probe: %s", r.Stdout)
			}
		})
	}
}

// onlyProbes checks that all that differs is a probe on the function.
func onlyProbes(t *testing.T, r result, function string) {
	t.Helper()
	found := differences(t, r)
	if len(found) != 1 || found[0].Kind != api.KindBreakpoint || found[0].Function != function {
		t.Errorf("found %+v, want a probe on %s", found, function)
	}
}

// symbolOffset returns the object address of a function.
func symbolOffset(t *testing.T, m *module.Module, name string) uint64 {
	t.Helper()
	symbols, err := m.Object.StaticSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for s := range symbols.All() {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("%s has no symbol %s", m.Name, name)
	return 0
}

// TestBreakpointSetByHandStays sets a breakpoint as a debugger does, on a
// function that nobody calls.
func TestBreakpointSetByHandStays(t *testing.T) {
	s, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "linked", idleLibrary(t)))
	m := find(t, inspect(t, s.pid), "libidle.so")
	at := symbolOffset(t, m, "idle_sum") + m.Bias
	if _, err := testbed.Corrupt(s.pid, at, []byte{0xcc}); err != nil {
		t.Fatal(err)
	}
	onlyProbes(t, vos(t, "verify", s.target(), "--json").expect(t, 0), "idle_sum")
	if _, err := testbed.Corrupt(s.pid, at+8, []byte{0xde, 0xad, 0xbe, 0xef}); err != nil {
		t.Fatal(err)
	}
	vos(t, "verify", s.target()).expect(t, 10)
	for _, o := range operations(t, vos(t, "refresh", s.target()+":libidle.so", "--json").expect(t, 0)) {
		if o.Outcome != api.Refreshed || o.Pages != 1 || len(o.Residual) != 1 {
			t.Errorf("refreshed: %+v", o)
		}
	}
	onlyProbes(t, vos(t, "verify", s.target(), "--full", "--json").expect(t, 0), "idle_sum")
	s.unharmed(t)
}

// A probe is a uprobe, set through tracefs.
type probe struct {
	tracefs, name string
	removed       bool
}

// setProbe sets a uprobe on an offset of a file, for the length of a test; nil
// where the kernel has no such events.
func setProbe(t *testing.T, path string, offset uint64) *probe {
	t.Helper()
	p := &probe{tracefs: t.TempDir(), name: fmt.Sprintf("vos_live_%d", os.Getpid())}
	if err := syscall.Mount("tracefs", p.tracefs, "tracefs", 0, ""); errors.Is(err, syscall.ENODEV) {
		return nil
	} else if err != nil {
		t.Fatalf("mount tracefs: %v", err)
	}
	t.Cleanup(func() {
		p.remove(t)
		if err := syscall.Unmount(p.tracefs, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	err := p.write("uprobe_events", fmt.Sprintf("p:vos_live/%s %s:0x%x", p.name, path, offset))
	if errors.Is(err, os.ErrNotExist) {
		p.removed = true
		return nil
	}
	if err == nil {
		err = p.write("events/vos_live/"+p.name+"/enable", "1")
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *probe) write(name, text string) error {
	f, err := os.OpenFile(filepath.Join(p.tracefs, name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// hits is how often the probe was met.
func (p *probe) hits(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.tracefs, "uprobe_profile"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[1] == p.name {
			if _, err := fmt.Sscan(fields[2], &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// remove takes the probe out. It may be called twice.
func (p *probe) remove(t *testing.T) {
	t.Helper()
	if p.removed {
		return
	}
	p.removed = true
	if err := p.write("events/vos_live/"+p.name+"/enable", "0"); err != nil {
		t.Error(err)
	}
	if err := p.write("uprobe_events", "-:vos_live/"+p.name); err != nil {
		t.Error(err)
	}
}
