package match

import "bytes"

// equalExceptions compares the exception tables of two functions of equal text
// (the LSDA; Itanium C++ ABI, "Exception Handling Tables"): call sites and
// actions byte by byte, the types that are caught by what they point at.
func (c *constants) equalExceptions(f, g *Function) bool {
	if (f.lsda == 0) != (g.lsda == 0) {
		return false
	}
	if f.lsda == 0 {
		return true
	}
	a, okA := readLSDA(c.p.old.im.at(f.lsda))
	b, okB := readLSDA(c.p.new.im.at(g.lsda))
	if !okA || !okB || a.types != b.types || !bytes.Equal(a.sites, b.sites) {
		return false
	}
	// Actions end and types begin at a place that only the actions tell. Types
	// stand at the end: what leads to relocated words is compared by those, the
	// rest by its bytes. A zero stands for every type.
	const pcrel4, indirect = 0x1b, 0x80
	x, y := a.rest, b.rest
	for len(x) == len(y) && len(x) >= 4 && a.types&^indirect == pcrel4 {
		n := len(x) - 4
		to, other := pcrelTarget(x[n:], f.lsda+uint64(a.restAt+n)), pcrelTarget(y[n:], g.lsda+uint64(b.restAt+n))
		if to != 0 || other != 0 {
			w, v := c.p.old.wordAt(to), c.p.new.wordAt(other)
			if w == nil && v == nil {
				break
			}
			if w == nil || v == nil || !c.equalWords(w, v, 0) {
				return false
			}
		}
		x, y = x[:n], y[:n]
	}
	return bytes.Equal(x, y)
}

// pcrelTarget returns what a 4-byte distance at an address leads to; 0, which
// stands for every type, stays 0.
func pcrelTarget(p []byte, at uint64) uint64 {
	v := int32(le.Uint32(p))
	if v == 0 {
		return 0
	}
	return at + uint64(int64(v))
}

// lsda is one exception table.
type lsda struct {
	types  byte // encoding of types, 0xff for none
	sites  []byte
	rest   []byte // actions and types
	restAt int
}

func readLSDA(p []byte) (l lsda, ok bool) {
	const omit = 0xff
	at := 0
	byteAt := func() byte {
		if at >= len(p) {
			at = len(p) + 1
			return 0
		}
		at++
		return p[at-1]
	}
	leb := func() int {
		v := 0
		for shift := 0; shift < 28; shift += 7 {
			b := byteAt()
			v |= int(b&0x7f) << shift
			if b&0x80 == 0 {
				return v
			}
		}
		at = len(p) + 1
		return 0
	}
	if byteAt() != omit {
		return l, false // landing pads that don't count from the function
	}
	l.types = byteAt()
	end := -1
	if l.types != omit {
		n := leb()
		end = at + n
	}
	from := at
	byteAt() // encoding of call sites
	n := leb()
	if at > len(p) || n > len(p)-at {
		return l, false
	}
	l.sites = p[from : at+n]
	l.restAt = at + n
	if end < 0 {
		return l, true
	}
	if end < l.restAt || end > len(p) {
		return l, false
	}
	l.rest = p[l.restAt:end]
	return l, true
}
