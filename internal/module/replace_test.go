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

// A replaced module is verified and healed like any other: what vOS wrote stays.
func TestReplacedModuleIsHealed(t *testing.T) {
	testbed.NeedRoot(t)
	libraries := testbed.RunLibraries(t, testbed.Zlib.MustOriginal(t))
	f := testbed.RunStream(t, "zlib", testbed.FixtureOptions{Env: libraries.Env()})
	replace(t, f.Pid(), testbed.Zlib.Soname, testbed.Zlib.MustRebuilt(t, "7").Path)

	p, err := Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	first := findModule(t, p, testbed.Zlib.Soname)
	v := p.vins[first]
	if v == nil || first.Generation != 1 {
		t.Fatalf("generation %d", first.Generation)
	}
	// Nobody runs the rest of an instruction that a jump was written over, nor a
	// function of the new build that is the same in the old one.
	dead := v.Entries()[0].Function + 6
	staged := p.moduleAt(v.Generations()[1].Start)
	idle, ok, err := staged.Object.Lookup("gzerror", "")
	if err != nil || !ok {
		t.Fatal("gzerror is not exported", err)
	}
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for m, address := range map[*Module]uint64{first: dead, staged: staged.Bias + idle.Value} {
		var right [1]byte
		if _, err := memory.ReadAt(right[:], int64(address)); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.WriteAt([]byte{right[0] ^ 0x55}, int64(address)); err != nil {
			t.Fatal(err)
		}
		c, err := p.Compare(t.Context(), m, false)
		if err != nil || !c.Corrupt() {
			t.Fatalf("%s: a byte was changed, and not found: %v", m.Path, err)
		}
		plan, err := p.Plan(t.Context(), m, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(t.Context(), []*Plan{plan}); err != nil {
			t.Fatal(err)
		}
		var now [1]byte
		if _, err := memory.ReadAt(now[:], int64(address)); err != nil || now != right {
			t.Errorf("%s: %x, not %x, %v", m.Path, now, right, err)
		}
	}
	jump, _ := v.Veneer(0)
	found := make([]byte, len(jump))
	if _, err := memory.ReadAt(found, int64(v.Entries()[0].Function)); err != nil || string(found) != string(jump[:]) {
		t.Errorf("the jump is %x, not %x, %v", found, jump, err)
	}
	checkIntact(t, f.Pid())
	if r, err := f.Report(t.Context()); err != nil || r.Healthy(testbed.Report{}) != nil {
		t.Error(r, err)
	}
}
