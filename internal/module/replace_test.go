package module

import (
	"context"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// findModule returns the module of a process that the program loaded.
func findModule(t *testing.T, p *Process, name string) *Module {
	t.Helper()
	for _, m := range p.Modules {
		if m.Name == name && !m.Staged() {
			return m
		}
	}
	t.Fatalf("process %d has no %s", p.PID(), name)
	return nil
}

// replace lets a build take over in a process.
func replace(t *testing.T, pid int, soname, path string) Replaced {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b, err := p.files.OpenBuild(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.PlanReplace(t.Context(), findModule(t, p, soname), b, match.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Refusals) > 0 {
		t.Fatal(r.Refusals)
	}
	done, err := p.CommitReplacement(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range r.Steps() {
		t.Log(step)
	}
	return done
}

func rollback(t *testing.T, pid int, soname string) Replaced {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := p.PlanRollback(findModule(t, p, soname))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Refusals) > 0 {
		t.Fatal(r.Refusals)
	}
	done, err := p.CommitReplacement(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// compare compares all modules of a process with their files.
func checkIntact(t *testing.T, pid int) {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, err := range p.vinErrors {
		t.Error(err)
	}
	for _, m := range p.Modules {
		c, err := p.Compare(t.Context(), m, true)
		if err != nil {
			t.Fatal(err)
		}
		if c.Corrupt() || len(m.Obstacles) > 0 {
			t.Errorf("%s (generation %d): %d runs, %d words differ, %v", m.Path, m.Generation, len(c.Runs), len(c.Bad), m.Obstacles)
			for _, r := range c.Runs {
				t.Logf("%s 0x%x: %x, not %x", r.Kind, r.Address, r.Found, r.Expected)
			}
			for _, w := range c.Bad {
				t.Logf("%+v", w)
			}
		}
	}
}

func TestNginxGetsAnotherZlib(t *testing.T) {
	testbed.NeedRoot(t)
	libraries := testbed.RunLibraries(t, testbed.Zlib.MustOriginal(t))
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Env: libraries.Env()})
	rebuilt := testbed.Zlib.MustRebuilt(t, "7")
	load := nginx.Load(context.WithoutCancel(t.Context()), testbed.LoadOptions{})
	time.Sleep(300 * time.Millisecond)
	for range 5 {
		for _, pid := range nginx.Workers() {
			done := replace(t, pid, testbed.Zlib.Soname, rebuilt.Path)
			t.Logf("replaced: %+v", done)
			checkIntact(t, pid)
		}
		time.Sleep(200 * time.Millisecond)
		for _, pid := range nginx.Workers() {
			done := rollback(t, pid, testbed.Zlib.Soname)
			t.Logf("rolled back: %+v", done)
			checkIntact(t, pid)
		}
	}
	figures := load.Stop()
	t.Logf("%+v", figures)
	for _, crash := range nginx.Crashes() {
		t.Error(crash)
	}
}
