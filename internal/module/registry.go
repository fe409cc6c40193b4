package module

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module/stage"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/vin"
)

// How what vOS leaves in a program shows in its maps: as memfds of these names.
const (
	memfd        = "/memfd:"
	ownPrefix    = "vos-"
	stagedPrefix = ownPrefix + "staged-" // and the soname

	// MenuName is the name of the memfd that holds the menu of package menu.
	MenuName = ownPrefix + "menu"
)

// isVIN reports whether a mapping is of a vIN.
func isVIN(m *procfs.Mapping) bool { return m.Inode != 0 && m.Path == memfd+vin.Name }

// isMenu reports whether a mapping is of a menu.
func isMenu(m *procfs.Mapping) bool { return m.Inode != 0 && m.Path == memfd+MenuName }

// Staged reports whether the module is a build that vOS mapped beside the one
// that the program loaded.
func (m *Module) Staged() bool { return strings.HasPrefix(m.Path, memfd+stagedPrefix) }

// findVINs reads the vINs of the process, and lets modules and generations know
// each other. One that can't be made sense of is an obstacle of its module where
// that is known, and of all modules otherwise.
func (p *Process) findVINs() {
	for i := range p.maps {
		if !isVIN(&p.maps[i]) || i > 0 && isVIN(&p.maps[i-1]) && p.maps[i-1].End == p.maps[i].Start {
			continue
		}
		start, end := p.maps[i].Start, p.maps[i].End
		for j := i + 1; j < len(p.maps) && isVIN(&p.maps[j]) && p.maps[j].Start == end; j++ {
			end = p.maps[j].End
		}
		if p.maps[i].Perms&procfs.Read == 0 { // reserved, and never filled
			p.leftover = append(p.leftover, procfs.PageRange{Start: start, End: end})
			continue
		}
		memory, err := p.openMemory()
		if err != nil {
			return // who may not look learns nothing of it
		}
		v, err := vin.Read(memory, start, end-start)
		if err != nil {
			p.vinErrors = append(p.vinErrors, fmt.Errorf("the vIN at 0x%x: %w", start, err))
			continue
		}
		id := v.Config().Module
		m := p.moduleAt(id.Start)
		if m == nil || m.Bias != id.Bias || m.BuildID() != id.BuildID {
			continue // of a module that the program has closed
		}
		p.vins[m] = v
		m.Generation = v.Current()
		for n, g := range v.Generations() {
			if staged := p.moduleAt(g.Start); n > 0 && staged != nil && staged.Staged() && staged.Bias == g.Bias {
				staged.Generation, staged.origin = n, m
			}
		}
	}
	for _, m := range p.Modules {
		if !m.Staged() || m.origin != nil {
			continue
		}
		// What the program's unwinder knows of must stay.
		if state, err := p.readWord(m.end + unwindState); err != nil || state == unwindUntold {
			p.leftover = append(p.leftover, procfs.PageRange{Start: m.start, End: m.end + stage.Spare})
		}
	}
	for i := range p.maps {
		m := &p.maps[i]
		ofModule := func(s *Module) bool { return s.Staged() && s.start <= m.Start && m.End <= s.end+stage.Spare }
		if strings.HasPrefix(m.Path, memfd+stagedPrefix) && !slices.ContainsFunc(p.Modules, ofModule) { // reserved, and not filled
			p.leftover = append(p.leftover, procfs.PageRange{Start: m.Start, End: m.End})
		}
	}
}

// RunningBuildID returns the build-id of the generation of a module that calls
// reach.
func (p *Process) RunningBuildID(m *Module) string {
	if v := p.vins[m]; v != nil {
		return v.Generations()[v.Current()].BuildID
	}
	return m.BuildID()
}

// addJumps notes the jumps that vOS wrote at entries of the module, as runs of
// their own kind, and lets expected, which is mapped at address, have them: what
// is left differs for another reason. At an entry that the running generation
// redirects anything but the jump is wrong; at others the jump and the original
// are both right.
func (p *Process) addJumps(c *Comparison, address uint64, found, expected []byte) {
	v := p.vins[c.Module]
	if v == nil {
		return
	}
	wanted := make(map[int]bool)
	for _, i := range redirected(v, c.Module.Generation) {
		wanted[i] = true
	}
	for i, e := range v.Entries() {
		jump, _ := v.Veneer(i)
		if e.Kind != vin.Veneer || e.Function+uint64(len(jump)) <= address || e.Function >= address+uint64(len(found)) {
			continue
		}
		from := int(max(e.Function, address) - address)
		to := int(min(e.Function+uint64(len(jump)), address+uint64(len(found))) - address)
		part := jump[address+uint64(from)-e.Function:][:to-from]
		written := bytes.Equal(found[from:to], part)
		if written && len(c.Runs) < maxRuns {
			c.Runs = append(c.Runs, Run{Address: address + uint64(from), Found: bytes.Clone(part), Expected: bytes.Clone(expected[from:to]), Kind: api.KindVOS})
		}
		if written || wanted[i] {
			copy(expected[from:to], part)
		}
	}
}

// entryPages returns the numbers of the pages with entries that vOS knows.
func (p *Process) entryPages(m *Module) map[uint64]bool {
	pages := make(map[uint64]bool)
	if v := p.vins[m]; v != nil {
		for _, e := range v.Entries() {
			pages[e.Function/procfs.PageSize] = true
			pages[(e.Function+uint64(len(e.Original))-1)/procfs.PageSize] = true
		}
	}
	return pages
}

// behindStub returns the function that a stub leads to, of an interceptor or of a
// vIN, and any other address as it is.
func (p *Process) behindStub(address uint64) uint64 {
	address = p.behindInterceptor(address)
	for _, v := range p.vins {
		for _, e := range v.Entries() {
			if e.Stub == address {
				return e.Function
			}
		}
	}
	return address
}
