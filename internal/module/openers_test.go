package module

import (
	"slices"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestOpenersAreFunctions: the C library has them by these names, or liburing, and what
// they open are kinds of handles.
func TestOpenersAreFunctions(t *testing.T) {
	p := openFixture(t)
	var libc *Module
	for _, m := range p.Modules {
		if m.Name == "libc.so.6" {
			libc = m
		}
	}
	known := func(name string) bool {
		_, ok := libc.function(name)
		return ok || strings.HasPrefix(name, "io_uring_")
	}
	opened := make(map[string]bool)
	for name, o := range openers {
		if !known(name) {
			t.Errorf("there is no function %s", name)
		}
		for _, kind := range o.kinds {
			if opened[kind] = true; !slices.Contains(api.HandleKinds, kind) {
				t.Errorf("%s opens %s, which is no kind of handles", name, kind)
			}
		}
	}
	for name := range closing {
		if !known(name) {
			t.Errorf("there is no function %s", name)
		}
	}
	for _, kind := range api.HandleKinds {
		if !opened[kind] && kind != "anonymous" { // by system calls alone
			t.Errorf("no function opens a %s", kind)
		}
	}
}
