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
	// stand at the end: what is equal by meaning is cut off until the rest is
	// equal by bytes.
	x, y := a.rest, b.rest
	for !bytes.Equal(x, y) {
		const pcrel4, indirect = 0x1b, 0x80
		if len(x) != len(y) || len(x) < 4 || a.types&^indirect != pcrel4 {
			return false
		}
		n := len(x) - 4
		from := f.lsda + uint64(a.restAt+n)
		to := g.lsda + uint64(b.restAt+n)
		if !c.equalType(pcrelTarget(x[n:], from), pcrelTarget(y[n:], to)) {
			return false
		}
		x, y = x[:n], y[:n]
	}
	return true
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

func (c *constants) equalType(old, new uint64) bool {
	if old == 0 || new == 0 {
		return old == new
	}
	w, v := c.p.old.wordAt(old), c.p.new.wordAt(new)
	if w == nil || v == nil {
		return false
	}
	return c.equalWords(w, v, 0)
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
