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
		m.compareInterval(p, c, v)
	}
}

func (m *Match) compareInterval(p *pairing, c *constants, v *Interval) {
	n := v.Size
	ws, vs := m.Old.wordsIn(v.Old, v.Old+n), m.New.wordsIn(v.New, v.New+n)
	from := uint64(0)
	plain := func(to uint64) {
		if from < to {
			m.compareBytes(p, v, from, to)
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

// compareBytes adds the values that differ in a part without pointers: whole ones,
// as a byte of the new value beside one that the program wrote is neither.
func (m *Match) compareBytes(p *pairing, v *Interval, from, to uint64) {
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
	first := len(m.Initial)
	for i := uint64(0); i < most; i++ {
		if at(a, i) == at(b, i) {
			continue
		}
		begin, end, joined := m.valueAt(p, v.Old+from+i)
		begin, end = max(begin, v.Old+from), min(end, v.Old+to)
		if n := len(m.Initial); joined && n > first && m.Initial[n-1].Old+m.Initial[n-1].Size == begin {
			m.Initial[n-1].Size += end - begin
		} else {
			m.Initial = append(m.Initial, InitialChange{begin - v.Old + v.New, begin, end - begin, false, v.Name})
		}
		i = end - v.Old - from - 1
	}
}

// valueAt returns the range of the value that a byte of the running build's data
// belongs to: a small object that a symbol tells, otherwise an aligned word, or
// the half of it that something refers to. Words of one object may be one value,
// as of a text: joined tells that nothing begins with this one.
func (m *Match) valueAt(p *pairing, at uint64) (begin, end uint64, joined bool) {
	const word, largest = 8, 16 // a long double
	begin = at &^ (word - 1)
	end = begin + word
	l, named := m.Old.labels.object(at)
	switch {
	case named && 0 < l.size && l.size <= largest:
		return l.addr, l.addr + l.size, false
	case named && l.size > 0:
		begin, end = max(begin, l.addr), min(end, l.addr+l.size)
		return begin, end, begin > l.addr
	}
	if half := begin + word/2; isBoundary(p.oldBounds, half) {
		if at < half {
			end = half
		} else {
			begin = half
		}
	}
	return begin, end, !isBoundary(p.oldBounds, begin)
}

// initialBytes are the bytes that the file has of a range; the rest is zero.
func initialBytes(b *Build, addr, n uint64) []byte {
	raw := b.im.at(addr)
	return raw[:min(n, uint64(len(raw)))]
}
