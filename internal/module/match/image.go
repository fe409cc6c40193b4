package match

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/virtualizing-os/vos/internal/dso"
)

var le = binary.LittleEndian

// A Region says what the loader makes of an address: it decides what a
// reference to it means.
type Region uint8

// The regions. Relro is writable while the loader relocates and constant
// afterwards; Slot is what the loader fills in for imports and thread-local
// storage (.got, .got.plt) and its own tables (.dynamic).
const (
	Outside Region = iota
	Text
	Const
	Relro
	Data
	Slot
	TLS
)

var regionNames = [...]string{"outside", "text", "const", "relro", "data", "slot", "tls"}

func (r Region) String() string { return regionNames[r] }

// A segment is one PT_LOAD with its bytes of the file.
type segment struct {
	dso.Segment
	bytes []byte
}

// A place is a range of addresses of one region.
type place struct {
	dso.Range
	region Region
	name   string // of the section
}

// An image is one build's bytes and what they are for.
type image struct {
	segments []segment
	places   []place // ascending, not overlapping
}

// maxImage bounds what is read of one object: the largest libraries of a
// distribution have 150 MB.
const maxImage = 512 << 20

func readImage(o *dso.Object) (*image, error) {
	im := &image{}
	total := uint64(0)
	for _, s := range o.Segments {
		if s.Type != elf.PT_LOAD || s.Memsz == 0 {
			continue
		}
		if total += s.Filesz; total > maxImage {
			return nil, fmt.Errorf("read segment %d: %w", s.Index, dso.ErrLimit)
		}
		raw, err := o.Bytes(s.Vaddr, s.Filesz)
		if err != nil {
			return nil, err
		}
		im.segments = append(im.segments, segment{s, raw})
	}
	im.classify(o)
	return im, nil
}

// classify lays out the places: sections where there are headers, otherwise
// what the segments and the dynamic section tell.
func (im *image) classify(o *dso.Object) {
	sections, _ := o.Sections()
	for _, s := range sections {
		tbss := s.Flags&elf.SHF_TLS != 0 && s.Type == elf.SHT_NOBITS
		if s.Flags&elf.SHF_ALLOC == 0 || s.Size == 0 || tbss || s.Addr+s.Size < s.Addr {
			continue
		}
		seg := im.segment(s.Addr)
		if seg == nil || s.Size > seg.Memsz-(s.Addr-seg.Vaddr) {
			continue
		}
		p := place{dso.Range{Addr: s.Addr, Size: s.Size}, im.regionOf(o, s.Addr), s.Name}
		switch {
		case loaderSection(s.Name):
			p.region = Slot
		case s.Flags&elf.SHF_TLS != 0:
			p.region = TLS
		}
		im.places = append(im.places, p)
	}
	if len(im.places) == 0 {
		im.classifySegments(o)
	}
	slices.SortStableFunc(im.places, func(a, b place) int { return cmp.Compare(a.Addr, b.Addr) })
	// Headers are not trusted: what overlaps is cut to where the next begins.
	for i := 0; i+1 < len(im.places); i++ {
		im.places[i].Size = min(im.places[i].Size, im.places[i+1].Addr-im.places[i].Addr)
	}
	im.places = slices.DeleteFunc(im.places, func(p place) bool { return p.Size == 0 })
}

// loaderSection tells the sections that the loader owns, and init_array and
// fini_array, which nobody but it reads.
func loaderSection(name string) bool {
	switch name {
	case ".got", ".got.plt", ".dynamic", ".init_array", ".fini_array", ".preinit_array":
		return true
	}
	return false
}

// classifySegments derives places where there are no section headers. Slots are
// then known by their relocations only.
func (im *image) classifySegments(o *dso.Object) {
	for _, s := range im.segments {
		cuts := []uint64{s.Vaddr, s.Vaddr + s.Filesz, s.Vaddr + s.Memsz}
		for _, r := range []dso.Range{o.RELRO, dynamicRange(o)} {
			for _, a := range []uint64{r.Addr, r.End()} {
				if a > s.Vaddr && a < s.Vaddr+s.Memsz {
					cuts = append(cuts, a)
				}
			}
		}
		slices.Sort(cuts)
		for i := 0; i+1 < len(cuts); i++ {
			at, end := cuts[i], cuts[i+1]
			if at == end {
				continue
			}
			p := place{dso.Range{Addr: at, Size: end - at}, im.regionOf(o, at), ""}
			p.name = fmt.Sprintf("%s %d", p.region, i)
			if dynamicRange(o).Contains(at) {
				p.region = Slot
			}
			im.places = append(im.places, p)
		}
	}
}

func dynamicRange(o *dso.Object) dso.Range {
	for _, s := range o.Segments {
		if s.Type == elf.PT_DYNAMIC {
			return s.Range()
		}
	}
	return dso.Range{}
}

// regionOf follows from the segment's permissions and PT_GNU_RELRO alone.
func (im *image) regionOf(o *dso.Object, addr uint64) Region {
	s := im.segment(addr)
	switch {
	case s == nil:
		return Outside
	case s.Flags&elf.PF_X != 0:
		return Text
	case s.Flags&elf.PF_W == 0:
		return Const
	case o.RELRO.Contains(addr):
		return Relro
	}
	return Data
}

func (im *image) segment(addr uint64) *segment {
	for i := range im.segments {
		if s := &im.segments[i]; addr-s.Vaddr < s.Memsz && addr >= s.Vaddr {
			return s
		}
	}
	return nil
}

// at returns the file's bytes from an address to the end of its segment's; nil
// in .bss and outside.
func (im *image) at(addr uint64) []byte {
	s := im.segment(addr)
	if s == nil || addr-s.Vaddr >= uint64(len(s.bytes)) {
		return nil
	}
	return s.bytes[addr-s.Vaddr:]
}

// placeAt returns the place that holds an address, or nil. The end of a
// section counts to the section where nothing else begins: code has pointers
// one past the last element.
func (im *image) placeAt(addr uint64) *place {
	i := sort.Search(len(im.places), func(i int) bool { return im.places[i].Addr > addr }) - 1
	if i < 0 {
		return nil
	}
	if p := &im.places[i]; addr-p.Addr <= p.Size {
		return p
	}
	return nil
}

// region returns what an address is for.
func (im *image) region(o *dso.Object, addr uint64) Region {
	if p := im.placeAt(addr); p != nil {
		return p.region
	}
	return im.regionOf(o, addr)
}

// isPLT tells the sections of stubs.
func isPLT(name string) bool { return name == ".plt" || strings.HasPrefix(name, ".plt.") }
