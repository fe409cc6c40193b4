package restore

import (
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

func TestHugePages(t *testing.T) {
	const size = image.HugePage
	mapping := func(pages uint64, flags uint32, runs ...image.Run) image.Mapping {
		return image.Mapping{Start: 8 * size, End: (8 + pages) * size, Kind: image.Anonymous, Flags: flags, VMFlags: []string{"rd", image.HugePages}, Pages: runs}
	}
	at := func(offset, count uint64) image.Run { return image.Run{Start: 8*size + offset, Count: count} }
	img := &image.Image{Processes: []image.Process{{Mappings: []image.Mapping{mapping(5, 0, at(0, 1))}}, {}}}
	for want, m := range map[uint64]image.Mapping{
		5: {Start: 0, End: 1 << 40},
		9: mapping(4, 0),
		6: mapping(4, mapNoReserve, at(0, 1), at(pageSize*3, 2), at(size-pageSize, 1)),
		7: mapping(4, mapNoReserve, at(size-pageSize, 2)),
		8: mapping(4, mapNoReserve, at(0, 1), at(size+pageSize, 512)),
	} {
		img.Processes[1].Mappings = []image.Mapping{m}
		if got := hugePages(img); got != want {
			t.Errorf("%d huge pages, want %d: %+v", got, want, m)
		}
	}
	img.Processes[1].Mappings = []image.Mapping{mapping(1<<40, 0)}
	if refusals, err := refuseHuge(img); err != nil || len(refusals) != 1 || refusals[0].Code != codeHuge {
		t.Errorf("refused: %v, %v", refusals, err)
	}
}
