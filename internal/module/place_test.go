package module

import (
	"testing"

	"github.com/virtualizing-os/vos/internal/procfs"
)

func TestFindRoom(t *testing.T) {
	const (
		page = procfs.PageSize
		lib  = 0x7f00_0000_0000
		size = 0x20_000
	)
	mapping := func(start, end uint64, kind procfs.Kind) procfs.Mapping {
		return procfs.Mapping{Start: start, End: end, Kind: kind}
	}
	module := mapping(lib, lib+0x30_000, procfs.KindFile)
	for _, test := range []struct {
		name string
		maps []procfs.Mapping
		want uint64 // 0: there is none
	}{
		{"right below", []procfs.Mapping{mapping(0x400000, 0x500000, procfs.KindFile), module}, lib - page - size},
		{"below the neighbour below", []procfs.Mapping{mapping(0x400000, 0x500000, procfs.KindFile), mapping(lib-0x1000, lib, procfs.KindFile), module}, lib - 0x1000 - page - size},
		{"in a gap that is just large enough", []procfs.Mapping{mapping(lib-1<<32, lib-size-2*page, procfs.KindAnonymous), module, mapping(lib+0x30_000, lib+1<<32, procfs.KindAnonymous)}, lib - page - size},
		{"not in one that is a byte too small, but above", []procfs.Mapping{mapping(lib-1<<32, lib-size-page, procfs.KindAnonymous), module}, 0},
		{"above where there is nothing below", []procfs.Mapping{mapping(lib-1<<32, lib, procfs.KindAnonymous), module, mapping(lib+0x100_000, lib+0x200_000, procfs.KindFile)}, lib + 0x30_000 + page},
		{"not below a stack, which grows", []procfs.Mapping{mapping(lib-1<<32, lib, procfs.KindAnonymous), module, mapping(lib+0x100_000, lib+0x200_000, procfs.KindStack)}, 0},
		{"not above the heap, which grows", []procfs.Mapping{mapping(lib-1<<32, lib, procfs.KindAnonymous), module, mapping(lib+0x30_000, lib+0x40_000, procfs.KindHeap), mapping(lib+0x100_000, lib+0x200_000, procfs.KindFile)}, 0},
		{"nothing within 2 GiB", []procfs.Mapping{mapping(lib-1<<32, lib, procfs.KindAnonymous), module, mapping(lib+0x30_000, lib+1<<32, procfs.KindAnonymous), mapping(lib+1<<33, lib+1<<33+page, procfs.KindFile)}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			at, ok := findRoom(test.maps, module.Start, module.End, size)
			if ok != (test.want != 0) || at != test.want {
				t.Errorf("%#x, %v, not %#x", at, ok, test.want)
			}
		})
	}
}
