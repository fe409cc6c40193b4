package module

import (
	"github.com/virtualizing-os/vos/internal/procfs"
)

// near is how far what vOS maps may be from the module that it belongs to, so
// that every displacement between the two fits into 4 bytes.
const near = 1<<31 - 1<<20

// findRoom returns a free range of size bytes (whole pages) of which every
// address is near every address of [start, end). It is the nearest one below the
// range if there is one, otherwise above: below the libraries is where the kernel
// puts new mappings itself, away from the heap, which grows up.
func findRoom(maps []procfs.Mapping, start, end, size uint64) (uint64, bool) {
	const (
		guard  = procfs.PageSize // at both sides
		lowest = 1 << 20
	)
	below, above := uint64(0), uint64(0)
	from := uint64(lowest)
	for i := range maps {
		to := maps[i].Start
		grows := maps[i].Kind == procfs.KindStack // downwards
		heap := i > 0 && maps[i-1].Kind == procfs.KindHeap
		if to >= from && to-from >= size+2*guard && !grows {
			if to <= start {
				if at := to - guard - size; end-at <= near {
					below = at
				}
			} else if at := from + guard; !heap && from >= end && above == 0 && at+size-start <= near {
				above = at
			}
		}
		from = max(from, maps[i].End)
	}
	if below != 0 {
		return below, true
	}
	return above, above != 0
}
