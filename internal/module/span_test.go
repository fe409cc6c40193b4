package module

import (
	"debug/elf"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestDataOfTheFirstPage opens a library whose data are mapped, 2 MiB behind its
// text, from the page of the file that its text is in, as those of libxshmfence
// are. That is no second module.
func TestDataOfTheFirstPage(t *testing.T) {
	dir := t.TempDir()
	guest := gcc(t, dir, "libguest.so", "small.c", "-shared", "-fPIC", "-Wl,-soname,libguest.so", "-nostdlib",
		"-Wl,-z,norelro", "-Wl,-z,noseparate-code", "-Wl,-z,max-page-size=0x200000")
	host := gcc(t, dir, "host", "host.c", "-ldl")
	r := run(t, host, "open", guest)
	p := r.inspect(t)
	found := 0
	for _, m := range p.Modules {
		if c := compare(t, p, m, true); c.Corrupt() || len(c.Unchecked) > 0 {
			t.Errorf("%s at %#x: %v, unchecked %v", m.Name, m.start, c.Runs, c.Unchecked)
		}
		if m.Name != "libguest.so" {
			continue
		}
		found++
		data := m.Object.Mappings()[1]
		if data.Offset != 0 || data.Segment.Flags&elf.PF_W == 0 || data.Addr < 1<<21 {
			t.Errorf("the library is not what this test is about: %+v", data)
		}
		if plan, err := p.Plan(t.Context(), m, true); err != nil || !plan.Empty() {
			t.Errorf("to be refreshed: %v, %v", plan.Steps(), err)
		}
	}
	if found != 1 {
		t.Errorf("the library is listed %d times", found)
	}
	testbed.AssertUndisturbed(t, r.Pid())
}
