package dump

import (
	"os"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// TestUnkept: memory is refused for what smaps tells of it, in words and by code.
func TestUnkept(t *testing.T) {
	p, err := procfs.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	from := procfs.Mapping{Start: 0x10000, End: 0x20000, Perms: procfs.Read | procfs.Write, Kind: procfs.KindAnonymous}
	for flag, want := range map[string]api.Code{"io": codeDevice, "pf": codeDevice, "pk": codeMapping, "um": codeFault, "ui": codeFault} {
		m := &memory{}
		if err := m.add(p, from, []string{"rd", "wr", flag}); err != nil {
			t.Fatal(err)
		}
		if len(m.refusals) != 1 || m.refusals[0].Code != want || len(m.mappings) != 0 {
			t.Errorf("%s: refused as %v, with %d mappings kept", flag, m.refusals, len(m.mappings))
		}
	}
	m := &memory{}
	if err := m.add(p, from, []string{"rd", "wr"}); err != nil || len(m.refusals) > 0 || len(m.mappings) != 1 {
		t.Errorf("what is kept: %v, %v", m.refusals, err)
	}
}
