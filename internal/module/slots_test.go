package module

import (
	"debug/elf"
	"errors"
	"testing"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// importing calls one function, takes the addresses of others, and calls some never.
const importing = `
#include "report.h"
#include <string.h>
pid_t (*stored)(pid_t) = getpgid;         /* R_X86_64_64 */
static pid_t (*volatile taken)(void);
volatile int never;
char buffer[64];
int main(void)
{
	taken = getppid;                  /* GLOB_DAT, its address is taken */
	if (getuid() == 12345)            /* called alone */
		return 1;
	if (never) {
		setuid(1);                /* not called yet */
		memset(buffer, never, never * 40); /* IFUNC, not called yet */
	}
	report_serve();
}
`

func openFixture(t *testing.T, flags ...string) *Process {
	t.Helper()
	path := testbed.MustCompile(t, testbed.Build{Name: "importing", Source: importing, Files: []string{"report.h"}, Flags: append([]string{"-O0"}, flags...)})
	f := testbed.Run(t, testbed.FixtureOptions{}, path)
	p, err := Open(f.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// slotsByName returns the slots of the executable, by function.
func slotsByName(t *testing.T, p *Process) map[string]ImportSlot {
	t.Helper()
	all, err := p.importSlots()
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]ImportSlot)
	for _, s := range all {
		if s.Importer.Kind == Executable {
			byName[s.Symbol.Name] = s
		}
	}
	return byName
}

// inLibc returns where the C library has a function.
func inLibc(t *testing.T, p *Process, name string) uint64 {
	t.Helper()
	for _, m := range p.Modules {
		if m.Name != "libc.so.6" {
			continue
		}
		s, ok, err := m.Object.Lookup(name, "GLIBC_2.2.5")
		if err != nil || !ok {
			t.Fatalf("libc has no %s: %v", name, err)
		}
		return m.Bias + s.Value
	}
	t.Fatal("no libc")
	return 0
}

func TestImportSlots(t *testing.T) {
	type expected struct{ lazy, taken, certain bool }
	lazily := map[string]expected{
		"getuid": {certain: true}, "getppid": {taken: true, certain: true}, "getpgid": {taken: true, certain: true},
		"setuid": {lazy: true, certain: true}, "memset": {lazy: true},
	}
	now := map[string]expected{
		"getuid": {certain: true}, "getppid": {taken: true, certain: true}, "getpgid": {taken: true, certain: true},
		"setuid": {certain: true},
	}
	for name, c := range map[string]struct {
		flags []string
		want  map[string]expected
	}{
		"lazy":   {[]string{"-fPIE", "-pie", "-Wl,-z,lazy"}, lazily},
		"now":    {[]string{"-fPIE", "-pie", "-Wl,-z,now"}, now},
		"no PLT": {[]string{"-fPIE", "-pie", "-fno-plt", "-Wl,-z,now"}, now},
		"RELRO":  {[]string{"-fPIE", "-pie", "-Wl,-z,relro,-z,now"}, now},
	} {
		t.Run(name, func(t *testing.T) {
			p := openFixture(t, c.flags...)
			slots := slotsByName(t, p)
			for function, want := range c.want {
				s, ok := slots[function]
				if !ok {
					t.Errorf("%s has no slot", function)
					continue
				}
				if s.Lazy != want.lazy || s.Taken != want.taken || (s.Target != 0) != want.certain {
					t.Errorf("%s: lazy %t, taken %t, leads to 0x%x; want %+v", function, s.Lazy, s.Taken, s.Target, want)
				}
				if want.certain && s.Target != inLibc(t, p, function) {
					t.Errorf("%s leads to 0x%x, not to libc's 0x%x", function, s.Target, inLibc(t, p, function))
				}
			}
			for _, s := range slots {
				if s.Symbol.Type == elf.STT_OBJECT {
					t.Errorf("%s is a variable", s.Symbol.Name)
				}
			}
		})
	}
}

// TestImportSlotsPassEntries: where the executable stands for a function's address
// with its PLT, what others import is the function.
func TestImportSlotsPassEntries(t *testing.T) {
	p := openFixture(t, "-fno-pie", "-no-pie", "-Wl,-z,now")
	for name, s := range slotsByName(t, p) {
		if name == "getppid" && s.Target != inLibc(t, p, name) {
			t.Errorf("%s leads to 0x%x, not to libc's 0x%x", name, s.Target, inLibc(t, p, name))
		}
	}
	entries := map[uint64]uint64{}
	slots := []ImportSlot{
		{Importer: &Module{Bias: 0x1000}, Symbol: dso.Symbol{Value: 0x20}, Target: 0x7000, Address: 1},
		{Importer: &Module{}, Target: 0x1020, Address: 2},
		{Importer: &Module{}, Target: 0x8000, Address: 3},
	}
	passEntries(slots)
	for _, s := range slots {
		entries[s.Address] = s.Target
	}
	if entries[1] != 0x7000 || entries[2] != 0x7000 || entries[3] != 0x8000 {
		t.Errorf("%#x", entries)
	}
}

// TestPlanAttach: what is left out, by the options, and what the stubs are for.
func TestPlanAttach(t *testing.T) {
	p := openFixture(t, "-fPIE", "-pie", "-Wl,-z,lazy")
	left := func(opt AttachOptions) (names map[string]bool, a *Attachment) {
		t.Helper()
		a, err := p.PlanAttach(opt)
		if err != nil || len(a.Refusals) > 0 {
			t.Fatal(err, a.Refusals)
		}
		names = make(map[string]bool)
		for _, l := range a.Left {
			if l.Module == "importing" {
				names[l.Name] = true
			}
		}
		return names, a
	}
	names, a := left(AttachOptions{})
	if !names["getppid@GLIBC_2.2.5"] || !names["getpgid@GLIBC_2.2.5"] || !names["memset@GLIBC_2.2.5"] || names["getuid@GLIBC_2.2.5"] || names["setuid@GLIBC_2.2.5"] {
		t.Errorf("left out: %v", names)
	}
	for _, s := range a.Interceptor.Slots() {
		if s.Taken {
			t.Errorf("the slot at 0x%x is used as a pointer", s.Address)
		}
	}
	for i, f := range a.Interceptor.Functions() {
		if f.Kind != intercept.Count {
			t.Errorf("function %d, %s, is of kind %v", i, f.Name, f.Kind)
		}
	}
	names, a = left(AttachOptions{Pointers: true, Memory: true})
	if names["getppid@GLIBC_2.2.5"] || names["getpgid@GLIBC_2.2.5"] {
		t.Errorf("left out: %v", names)
	}
	kinds := make(map[string]intercept.Kind)
	for _, f := range a.Interceptor.Functions() {
		kinds[f.Name] = f.Kind
	}
	if kinds["malloc@GLIBC_2.2.5"] != intercept.Allocate || kinds["free@GLIBC_2.2.5"] != intercept.Release {
		t.Errorf("kinds: %v", kinds)
	}
	if d, err := p.PlanDetach(); err != nil || !d.Empty() {
		t.Errorf("nothing is attached, and detaching would do %+v, %v", d, err)
	}
}

// TestAttachNoticesChanges: a slot that holds something else by the time of the stop
// is left alone.
func TestAttachNoticesChanges(t *testing.T) {
	p := openFixture(t, "-fPIE", "-pie", "-Wl,-z,now")
	a, err := p.PlanAttach(AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed := slotsByName(t, p)["setuid"]
	other := inLibc(t, p, "getuid")
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := memory.WriteAt(word(other), int64(changed.Address)); err != nil {
		t.Fatal(err)
	}
	done, err := p.CommitAttach(t.Context(), a)
	if err != nil || done.Slots != len(a.Writes)-1 {
		t.Errorf("%d of %d slots written, %v", done.Slots, len(a.Writes), err)
	}
	if value, err := p.readWord(changed.Address); err != nil || value != other {
		t.Errorf("the changed slot holds 0x%x, not 0x%x, %v", value, other, err)
	}
	again, err := p.Again(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if len(again.Interceptors()) != 1 {
		t.Fatalf("%d interceptors, %v", len(again.Interceptors()), again.interceptorErrors)
	}
	d, err := again.PlanDetach()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.CommitDetach(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	last, err := p.Again(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if len(last.Interceptors()) != 0 || len(last.leftover) != 0 {
		t.Errorf("left: %d interceptors, %v", len(last.Interceptors()), last.leftover)
	}
	if _, err := last.readWord(a.Interceptor.Config().Base); !errors.Is(err, procfs.ErrAddress) {
		t.Errorf("the interceptor is still mapped: %v", err)
	}
}
