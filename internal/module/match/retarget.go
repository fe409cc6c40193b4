package match

import (
	"cmp"
	"debug/elf"
	"slices"
)

// A Displacement is a place of new code that must lead elsewhere: Size bytes at
// At, counted from Next, both object addresses of the new build.
type Displacement struct {
	At, Next uint64
	Size     uint8
	Old      uint64 // object address of the old build
	Code     bool   // an entry, not data
}

// A WordTarget is a relocated word of the new build's constant or added data
// that must point into the old build.
type WordTarget struct {
	At   uint64 // object address of the new build
	Old  uint64 // object address of the old build
	Code bool
}

// unproved is a place of the old build's data that the new code needs and
// nobody knows.
type unproved struct {
	addr uint64
	from string // who refers to it
}

// retarget lists what of the new build leads to the old one, and counts on what
// proof.
func (m *Match) retarget(p *pairing, r *redirection) {
	m.Figures.Objects = map[string]int{}
	seen := map[uint64]bool{}
	need := func(addr uint64, from string) (uint64, bool) {
		old, proof, ok := m.Data.Old(addr)
		if !seen[addr] {
			seen[addr] = true
			m.Figures.Objects[proof.String()]++
			if !ok && proof != Added {
				m.unproved = append(m.unproved, unproved{addr, from})
			}
		}
		return old, ok
	}
	for _, i := range m.Needed {
		f := &m.New.Functions[i]
		for _, ref := range m.New.referencesOf(f) {
			if ref.Mode == Through { // the word of the GOT is retargeted
				if ref.Region == Data && ref.To < 0 {
					need(ref.Target, m.New.Name(i))
				}
				continue
			}
			d := Displacement{At: f.Addr + uint64(ref.In) + uint64(ref.Field), Next: f.Addr + uint64(ref.In) + uint64(ref.Len), Size: ref.Size}
			switch {
			case ref.Region == Data && ref.To < 0:
				old, ok := need(ref.Target, m.New.Name(i))
				if !ok {
					continue
				}
				d.Old = old
			case ref.Region == Text && ref.Mode == Address && ref.To >= 0 && p.trust(int(ref.To)) >= Likely && ref.Target == m.New.Functions[ref.To].Addr:
				d.Old, d.Code = m.Old.Functions[p.oldOf(int(ref.To))].Addr, true
			default:
				continue
			}
			m.Displacements = append(m.Displacements, d)
		}
	}
	if len(m.Entries) > 0 {
		m.retargetWords(p, need)
	}
	slices.SortFunc(m.Displacements, func(a, b Displacement) int { return cmp.Compare(a.At, b.At) })
}

// retargetWords lists the pointers of data that the new code has for itself:
// constants, GOT words that the linker resolved, and objects that are new.
func (m *Match) retargetWords(p *pairing, need func(uint64, string) (uint64, bool)) {
	arrays, startup := m.New.startupWords(), m.New.startupPointers()
	for i := range m.New.words {
		w := &m.New.words[i]
		if w.target == 0 || w.name != "" || arrays[w.at] || w.kind != elf.R_X86_64_RELATIVE && w.kind != elf.R_X86_64_64 {
			continue
		}
		region := m.New.im.region(m.New.Object, w.at)
		if region == Data {
			if _, proof, _ := m.Data.Old(w.at); proof != Added {
				continue // the old data is used, with the old pointers
			}
		}
		t := WordTarget{At: w.at}
		switch m.New.im.region(m.New.Object, w.target) {
		case Data:
			if startup[w.at] {
				continue
			}
			_, name := m.New.sectionOf(w.at)
			old, ok := need(w.target, "a pointer in "+name)
			if !ok {
				continue
			}
			t.Old = old
		case Text:
			g := m.New.FunctionAt(w.target)
			if g < 0 || p.trust(g) < Likely || m.New.Functions[g].Addr != w.target {
				continue
			}
			t.Old, t.Code = m.Old.Functions[p.oldOf(g)].Addr, true
		default:
			continue
		}
		m.Words = append(m.Words, t)
	}
}

// startupPointers are the words of the GOT that startup code loads, and nobody
// else.
func (b *Build) startupPointers() map[uint64]bool {
	startup := map[uint64]bool{}
	for _, only := range []bool{true, false} {
		for i := range b.Functions {
			f := &b.Functions[i]
			if f.Startup != only {
				continue
			}
			for _, r := range b.referencesOf(f) {
				if r.Mode != Through {
					continue
				}
				at := f.Addr + uint64(r.In) + uint64(r.Len) + uint64(int64(int32(le.Uint32(b.raw(f)[r.In+uint32(r.Field):]))))
				if only {
					startup[at] = true
				} else {
					delete(startup, at)
				}
			}
		}
	}
	return startup
}

// Pointer returns what the loader makes the word at an address point at: a name
// that it looks up, or an object address of the build itself, or both. False
// where no relocation has the word.
func (b *Build) Pointer(addr uint64) (target uint64, name string, ok bool) {
	w := b.wordAt(addr)
	if w == nil {
		return 0, "", false
	}
	return w.target, w.name, true
}
