package match

import (
	"cmp"
	"debug/elf"
	"slices"
	"sort"
	"strings"

	"github.com/virtualizing-os/vos/internal/dso"
)

// A Proof is why an old and a new address are the same object.
type Proof uint8

// The proofs by falling strength. Added is the proof that there is no old
// object: both builds name all of theirs.
const (
	Unproved Proof = iota
	BySandwich
	ByPointer
	ByCode
	BySymbols
	Added
)

var proofNames = [...]string{"unproved", "sandwich", "pointer", "reference", "symbol", "added"}

func (p Proof) String() string { return proofNames[p] }

// An Interval is a part of the new build's data that is the same as one of the
// old build's: what is at New+i there is at Old+i here, for i < Size. Addresses
// are object addresses. Of an Added one Old is 0.
type Interval struct {
	New, Old, Size uint64
	Proof          Proof
	Relro          bool
	Name           string // of the object, "" where it has none
}

// A DataMap maps the addresses of the new build's data to the old build's.
type DataMap struct {
	Intervals []Interval // by ascending New, not overlapping
}

// Old returns where the old build has what the new one has at an address.
func (m *DataMap) Old(new uint64) (old uint64, proof Proof, ok bool) {
	i := sort.Search(len(m.Intervals), func(i int) bool { return m.Intervals[i].New > new }) - 1
	if i < 0 {
		return 0, Unproved, false
	}
	v := &m.Intervals[i]
	if new-v.New >= v.Size {
		return 0, Unproved, false
	}
	if v.Proof == Added {
		return 0, Added, false
	}
	return v.Old + (new - v.New), v.Proof, true
}

// A conflict is two places of one build that the same place of the other seems
// to be.
type conflict struct {
	new, old, other uint64
	by              string // the function that says so
	twice           bool   // one old address for two new ones
}

// A point is one address that equal code refers to at the same place.
type point struct {
	new, old uint64
	relro    bool
	pair     int
}

// dataMapper is the fourth step.
type dataMapper struct {
	p         *pairing
	symbols   []Interval
	points    []point
	conflicts []conflict
	grown     []grown
	oldRefs   []uint64 // addresses of Data that anything refers to, ascending
	newRefs   []uint64
	oldUse    map[uint64][]int32 // functions that refer to them
	newUse    map[uint64][]int32
	oldWords  map[uint64][]uint64 // words that point at them
	newWords  map[uint64][]uint64
}

// grown is an object that may have become larger.
type grown struct {
	new, old         uint64
	newSize, oldSize uint64
}

func mapData(p *pairing) (*DataMap, *dataMapper) {
	d := &dataMapper{p: p}
	d.bySymbols()
	d.collectPoints()
	d.oldRefs, d.oldUse, d.oldWords = p.old.dataUses()
	d.newRefs, d.newUse, d.newWords = p.new.dataUses()
	m := d.compose()
	d.findGrown(m)
	return m, d
}

// bySymbols maps the objects that both builds know by one name and size, and
// finds those that only the new one has.
func (d *dataMapper) bySymbols() {
	old, new := d.p.old, d.p.new
	add := func(v Interval) {
		if r := new.im.region(new.Object, v.New); r == Data || r == Relro {
			v.Relro = r == Relro
			d.symbols = append(d.symbols, v)
		}
	}
	for i := range new.Exports {
		e := &new.Exports[i]
		if e.Function >= 0 || e.IsTLS() || e.Size == 0 {
			continue
		}
		if o := old.Export(e.Key); o != nil && o.Size == e.Size {
			add(Interval{New: e.Value, Old: o.Value, Size: e.Size, Proof: BySymbols, Name: e.Name})
		} else if o == nil && !old.exportsName(e.Name) {
			add(Interval{New: e.Value, Size: e.Size, Proof: Added, Name: e.Name})
		}
	}
	for key, i := range new.labels.byKey {
		if i < 0 {
			continue
		}
		l := &new.labels.byAddr[i]
		if l.code || l.size == 0 {
			continue
		}
		k, ok := old.labels.byKey[key]
		if ok && k >= 0 && old.labels.byAddr[k].size == l.size {
			add(Interval{New: l.addr, Old: old.labels.byAddr[k].addr, Size: l.size, Proof: BySymbols, Name: l.name})
		} else if !ok && old.labels.complete && new.labels.complete && !d.renamed(l.name) {
			add(Interval{New: l.addr, Size: l.size, Proof: Added, Name: l.name})
		}
	}
	slices.SortFunc(d.symbols, func(a, b Interval) int {
		return cmp.Or(cmp.Compare(a.New, b.New), cmp.Compare(b.Size, a.Size), cmp.Compare(b.Proof, a.Proof), cmp.Compare(a.Old, b.Old), strings.Compare(a.Name, b.Name))
	})
	// Aliases of one object, and parts of one.
	kept := d.symbols[:0]
	for _, v := range d.symbols {
		if n := len(kept); n > 0 && v.New < kept[n-1].New+kept[n-1].Size {
			if w := kept[n-1]; v.Proof != w.Proof || v.Old-w.Old != v.New-w.New {
				d.conflicts = append(d.conflicts, conflict{new: v.New, old: v.Old, other: w.Old + (v.New - w.New), by: v.Name})
			}
			continue
		}
		kept = append(kept, v)
	}
	d.symbols = kept
}

// renamed tells whether the old build has an object of this name in any file:
// then a new one of the name may be that.
func (d *dataMapper) renamed(name string) bool {
	for i := range d.p.old.labels.byAddr {
		if l := &d.p.old.labels.byAddr[i]; !l.code && l.name == name {
			return true
		}
	}
	return false
}

// exportsName tells whether a name is exported under any version.
func (b *Build) exportsName(name string) bool {
	return slices.ContainsFunc(b.Exports, func(e Export) bool { return e.Name == name })
}

// collectPoints takes the references of trusted pairs of equal text.
func (d *dataMapper) collectPoints() {
	old, new := d.p.old, d.p.new
	for k := range d.p.pairs {
		q := &d.p.pairs[k]
		f, g := &old.Functions[q.Old], &new.Functions[q.New]
		if !q.equal || q.Trust < Strong || f.Opaque || f.Startup || g.Startup {
			continue
		}
		rf, rg := old.referencesOf(f), new.referencesOf(g)
		for i := range rf {
			r, s := &rf[i], &rg[i]
			if r.Region != s.Region || r.Mode != s.Mode || r.To >= 0 || r.Region != Data && r.Region != Relro {
				continue
			}
			d.points = append(d.points, point{s.Target, r.Target, r.Region == Relro, k})
		}
	}
	slices.SortFunc(d.points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.new, b.new), cmp.Compare(a.old, b.old), cmp.Compare(a.pair, b.pair))
	})
	kept := d.points[:0]
	for _, q := range d.points {
		if n := len(kept); n > 0 && kept[n-1].new == q.new && kept[n-1].old == q.old {
			continue
		}
		kept = append(kept, q)
	}
	d.points = kept
}

// dataUses returns what code and pointers refer to of the writable data.
func (b *Build) dataUses() (all []uint64, use map[uint64][]int32, words map[uint64][]uint64) {
	use, words = map[uint64][]int32{}, map[uint64][]uint64{}
	for i := range b.Functions {
		f := &b.Functions[i]
		if f.Startup {
			continue
		}
		for _, r := range b.referencesOf(f) {
			if r.Region == Data && r.To < 0 {
				if n := use[r.Target]; len(n) == 0 || n[len(n)-1] != int32(i) {
					use[r.Target] = append(n, int32(i))
				}
			}
		}
	}
	for i := range b.words {
		w := &b.words[i]
		if w.target != 0 && !w.isSlot() && w.kind != elf.R_X86_64_IRELATIVE && b.im.region(b.Object, w.target) == Data {
			words[w.target] = append(words[w.target], w.at)
		}
	}
	for a := range use {
		all = append(all, a)
	}
	for a := range words {
		if use[a] == nil {
			all = append(all, a)
		}
	}
	slices.Sort(all)
	return all, use, words
}

// symbolAt returns the interval that symbols prove for a new address.
func (d *dataMapper) symbolAt(new uint64) (Interval, bool) {
	i := sort.Search(len(d.symbols), func(i int) bool { return d.symbols[i].New > new }) - 1
	if i < 0 || new-d.symbols[i].New >= d.symbols[i].Size {
		return Interval{}, false
	}
	return d.symbols[i], true
}

// sectionOf returns the section of an address in a build's data.
func (b *Build) sectionOf(addr uint64) (dso.Range, string) {
	p := b.im.placeAt(addr)
	if p == nil {
		return dso.Range{}, ""
	}
	return p.Range, p.name
}
