package match

import (
	"cmp"
	"slices"
	"sort"
)

// An anchor is a new address whose old one is known.
type anchor struct {
	new, old uint64
	proof    Proof
}

// compose makes the map: what symbols prove, then the points that nothing
// contradicts, then what lies between two of them.
func (d *dataMapper) compose() *DataMap {
	m := &DataMap{Intervals: slices.Clone(d.symbols)}
	d.dropContradicted()
	points := d.points[:0:0]
	for _, q := range d.points {
		v, ok := d.symbolAt(q.new)
		if !ok {
			points = append(points, q)
			continue
		}
		if v.Proof == Added || v.Old+(q.new-v.New) != q.old {
			// The symbols decide; the code refers to something else than it did,
			// and its pair will be found to differ.
			continue
		}
	}
	d.points = points
	anchors := d.anchors()
	for i, q := range points {
		size := d.extent(q.new, q.old)
		if i+1 < len(points) {
			size = min(size, points[i+1].new-q.new)
		}
		m.Intervals = append(m.Intervals, Interval{New: q.new, Old: q.old, Size: size, Proof: ByCode, Relro: q.relro})
	}
	known := func(a uint64) bool {
		_, ok := d.symbolAt(a)
		return ok || len(d.pointsAt(a)) > 0
	}
	for _, a := range d.newRefs {
		if known(a) {
			continue
		}
		if old, ok := d.between(anchors, a); ok {
			m.Intervals = append(m.Intervals, Interval{New: a, Old: old, Size: d.extent(a, old), Proof: BySandwich})
		}
	}
	d.byPointer(m)
	m.tidy()
	return m
}

// pointsAt returns the points of a new address.
func (d *dataMapper) pointsAt(new uint64) []point {
	i := sort.Search(len(d.points), func(i int) bool { return d.points[i].new >= new })
	j := i
	for j < len(d.points) && d.points[j].new == new {
		j++
	}
	return d.points[i:j]
}

// dropContradicted takes out points that disagree with each other, and reports
// them: two old addresses for one new, or one old for two new.
func (d *dataMapper) dropContradicted() {
	bad := make([]bool, len(d.points))
	name := func(q point) string { return d.p.new.Name(d.p.pairs[q.pair].New) }
	check := func(order []int, key, value func(point) uint64, twice bool) {
		for n := 1; n < len(order); n++ {
			a, b := d.points[order[n-1]], d.points[order[n]]
			if key(a) != key(b) || value(a) == value(b) {
				continue
			}
			_, symbolic := d.symbolAt(a.new)
			_, also := d.symbolAt(b.new)
			if symbolic && also {
				continue
			}
			bad[order[n-1]], bad[order[n]] = true, true
			if !a.relro {
				d.conflicts = append(d.conflicts, conflict{new: b.new, old: b.old, other: value(a), by: name(b), twice: twice})
			}
		}
	}
	order := make([]int, len(d.points))
	for i := range order {
		order[i] = i
	}
	newOf, oldOf := func(q point) uint64 { return q.new }, func(q point) uint64 { return q.old }
	check(order, newOf, oldOf, false)
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(d.points[i].old, d.points[j].old), cmp.Compare(d.points[i].new, d.points[j].new))
	})
	check(order, oldOf, newOf, true)
	taken := takenOld(d.symbols)
	// What a symbol proves is taken: no other new address may have it.
	for i, q := range d.points {
		if _, ok := d.symbolAt(q.new); ok || q.relro {
			continue
		}
		if v, ok := taken.at(q.old); ok {
			bad[i] = true
			d.conflicts = append(d.conflicts, conflict{new: q.new, old: q.old, other: v.New + (q.old - v.Old), by: name(q), twice: true})
		}
	}
	kept := d.points[:0]
	for i, q := range d.points {
		if !bad[i] {
			kept = append(kept, q)
		}
	}
	d.points = kept
}

// extent is how far the proof of one address reaches: up to where, in either
// build, the next thing is referred to, or the section ends.
func (d *dataMapper) extent(new, old uint64) uint64 {
	reach := func(b *Build, refs []uint64, at uint64) uint64 {
		section, _ := b.sectionOf(at)
		end := section.End()
		if k := sort.Search(len(refs), func(k int) bool { return refs[k] > at }); k < len(refs) {
			end = min(end, refs[k])
		}
		if end <= at {
			return 1
		}
		return end - at
	}
	size := min(reach(d.p.old, d.oldRefs, old), reach(d.p.new, d.newRefs, new))
	if k := sort.Search(len(d.symbols), func(k int) bool { return d.symbols[k].New > new }); k < len(d.symbols) {
		size = min(size, d.symbols[k].New-new)
	}
	return max(size, 1)
}

// anchors are the places between which a sandwich may lie: points, the two ends
// of what symbols prove, and the ends of sections of one name and size.
func (d *dataMapper) anchors() []anchor {
	var all []anchor
	for _, q := range d.points {
		all = append(all, anchor{q.new, q.old, ByCode})
	}
	for _, v := range d.symbols {
		if v.Proof == BySymbols {
			all = append(all, anchor{v.New, v.Old, BySymbols}, anchor{v.New + v.Size, v.Old + v.Size, BySymbols})
		}
	}
	for _, s := range d.p.new.im.places {
		if s.region != Data {
			continue
		}
		for _, o := range d.p.old.im.places {
			if o.region == Data && o.name == s.name && o.Size == s.Size {
				all = append(all, anchor{s.Addr, o.Addr, BySandwich}, anchor{s.End(), o.End(), BySandwich})
			}
		}
	}
	slices.SortFunc(all, func(a, b anchor) int { return cmp.Or(cmp.Compare(a.new, b.new), cmp.Compare(b.proof, a.proof)) })
	return all
}

// between proves an address by its neighbours: the anchors on both sides, in
// the same section, have one displacement; nothing new is referred to between
// them; and the old place is referred to, too, by the same function's old self
// or the same pointer.
func (d *dataMapper) between(anchors []anchor, new uint64) (old uint64, ok bool) {
	section, name := d.p.new.sectionOf(new)
	i := sort.Search(len(anchors), func(i int) bool { return anchors[i].new > new })
	if i == 0 || i == len(anchors) || name == "" {
		return 0, false
	}
	low, high := anchors[i-1], anchors[i]
	if low.new < section.Addr || high.new > section.End() || low.new-low.old != high.new-high.old {
		return 0, false
	}
	shift := new - low.new
	old = low.old + shift
	if at, oldName := d.p.old.sectionOf(old); oldName != name || !at.Contains(low.old) && low.old != at.End() {
		return 0, false
	}
	from := sort.Search(len(d.newRefs), func(k int) bool { return d.newRefs[k] >= low.new })
	for _, a := range d.newRefs[from:] {
		if a > high.new {
			break
		}
		if !isBoundary(d.oldRefs, low.old+(a-low.new)) && a != high.new && a != low.new {
			return 0, false
		}
	}
	return old, d.supported(new, old)
}

// supported tells whether something of both builds refers to an old and a new
// address.
func (d *dataMapper) supported(new, old uint64) bool {
	for _, f := range d.newUse[new] {
		k := d.p.ofNew[f]
		if k < 0 || d.p.pairs[k].Trust < Likely {
			continue
		}
		if slices.Contains(d.oldUse[old], int32(d.p.pairs[k].Old)) {
			return true
		}
	}
	for _, w := range d.newWords[new] {
		s, name := d.p.new.sectionOf(w)
		at, aligned := d.p.aligned[w]
		for _, v := range d.oldWords[old] {
			if aligned && at == v {
				return true
			}
			t, other := d.p.old.sectionOf(v)
			if name == other && s.Size == t.Size && w-s.Addr == v-t.Addr {
				return true
			}
		}
	}
	return false
}

// findGrown reports objects that may have become larger: the way to the next
// known place is longer in the new build than in the old one, and nothing that
// is known to be added lies between. New code might write behind the old object.
func (d *dataMapper) findGrown(m *DataMap) {
	for i := range m.Intervals {
		v := &m.Intervals[i]
		if v.Relro || v.Proof == Added || v.Proof == BySymbols {
			continue
		}
		// Where symbols tell both sizes, what follows may be padding.
		if was, ok := d.p.old.roomAt(v.Old); ok {
			if is, ok := d.p.new.roomAt(v.New); ok && is <= was {
				continue
			}
		}
		section, _ := d.p.new.sectionOf(v.New)
		was, _ := d.p.old.sectionOf(v.Old)
		newEnd, oldEnd := section.End(), was.End()
		if i+1 < len(m.Intervals) {
			w := &m.Intervals[i+1]
			if w.Proof == Added {
				continue
			}
			if w.New >= section.Addr && w.New < section.End() && w.Old >= was.Addr && w.Old < was.End() {
				newEnd, oldEnd = w.New, w.Old
			}
		}
		if oldEnd <= v.Old {
			// The objects stand in another order: what follows says where it ends.
			oldEnd = was.End()
			if k := sort.Search(len(d.oldRefs), func(k int) bool { return d.oldRefs[k] > v.Old }); k < len(d.oldRefs) {
				oldEnd = min(oldEnd, d.oldRefs[k])
			}
		}
		if newEnd <= v.New || oldEnd <= v.Old || newEnd-v.New <= oldEnd-v.Old {
			continue
		}
		// Something that is referred to and not proved lies between: that is
		// refused by itself, and tells where this object ends.
		k := sort.Search(len(d.newRefs), func(k int) bool { return d.newRefs[k] > v.New })
		if k < len(d.newRefs) && d.newRefs[k] < newEnd {
			continue
		}
		d.grown = append(d.grown, grown{new: v.New, old: v.Old, newSize: newEnd - v.New, oldSize: oldEnd - v.Old})
	}
}

// tidy sorts the intervals, cuts overlaps and joins neighbours of one
// displacement and proof.
func (m *DataMap) tidy() {
	slices.SortStableFunc(m.Intervals, func(a, b Interval) int { return cmp.Or(cmp.Compare(a.New, b.New), cmp.Compare(b.Proof, a.Proof)) })
	kept := m.Intervals[:0]
	for _, v := range m.Intervals {
		if n := len(kept); n > 0 {
			last := &kept[n-1]
			if v.New == last.New {
				continue
			}
			if v.New < last.New+last.Size {
				if last.Proof == BySymbols || last.Proof == Added {
					continue
				}
				last.Size = v.New - last.New
			}
		}
		kept = append(kept, v)
	}
	m.Intervals = kept
}
