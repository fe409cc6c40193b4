package module

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
)

// maxHex is how many bytes of a difference are shown.
const maxHex = 64

// Differences tells what a comparison found, by module, section and function.
func (c *Comparison) Differences(p *Process) []api.Difference {
	all := make([]api.Difference, 0, len(c.Runs)+len(c.Bad))
	for _, r := range c.Runs {
		d := c.Module.locate(r.Address)
		d.Length = len(r.Found)
		d.Found, d.Expected = shorten(r.Found), shorten(r.Expected)
		d.Kind = r.Kind
		all = append(all, d)
	}
	for _, w := range c.Bad {
		d := c.Module.locate(w.Address)
		d.Length = 8
		d.Found = hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, w.Found))
		switch {
		case w.Symbol != "":
			d.Function = ""
			d.Expected = "in a module that defines " + w.Symbol
		default:
			d.Expected = hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, w.Expected))
		}
		d.Kind = api.KindCorruption
		all = append(all, d)
	}
	for i := range all {
		all[i].PID, all[i].Program = p.PID(), p.Name
	}
	return all
}

func shorten(b []byte) string { return hex.EncodeToString(b[:min(len(b), maxHex)]) }

// locate names the place of a process address in the module.
func (m *Module) locate(address uint64) api.Difference {
	at := address - m.Bias
	d := api.Difference{Module: m.Name, Address: fmt.Sprintf("0x%x", address), Offset: fmt.Sprintf("0x%x", at)}
	if s, ok := m.Object.SectionAt(at); ok {
		d.Section = s.Name
	}
	l, ok := m.Object.LocateFunction(at)
	fde, unwound := m.unwindEntry(at)
	switch {
	case ok && (!l.Beyond || !unwound || at-l.Offset >= fde.Start):
		d.Function = place(l.Function.Name, l.Offset)
	case unwound:
		// Its name was stripped, but the unwind tables know where it begins.
		d.Function = place(fmt.Sprintf("sub_%x", fde.Start), at-fde.Start)
	}
	return d
}

// unwindEntry returns the unwind table's entry for an object address, or the
// nearest before it.
func (m *Module) unwindEntry(at uint64) (dso.FDE, bool) {
	if fde, ok, err := m.Object.FDEAt(at); err == nil && ok {
		return fde, true
	}
	fdes, err := m.Object.FDEs()
	if err != nil {
		return dso.FDE{}, false
	}
	i := sort.Search(len(fdes), func(i int) bool { return fdes[i].Start > at }) - 1
	if i < 0 {
		return dso.FDE{}, false
	}
	return fdes[i], true
}

func place(function string, offset uint64) string {
	if offset == 0 {
		return function
	}
	return fmt.Sprintf("%s+0x%x", function, offset)
}
