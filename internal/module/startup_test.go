package module

import (
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// scopes is a program that never calls what it imports, and opens plugins: one that
// stays and one whose own library has the same names.
const scopes = `
#include "report.h"
#include <dlfcn.h>
int preloaded(void), behind(void), needed(void);
volatile int never;
int main(int argc, char **argv)
{
	if (never)
		return preloaded() + behind() + needed();
	for (int i = 1; i < argc; i++)
		if (!dlopen(argv[i], RTLD_LAZY | RTLD_LOCAL))
			wrong("%s", dlerror());
	report_serve();
}
`

// TestBindingsOfTheLoader holds what slots are taken for that are not bound yet
// against what the loader binds them to in another run of the program, by LD_BIND_NOW.
func TestBindingsOfTheLoader(t *testing.T) {
	library := func(name, source string, parts ...testbed.Build) testbed.Build {
		return testbed.Build{Name: name, Source: source, Parts: parts, Flags: []string{"-fPIC", "-shared", "-Wl,-z,lazy,-soname," + name}}
	}
	names := "int preloaded(void) { return 1; } int behind(void) { return 2; } int needed(void) { return 3; } int opened(void) { return 4; }"
	program := testbed.MustCompile(t, testbed.Build{Name: "scopes", Source: scopes, Files: []string{"report.h"}, Flags: []string{"-Wl,-z,lazy"},
		Parts: []testbed.Build{library("libneeded.so", "int preloaded(void) { return 5; } int behind(void) { return 6; } int needed(void) { return 7; }")}})
	before := testbed.MustCompile(t, library("libbefore.so", "int behind(void); int preloaded(void) { return behind(); }",
		library("libbehind.so", "int behind(void) { return 8; }")))
	keep := library("libkeep.so", names)
	keep.Flags = append(keep.Flags, "-Wl,-z,nodelete")
	plugin := testbed.MustCompile(t, library("libplugin.so",
		"int preloaded(void), behind(void), needed(void), opened(void); int all(void) { return preloaded() + behind() + needed() + opened(); }",
		library("libown.so", names)))

	look := func(env ...string) (slots map[string]string, p *Process) {
		t.Helper()
		f := testbed.Run(t, testbed.FixtureOptions{Env: append(env, "LD_PRELOAD="+before)}, program, testbed.MustCompile(t, keep), plugin)
		p, err := Open(f.Pid())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		all, err := p.importSlots()
		if err != nil {
			t.Fatal(err)
		}
		slots = make(map[string]string)
		for _, s := range all {
			name := s.Importer.Name + " " + s.Symbol.Name
			if s.Importer.Name != "scopes" && s.Importer.Name != "libplugin.so" {
				continue
			}
			if slots[name] = ""; s.Target != 0 {
				slots[name] = p.moduleAt(s.Target).Name
			}
		}
		return slots, p
	}
	bound, _ := look("LD_BIND_NOW=1")
	want := map[string]string{
		"scopes preloaded": "libbefore.so", "scopes behind": "libneeded.so", "scopes needed": "libneeded.so",
		"libplugin.so preloaded": "libbefore.so", "libplugin.so behind": "libneeded.so", "libplugin.so needed": "libneeded.so", "libplugin.so opened": "libown.so",
	}
	for name, to := range want {
		if bound[name] != to {
			t.Errorf("the loader binds %s to %q, not to %s: the test is wrong", name, bound[name], to)
		}
	}
	lazy, p := look()
	if len(lazy) != len(bound) {
		t.Errorf("%d slots, and %d where all are bound", len(lazy), len(bound))
	}
	for name, to := range lazy {
		if certain := want[name] != "" && strings.HasPrefix(name, "scopes "); certain && to == "" || to != "" && to != bound[name] {
			t.Errorf("%s is taken for one of %q, and the loader binds it to %s", name, to, bound[name])
		}
	}
	for _, m := range p.Modules {
		want := m.Name == "libplugin.so" || m.Name == "libown.so"
		if m.Opened != want {
			t.Errorf("%s: opened %t", m.Name, m.Opened)
		}
	}
}
