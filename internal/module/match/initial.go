package match

import "bytes"

// An InitialChange is a part of a mapped object whose initial value differs
// between the builds. A plan merges it: where the process still has the old
// value, the new one is due, anything else is the program's own.
type InitialChange struct {
	New, Old uint64 // object addresses
	Size     uint64
	Pointer  bool // a relocated word, in one of the builds at least
	Name     string
}

// compareInitial compares the initial values of what is mapped, word by word
// where pointers stand.
func (m *Match) compareInitial(p *pairing) {
	c := newConstants(p, &m.Data)
	for i := range m.Data.Intervals {
		v := &m.Data.Intervals[i]
		if v.Proof == Added || v.Relro {
			continue
		}
		m.compareInterval(c, v)
	}
}

func (m *Match) compareInterval(c *constants, v *Interval) {
	n := v.Size
	ws, vs := m.Old.wordsIn(v.Old, v.Old+n), m.New.wordsIn(v.New, v.New+n)
	from := uint64(0)
	plain := func(to uint64) {
		if from < to {
			m.compareBytes(v, from, to)
		}
	}
	for len(ws) > 0 || len(vs) > 0 {
		var at uint64
		same := false
		switch {
		case len(vs) == 0 || len(ws) > 0 && ws[0].at-v.Old < vs[0].at-v.New:
			at, ws = ws[0].at-v.Old, ws[1:]
		case len(ws) == 0 || ws[0].at-v.Old > vs[0].at-v.New:
			at, vs = vs[0].at-v.New, vs[1:]
		default:
			at = ws[0].at - v.Old
			same = c.equalWords(&ws[0], &vs[0], 0)
			ws, vs = ws[1:], vs[1:]
		}
		plain(at)
		from = max(from, at+8)
		if !same {
			m.Initial = append(m.Initial, InitialChange{v.New + at, v.Old + at, 8, true, v.Name})
		}
	}
	plain(n)
}

// compareBytes adds the runs of bytes that differ in a part without pointers.
func (m *Match) compareBytes(v *Interval, from, to uint64) {
	a, b := initialBytes(m.Old, v.Old+from, to-from), initialBytes(m.New, v.New+from, to-from)
	if bytes.Equal(a, b) {
		return
	}
	at := func(p []byte, i uint64) byte {
		if i < uint64(len(p)) {
			return p[i]
		}
		return 0
	}
	most := max(uint64(len(a)), uint64(len(b)))
	for i := uint64(0); i < most; i++ {
		if at(a, i) == at(b, i) {
			continue
		}
		begin := i
		for i < most && at(a, i) != at(b, i) {
			i++
		}
		m.Initial = append(m.Initial, InitialChange{v.New + from + begin, v.Old + from + begin, i - begin, false, v.Name})
	}
}

// initialBytes are the bytes that the file has of a range; the rest is zero.
func initialBytes(b *Build, addr, n uint64) []byte {
	raw := b.im.at(addr)
	return raw[:min(n, uint64(len(raw)))]
}
