package match

import (
	"bytes"
	"slices"
	"sort"
)

// constants compares what functions of equal text refer to and nobody writes:
// strings, tables, pointers that are relocated once.
//
// Where a constant ends is not known without symbols. A string ends at its zero
// if something else begins behind it, a jump table where its entries stop
// leading into code, anything else at the next place that is referred to, and
// at least leastTable bytes on. What lies behind the end by mistake makes a
// function count as changed, which costs an entry and nothing else.
type constants struct {
	p         *pairing
	data      *DataMap
	old, new  []uint64 // places that something refers to, ascending
	known     map[[2]uint64]bool
	assumed   [][2]uint64 // what was found equal, in this order
	remaining int         // bytes that may still be compared
}

const (
	leastTable   = 32
	longestTable = 1 << 20
	deepest      = 1024 // tables of pointers to tables
)

func newConstants(p *pairing, data *DataMap) *constants {
	return &constants{p: p, data: data, old: p.oldBounds, new: p.newBounds, known: map[[2]uint64]bool{}, remaining: 256 << 20}
}

// boundaries are the addresses outside of code that something refers to.
func (b *Build) boundaries() []uint64 {
	var all []uint64
	for i := range b.References {
		if r := &b.References[i]; r.To < 0 && r.Region != Outside {
			all = append(all, r.Target)
		}
	}
	for i := range b.words {
		if w := &b.words[i]; w.target != 0 {
			all = append(all, w.target)
		}
	}
	for _, p := range b.im.places {
		all = append(all, p.Addr, p.End())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// next returns the first boundary at or behind an address.
func next(boundaries []uint64, addr uint64) uint64 {
	i := sort.Search(len(boundaries), func(i int) bool { return boundaries[i] >= addr })
	if i == len(boundaries) {
		return addr
	}
	return boundaries[i]
}

// isBoundary tells whether something refers to an address.
func isBoundary(boundaries []uint64, addr uint64) bool {
	_, ok := slices.BinarySearch(boundaries, addr)
	return ok
}

// equal tells whether two references of functions at the same place mean the
// same constant.
func (c *constants) equal(f, g int, r, s *Reference) bool {
	if r.Mode == Access && r.Width > 0 {
		return c.equalBytes(r.Target, s.Target, uint64(r.Width), uint64(s.Width), 0)
	}
	if same, ok := c.equalJumpTables(f, g, r.Target, s.Target); ok {
		return same
	}
	return c.equalAt(r.Target, s.Target, 0)
}

// equalAt compares the constants that begin at two addresses.
func (c *constants) equalAt(old, new uint64, depth int) bool {
	key := [2]uint64{old, new}
	if same, ok := c.known[key]; ok {
		return same
	}
	if depth > deepest {
		return false
	}
	c.known[key] = true // tables may point at each other
	mark := len(c.assumed)
	if !c.compare(old, new, depth) {
		// What was found equal meanwhile may have counted on this.
		for _, k := range c.assumed[mark:] {
			delete(c.known, k)
		}
		c.assumed = c.assumed[:mark]
		c.known[key] = false
		return false
	}
	c.assumed = append(c.assumed, key)
	return true
}

func (c *constants) compare(old, new uint64, depth int) bool {
	if s, ok := c.p.old.labels.object(old); ok && s.size > 0 {
		if t, ok := c.p.new.labels.object(new); ok && t.size > 0 && old-s.addr == new-t.addr {
			return c.equalBytes(old, new, s.size-(old-s.addr), t.size-(new-t.addr), depth)
		}
	}
	a, b := c.p.old.stringAt(old, c.old), c.p.new.stringAt(new, c.new)
	if a != nil && b != nil {
		return bytes.Equal(a, b)
	}
	return c.equalBytes(old, new, c.extent(c.old, old), c.extent(c.new, new), depth)
}

// extent is how many bytes a table may have.
func (c *constants) extent(boundaries []uint64, at uint64) uint64 {
	return min(next(boundaries, at+leastTable)-at, longestTable)
}

// stringAt returns the string at an address if something else begins behind its
// zero, or behind the padding that follows; nil otherwise.
func (b *Build) stringAt(addr uint64, boundaries []uint64) []byte {
	s := b.text(addr)
	if s == nil {
		return nil
	}
	if len(s) == 0 {
		// The empty string is most often the end of another one.
		if before := b.im.at(addr - 1); len(before) == 0 || before[0] < ' ' {
			return nil
		}
		return []byte{}
	}
	raw := b.im.at(addr)
	for n := len(s) + 1; n < min(len(raw), len(s)+65); n++ {
		if isBoundary(boundaries, addr+uint64(n)) {
			return s
		}
		if raw[n] != 0 {
			break
		}
	}
	return nil
}

// equalBytes compares n bytes of the old build with m of the new one, pointers
// by what they lead to. What one of them has more must be padding.
func (c *constants) equalBytes(old, new, n, m uint64, depth int) bool {
	a, b := c.p.old.im.at(old), c.p.new.im.at(new)
	if a == nil || b == nil {
		return a == nil && b == nil // .bss is no constant; nothing is
	}
	a, b = a[:min(uint64(len(a)), n)], b[:min(uint64(len(b)), m)]
	least := min(len(a), len(b))
	if c.remaining -= least; c.remaining < 0 {
		return false
	}
	if !allZero(a[least:]) || !allZero(b[least:]) {
		return false
	}
	ws, vs := c.p.old.wordsIn(old, old+uint64(least)), c.p.new.wordsIn(new, new+uint64(least))
	if len(ws) != len(vs) {
		return false
	}
	from := 0
	for i := range ws {
		at := int(ws[i].at - old)
		if ws[i].at-old != vs[i].at-new || at < from || !bytes.Equal(a[from:at], b[from:at]) || !c.equalWords(&ws[i], &vs[i], depth) {
			return false
		}
		from = min(at+8, least)
	}
	return bytes.Equal(a[from:least], b[from:least])
}

func allZero(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }

// equalWords tells whether two relocated words mean the same.
func (c *constants) equalWords(w, v *word, depth int) bool {
	if w.kind != v.kind || w.name != v.name {
		return false
	}
	if w.name != "" {
		return w.addend == v.addend
	}
	old, new := c.p.old, c.p.new
	f, g := old.FunctionAt(w.target), new.FunctionAt(v.target)
	if f >= 0 || g >= 0 {
		return f >= 0 && g >= 0 && c.p.newOf(f) == g && w.target-old.Functions[f].Addr == v.target-new.Functions[g].Addr
	}
	switch r := old.im.region(old.Object, w.target); {
	case r != new.im.region(new.Object, v.target):
		return false
	case r == Data:
		at, _, ok := c.data.Old(v.target)
		return ok && at == w.target
	case r == Const || r == Relro || r == Text:
		return c.equalAt(w.target, v.target, depth+1)
	}
	return false
}

// equalJumpTables compares tables of distances from their own begin into code:
// the same ones have other bytes as soon as code moves against constants. ok is
// false where these are none.
func (c *constants) equalJumpTables(f, g int, old, new uint64) (same, ok bool) {
	a, b := c.p.old.jumpTable(f, old, c.old), c.p.new.jumpTable(g, new, c.new)
	if len(a) == 0 || len(b) == 0 {
		return false, false
	}
	if len(a) != len(b) {
		return false, true
	}
	for i := range a {
		x, y := &c.p.old.Functions[a[i].function], &c.p.new.Functions[b[i].function]
		if c.p.newOf(a[i].function) != b[i].function || a[i].to-x.Addr != b[i].to-y.Addr {
			return false, true
		}
	}
	return true, true
}

type jumpEntry struct {
	to       uint64
	function int
}

// jumpTable reads the table at an address while its entries lead into code; nil
// where the first one does not lead into the function itself or one that it
// jumps to.
func (b *Build) jumpTable(index int, addr uint64, boundaries []uint64) []jumpEntry {
	if addr%4 != 0 {
		return nil
	}
	raw := b.im.at(addr)
	end := next(boundaries, addr+4)
	f := &b.Functions[index]
	var all []jumpEntry
	for at := addr; at+4 <= end && len(raw) >= 4; at, raw = at+4, raw[4:] {
		to := addr + uint64(int64(int32(le.Uint32(raw))))
		if f.Contains(to) {
			all = append(all, jumpEntry{to, index})
			continue
		}
		t := b.FunctionAt(to)
		if t < 0 || !b.jumpsTo(f, t) {
			break
		}
		all = append(all, jumpEntry{to, t})
	}
	return all
}

// jumpsTo tells whether a function jumps to another: its cold part.
func (b *Build) jumpsTo(f *Function, to int) bool {
	for _, r := range b.referencesOf(f) {
		if r.Mode == Jump && int(r.To) == to {
			return true
		}
	}
	return false
}
