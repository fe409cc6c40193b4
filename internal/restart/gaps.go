package restart

import "github.com/virtualizing-os/vos/internal/procfs"

// gaps are unmapped addresses, ascending.
type gaps struct{ free []procfs.PageRange }

// apart is left free around what is put into a gap: mappings grow, and those that touch
// become one.
const apart = 1 << 20

// newGaps finds the gaps between mappings.
func newGaps(maps []procfs.Mapping) *gaps {
	const lowest = 1 << 32 // below it programs put what must be there
	g := &gaps{}
	last := uint64(lowest)
	for i := range maps {
		if maps[i].Start > last {
			g.free = append(g.free, procfs.PageRange{Start: last, End: min(maps[i].Start, addressLimit)})
		}
		last = max(last, maps[i].End)
	}
	if last < addressLimit {
		g.free = append(g.free, procfs.PageRange{Start: last, End: addressLimit})
	}
	return g
}

// take takes a place of a size from the largest gap, from its middle on: both ends grow.
// It is offset from a multiple of hugePage by so much.
func (g *gaps) take(size, offset uint64) (at uint64, ok bool) {
	largest := -1
	for i, f := range g.free {
		if largest < 0 || f.End-f.Start > g.free[largest].End-g.free[largest].Start {
			largest = i
		}
	}
	if largest < 0 {
		return 0, false
	}
	f := g.free[largest]
	at = (f.Start+(f.End-f.Start)/2)&^(hugePage-1) + offset
	if at < f.Start+apart || at+size+apart+stackRoom > f.End || at+size < at {
		return 0, false
	}
	g.free[largest].Start = at + size + apart
	g.free = append(g.free, procfs.PageRange{Start: f.Start, End: at - apart})
	return at, true
}

// stackRoom is how far a mapping above may still grow down.
const stackRoom = 64 << 20
