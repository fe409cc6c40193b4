package match

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"
	"sort"
)

// byPointer maps objects that only pointers lead to: words at the same place of
// tables which paired code or exported objects lead to. As a new build may let
// a pointer lead elsewhere, the objects must also be the same to look at: as
// long up to the next thing that something refers to, and of the same initial
// contents, which are not all zero and which no other object of the table's
// kind has. One object may have one counterpart only.
func (d *dataMapper) byPointer(m *DataMap) {
	m.tidy()
	type candidate struct{ new, old uint64 }
	var all []candidate
	forNew, forOld := map[uint64]uint64{}, map[uint64]uint64{}
	words := make([]uint64, 0, len(d.p.aligned))
	for at := range d.p.aligned {
		words = append(words, at)
	}
	slices.Sort(words)
	disputed := map[candidate]bool{}
	for _, at := range words {
		w, v := d.p.new.wordAt(at), d.p.old.wordAt(d.p.aligned[at])
		if w == nil || v == nil || w.target == 0 || v.target == 0 || w.name != "" ||
			d.p.new.im.region(d.p.new.Object, w.target) != Data || d.p.old.im.region(d.p.old.Object, v.target) != Data {
			continue
		}
		c := candidate{w.target, v.target}
		old, seenNew := forNew[c.new]
		new, seenOld := forOld[c.old]
		if seenNew && old != c.old || seenOld && new != c.new {
			disputed[c], disputed[candidate{c.new, old}], disputed[candidate{new, c.old}] = true, true, true
		}
		forNew[c.new], forOld[c.old] = c.old, c.new
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Or(cmp.Compare(a.new, b.new), cmp.Compare(a.old, b.old)) })
	all = slices.Compact(all)
	taken := takenOld(m.Intervals)
	alike, looks := map[uint64]int{}, make([]uint64, len(all))
	for i, c := range all {
		looks[i] = d.contents(c.old)
		alike[looks[i]]++
	}
	for i, c := range all {
		if disputed[c] || alike[looks[i]] > 1 {
			continue
		}
		if _, proof, _ := m.Old(c.new); proof != Unproved || taken.has(c.old) {
			continue
		}
		size, ok := d.sameObject(c.new, c.old)
		if !ok {
			continue
		}
		m.Intervals = append(m.Intervals, Interval{New: c.new, Old: c.old, Size: size, Proof: ByPointer})
	}
}

// ranges are old addresses that have a counterpart already, ascending.
type ranges []Interval

func takenOld(intervals []Interval) ranges {
	all := slices.Clone(intervals)
	all = slices.DeleteFunc(all, func(v Interval) bool { return v.Proof == Added })
	slices.SortFunc(all, func(a, b Interval) int { return cmp.Compare(a.Old, b.Old) })
	return all
}

func (r ranges) at(old uint64) (Interval, bool) {
	i := sort.Search(len(r), func(i int) bool { return r[i].Old > old }) - 1
	if i < 0 || old-r[i].Old >= r[i].Size {
		return Interval{}, false
	}
	return r[i], true
}

func (r ranges) has(old uint64) bool {
	_, ok := r.at(old)
	return ok
}

// contents hashes what an old object looks like: its initial bytes, and what its
// pointers to code and strings lead to.
func (d *dataMapper) contents(old uint64) uint64 {
	b := d.p.old
	size := min(next(d.p.oldBounds, old+1)-old, longestTable)
	var h maphash.Hash
	h.SetSeed(hashSeed)
	ws := b.wordsIn(old, old+size)
	raw := bytes.Clone(initialBytes(b, old, size))
	var place [8]byte
	for i := range ws {
		w := &ws[i]
		at := w.at - old
		// Packed relocations have their addends here.
		clear(raw[min(at, uint64(len(raw))):min(at+8, uint64(len(raw)))])
		h.WriteString(w.name)
		to := w.target
		if t := b.text(to); len(t) > 0 && b.FunctionAt(to) < 0 && b.im.region(b.Object, to) == Const {
			h.Write(t)
			to = 0
		} else if b.im.region(b.Object, to) == Data {
			to = 0
		}
		le.PutUint64(place[:], to)
		h.Write(place[:])
	}
	h.Write(raw)
	return h.Sum64()
}

// sameObject compares the initial contents of two objects up to where something
// else begins. Pointers to code must lead to a pair, pointers to constants and
// data to the same region.
func (d *dataMapper) sameObject(new, old uint64) (size uint64, ok bool) {
	p := d.p
	size = next(p.newBounds, new+1) - new
	if size != next(p.oldBounds, old+1)-old || size > longestTable {
		return 0, false
	}
	a, b := initialBytes(p.old, old, size), initialBytes(p.new, new, size)
	ws, vs := p.old.wordsIn(old, old+size), p.new.wordsIn(new, new+size)
	if len(a) != len(b) || uint64(len(a)) != size || len(ws) != len(vs) || allZero(a) && len(ws) == 0 {
		return 0, false
	}
	from := uint64(0)
	for i := range ws {
		w, v := &ws[i], &vs[i]
		at := w.at - old
		if at != v.at-new || at < from || w.kind != v.kind || w.name != v.name || !bytes.Equal(a[from:at], b[from:at]) {
			return 0, false
		}
		from = min(at+8, size)
		f, g := p.old.FunctionAt(w.target), p.new.FunctionAt(v.target)
		if (f < 0) != (g < 0) || f >= 0 && p.newOf(f) != g {
			return 0, false
		}
		r := p.old.im.region(p.old.Object, w.target)
		if r != p.new.im.region(p.new.Object, v.target) {
			return 0, false
		}
		if r == Const && !bytes.Equal(p.old.text(w.target), p.new.text(v.target)) {
			return 0, false
		}
	}
	return size, bytes.Equal(a[from:], b[from:])
}
