package criu

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

// What a mapping is, in CRIU's words (VMA_…).
const (
	areaRegular     = 1 << 0
	areaVDSO        = 1 << 3
	areaHeap        = 1 << 5
	areaFilePrivate = 1 << 6
	areaFileShared  = 1 << 7
	areaShared      = 1 << 8
	areaPrivate     = 1 << 9
	areaVVar        = 1 << 12
	areaMemfd       = 1 << 14
	areaGuard       = 1 << 16
)

// advices are the flags of smaps that madvise(2) sets: the numbers of the advices.
var advices = map[string]int{"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}

// memory adds the mappings of a process, and its pages.
func (x *export) memory(p *image.Process) {
	l := &p.Layout
	m := memory{
		StartCode: l.StartCode, EndCode: l.EndCode, StartData: l.StartData, EndData: l.EndData, StartStack: l.StartStack,
		StartBreak: l.StartBreak, Break: l.Break, ArgStart: l.ArgStart, ArgEnd: l.ArgEnd, EnvStart: l.EnvStart, EnvEnd: l.EnvEnd,
		Executable: x.executable(p), Dumpable: int32(p.Dumpable), NoTHP: p.NoTHP,
	}
	for i := 0; i+1 < len(l.Auxv) && l.Auxv[i] != 0; i += 2 {
		m.Auxv = append(m.Auxv, l.Auxv[i], l.Auxv[i+1])
	}
	var runs []run
	var guards []vma
	for i := range p.Mappings {
		from := &p.Mappings[i]
		to := x.vma(p, from)
		if n := len(m.Mappings); n > 0 && to.Status&areaVVar != 0 && m.Mappings[n-1].Status&areaVVar != 0 && m.Mappings[n-1].End == to.Start {
			m.Mappings[n-1].End = to.End // the kernel's data is one mapping, or several
			continue
		}
		m.Mappings = append(m.Mappings, to)
		runs = append(runs, runsOf(from.Pages)...)
		if to.Status&areaVDSO != 0 && len(from.Pages) == 0 {
			runs = append(runs, x.vdso(from)...)
		}
		for _, g := range from.Guards {
			guards = append(guards, vma{Start: g.Start, End: g.End, Status: areaGuard, Descriptor: -1})
		}
	}
	m.Mappings = append(m.Mappings, guards...)
	x.add(fmt.Sprintf("mm-%d.img", p.PID), magicMM, m)
	x.addPages(fmt.Sprintf("pagemap-%d.img", p.PID), runs)
}

// vma is one mapping.
func (x *export) vma(p *image.Process, m *image.Mapping) vma {
	to := vma{Start: m.Start, End: m.End, Offset: m.Offset, Protection: m.Protection, Flags: m.Flags, Status: areaRegular, Descriptor: -1}
	advice := uint64(0)
	for _, flag := range m.VMFlags {
		if n, ok := advices[flag]; ok {
			advice |= 1 << n
		}
	}
	if advice != 0 {
		to.Advice = &advice
	}
	switch m.Kind {
	case image.Anonymous:
		if slices.Contains(m.VMFlags, image.HugePages) {
			x.refuse(fmt.Sprintf("mapping %#x-%#x of process %d", m.Start, m.End, p.PID), "it is of huge pages (hugetlb)", noRemedy)
		}
		to.Status |= areaPrivate
		to.Flags |= syscall.MAP_ANON
		if m.Name == "[heap]" {
			to.Status |= areaHeap
		}
		to.Offset = 0
	case image.VDSO:
		to.Status |= areaPrivate
		to.Flags |= syscall.MAP_ANON
		to.Offset, to.Advice = 0, nil
		if m.Protection&syscall.PROT_EXEC != 0 {
			to.Status |= areaVDSO
		} else {
			to.Status |= areaVVar
		}
	case image.Private, image.SharedMap:
		to.Status |= areaFilePrivate
		if m.Kind == image.SharedMap {
			to.Status ^= areaFilePrivate | areaFileShared
		}
		to.ID, to.OpenedFor = uint64(x.mapped(m.File)), &m.OpenedFor
	case image.InObject:
		x.inObject(p, m, &to)
	}
	return to
}

// vdso returns the kernel's code in a mapping, which images do not hold.
func (x *export) vdso(m *image.Mapping) []run {
	if uint64(len(x.options.VDSO)) != m.End-m.Start {
		x.note("the code of the vDSO, as this machine does not run the kernel that the image was taken on (%s): crit reads the images, criu does not restore them", x.img.Machine.Kernel)
		return nil
	}
	return []run{{Run: image.Run{Start: m.Start, Count: (m.End - m.Start) / image.PageSize}, data: x.options.VDSO}}
}

// inObject says of a mapping which memory it shares.
func (x *export) inObject(p *image.Process, m *image.Mapping, to *vma) {
	o := &x.img.Objects[m.Object]
	of := uint32(areaFileShared)
	if m.Flags&syscall.MAP_PRIVATE != 0 {
		of = areaFilePrivate
	}
	switch {
	case o.Kind == "memfd":
		to.Status |= areaMemfd | of
		to.ID, to.OpenedFor = uint64(x.mappedMemfd(m.Object)), new(uint32(syscall.O_RDWR))
	case o.Kind == "file":
		to.Status |= of
		to.ID, to.OpenedFor = uint64(x.mappedObject(m.Object)), &o.Flags
	case o.Kind == "shared" && m.Flags&syscall.MAP_SHARED != 0:
		to.Status |= areaShared
		to.Flags |= syscall.MAP_ANON
		to.ID = uint64(x.object(m.Object))
	default:
		x.refuse(fmt.Sprintf("mapping %#x-%#x of process %d", m.Start, m.End, p.PID), "it is of "+o.Kind+" memory without an IPC namespace of the program's own", noRemedy)
	}
}

// object is the number of shared memory, whose pages are added once.
func (x *export) object(i int) uint32 {
	id := uint32(i) + 1
	if !x.shared[i] {
		x.shared[i] = true
		x.addPages(fmt.Sprintf("pagemap-shmem-%d.img", id), runsOf(x.img.Objects[i].Pages))
	}
	return id
}

// content is a file of the bytes of runs of pages: as they are, or as a ghost's.
type content struct {
	name  string
	runs  []run
	ghost *ghost
}

// A run is pages of the image, or data.
type run struct {
	image.Run
	data []byte
}

func runsOf(pages []image.Run) (runs []run) {
	for _, r := range pages {
		runs = append(runs, run{Run: r})
	}
	return runs
}

const pagePresent = 4 // PE_PRESENT

// addPages adds a list of pages, and the file that has them in the same order.
func (x *export) addPages(name string, runs []run) {
	x.pages++
	entries := []any{pagemapHead{Pages: x.pages}}
	for _, r := range runs {
		for start, left := r.Start, r.Count; left > 0; {
			n := min(left, math.MaxUint32)
			entries = append(entries, pagemap{Start: start, Count: uint32(n), Flags: pagePresent})
			start, left = start+n*image.PageSize, left-n
		}
	}
	x.add(name, magicPagemap, entries...)
	x.content = append(x.content, content{name: fmt.Sprintf("pages-%d.img", x.pages), runs: runs})
}

// chunkSize is how much is read at a time.
const chunkSize = 1 << 20

func (c *content) write(source Source, to *os.File) error {
	take := func(b []byte, _ uint64) error {
		_, err := to.Write(b)
		return err
	}
	if c.ghost != nil {
		head := part{magic: magicGhost, entries: []any{*c.ghost}}
		if err := head.writeTo(to); err != nil {
			return err
		}
		take = func(b []byte, start uint64) error { return c.ghost.write(to, b, start) }
	}
	buffer := make([]byte, chunkSize)
	for _, r := range c.runs {
		if err := readRun(source, r, buffer, take); err != nil {
			return err
		}
	}
	return nil
}

// write writes a part of the file, of which pages may stand over its end.
func (g *ghost) write(to io.Writer, b []byte, start uint64) error {
	if start >= g.Size {
		return nil
	}
	b = b[:min(uint64(len(b)), g.Size-start)]
	if err := writeEntry(to, chunk{Bytes: uint64(len(b)), Offset: start}); err != nil {
		return err
	}
	_, err := to.Write(b)
	return err
}

// readRun hands the pages of a run over, with where each part begins.
func readRun(source Source, r run, buffer []byte, take func(b []byte, start uint64) error) error {
	if r.data != nil {
		return take(r.data, r.Start)
	}
	for done, size := uint64(0), r.Count*image.PageSize; done < size; {
		b := buffer[:min(uint64(len(buffer)), size-done)]
		if err := source.ReadPages(image.Place{Up: r.Place.Up, Offset: r.Place.Offset + done}, b); err != nil {
			return err
		}
		if err := take(b, r.Start+done); err != nil {
			return err
		}
		done += uint64(len(b))
	}
	return nil
}
