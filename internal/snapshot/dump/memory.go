package dump

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

// memory is what was seen of an address space while the program ran.
type memory struct {
	maps     []procfs.Mapping
	mappings []image.Mapping // of them, in order, those that an image holds
	objects  []object
	refusals []api.Refusal
	mapped   uint64

	tracked []image.Span // mappings to which vOS notes writes

	// Pages of each mapping that the image has already when the others are to be copied.
	had [][]image.Run
}

// An object is memory that mappings share.
type object struct {
	image.Object
	device, inode uint64         // as maps has them
	mapping       procfs.Mapping // one of it
	shared        bool           // it is mapped MAP_SHARED
}

// lookAtMemory reads the mappings with their flags, and judges each. The tracker, which
// may be nil, is vOS's own.
func lookAtMemory(p *procfs.Process, t *tracker) (*memory, error) {
	const tries = 10
	for n := 1; ; n++ {
		m := &memory{}
		var err error
		if m.maps, err = p.Maps(); err != nil {
			return nil, err
		}
		flags, err := p.MappingFlags()
		if err != nil {
			return nil, err
		}
		again, err := p.Maps()
		if err != nil {
			return nil, err
		}
		if !slices.Equal(m.maps, again) {
			if n == tries {
				m.refuse(refused(codeMoving, processSubject(p.PID()), "its mappings change all the time", descriptor.TryAgain))
				return m, nil
			}
			// Programs that map much do it for a while, and then not.
			time.Sleep(time.Duration(n) * 2 * time.Millisecond)
			continue
		}
		for _, mapping := range m.maps {
			own := flags[mapping.Start]
			if noted := slices.Index(own, "uw"); noted >= 0 {
				// vOS's, or somebody else's from outside: a userfaultfd of the
				// program's own is refused among its descriptors.
				flags[mapping.Start] = slices.Delete(own, noted, noted+1)
				if t.covers(mapping.Start, mapping.End) {
					m.tracked = append(m.tracked, image.Span{Start: mapping.Start, End: mapping.End})
				}
			}
			if err := m.add(p, mapping, flags[mapping.Start]); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
}

func (m *memory) refuse(r api.Refusal) { m.refusals = append(m.refusals, r) }

// unkept are flags of smaps that speak against keeping a mapping.
var unkept = []struct {
	flag           string
	code           api.Code
	detail, remedy string
}{
	{"io", codeDevice, "it is memory of a device", "let it close the device, or end what uses it"},
	{"pf", codeDevice, "it is memory of a device", "let it close the device, or end what uses it"},
	{"gigantic", codeHuge, "it is made of huge pages of 1 GiB, which are not kept", "run it with those of 2 MiB"},
	{"pk", codeMapping, "it has a protection key (pkey_mprotect), which is not kept", noRemedy},
	{"um", codeFault, "another handles its page faults (userfaultfd)", noRemedy},
	{"ui", codeFault, "another handles its page faults (userfaultfd)", noRemedy},
}

// add judges one mapping.
func (m *memory) add(p *procfs.Process, from procfs.Mapping, flags []string) error {
	if from.Kind == procfs.KindVsyscall {
		return nil
	}
	m.mapped += from.Size()
	subject := mappingSubject(p.PID(), from.Start, from.End)
	to := image.Mapping{Start: from.Start, End: from.End, Offset: from.Offset, VMFlags: flags, Protection: uint32(from.Perms & 7),
		Flags: syscall.MAP_PRIVATE}
	if from.Perms&procfs.Shared != 0 {
		to.Flags = syscall.MAP_SHARED
	}
	if from.Kind != procfs.KindVDSO && from.Kind != procfs.KindVVar {
		for _, u := range unkept {
			if slices.Contains(flags, u.flag) {
				m.refuse(refused(u.code, subject, u.detail, u.remedy))
				return nil
			}
		}
	}
	for _, f := range []struct {
		name string
		flag uint32
	}{{"gd", syscall.MAP_GROWSDOWN}, {"nr", syscall.MAP_NORESERVE}, {"lo", syscall.MAP_LOCKED}} {
		if slices.Contains(flags, f.name) {
			to.Flags |= f.flag
		}
	}
	if slices.Contains(flags, image.HugePages) {
		if from.Kind != procfs.KindSharedAnonymous || from.Perms&procfs.Shared != 0 {
			m.refuse(refused(codeHuge, subject, "it is made of huge pages (hugetlb) of a file, or that are shared, which are not kept", "run it without"))
			return nil
		}
		to.Kind, to.Offset = image.Anonymous, 0
		m.mappings = append(m.mappings, to)
		return nil
	}
	switch from.Kind {
	case procfs.KindAnonymous:
		to.Kind = image.Anonymous
	case procfs.KindHeap, procfs.KindStack:
		to.Kind, to.Name = image.Anonymous, from.Path
	case procfs.KindNamedAnonymous:
		to.Kind, to.Name = image.Anonymous, strings.TrimSuffix(strings.TrimPrefix(from.Path, "[anon:"), "]")
	case procfs.KindVDSO, procfs.KindVVar:
		to.Kind, to.Name = image.VDSO, from.Path
	case procfs.KindFile:
		return m.addFile(p, from, to)
	case procfs.KindMemfd, procfs.KindSharedAnonymous:
		m.addShared(from, to)
		return nil
	case procfs.KindSysV:
		return m.addSegment(from, to)
	default:
		code, detail := codeMapping, "it is mapped from "+from.Path+", which is not kept"
		if strings.Contains(from.Path, "[aio]") {
			code, detail = codeAIO, "it is a context of asynchronous input and output (io_setup)"
		}
		m.refuse(refused(code, subject, detail, noRemedy))
		return nil
	}
	m.mappings = append(m.mappings, to)
	return nil
}

// addFile adds a mapping of a file with a name.
func (m *memory) addFile(p *procfs.Process, from procfs.Mapping, to image.Mapping) error {
	subject := mappingSubject(p.PID(), from.Start, from.End)
	if strings.HasPrefix(from.Path, "/[aio]") {
		m.refuse(refused(codeAIO, subject, "it is a context of asynchronous input and output (io_setup)", noRemedy))
		return nil
	}
	if from.Deleted {
		return m.addDeleted(p, from, to)
	}
	ref, err := fileRef(from.Path)
	if errors.Is(err, os.ErrNotExist) || err == nil && ref.Inode != from.Inode {
		if p.FileState(from).Change != procfs.FileSame {
			return m.addDeleted(p, from, to)
		}
	}
	if err != nil {
		return err
	}
	if info, err := os.Stat(from.Path); err == nil && info.Mode()&os.ModeDevice != 0 {
		m.refuse(refused(codeDevice, subject, "it is mapped from the device "+from.Path, "let it close the device, or end what uses it"))
		return nil
	}
	to.File = &ref
	to.Kind = image.Private
	if from.Perms&procfs.Shared != 0 {
		to.Kind = image.SharedMap
		to.OpenedFor = syscall.O_RDONLY
		if slices.Contains(to.VMFlags, "mw") { // it may be made writable
			to.OpenedFor = syscall.O_RDWR
		}
	}
	m.mappings = append(m.mappings, to)
	return nil
}

// addShared adds a mapping of memory that may have other mappings.
func (m *memory) addShared(from procfs.Mapping, to image.Mapping) {
	to.Kind = image.InObject
	device := kernel.DeviceNumber(from.DevMajor, from.DevMinor)
	var known bool
	if to.Object, known = m.object(device, from.Inode); !known {
		o := object{device: device, inode: from.Inode, mapping: from}
		o.Kind = "shared"
		if from.Kind == procfs.KindMemfd {
			o.Kind, o.Name = "memfd", strings.TrimPrefix(from.Path, "/memfd:")
		}
		to.Object = len(m.objects)
		m.objects = append(m.objects, o)
	}
	m.mappings = append(m.mappings, to)
}

// object returns the place of shared memory among the objects.
func (m *memory) object(device, inode uint64) (n int, ok bool) {
	n = slices.IndexFunc(m.objects, func(o object) bool { return o.device == device && o.inode == inode })
	return n, n >= 0
}

// Categories of pages to keep, by kind of mapping. Of anonymous memory it is not asked
// what else a page is: that takes eight times as long.
func pagesQuery(kind image.Kind, guards, tracked bool) *kernel.PageQuery {
	q := &kernel.PageQuery{Any: kernel.PagePresent | kernel.PageSwapped, Return: kernel.PageSwapped}
	if kind == image.Private {
		q.All, q.Inverted = kernel.PageFile|kernel.PagePFNZero, kernel.PageFile|kernel.PagePFNZero
	}
	if guards {
		q.Any |= kernel.PageGuard
		q.Return = kernel.PageGuard
	}
	if tracked {
		q.Return |= kernel.PageWPAllowed | kernel.PageWritten | kernel.PageSwapped
	}
	return q
}

// scan finds the pages of the mappings that an image has to hold; those that it has
// already it knows of the tracker, which may be nil.
func (m *memory) scan(pagemap *os.File, guards bool, t *tracker) error {
	var regions []kernel.PageRegion
	m.had = make([][]image.Run, len(m.mappings))
	for i := range m.mappings {
		to := &m.mappings[i]
		to.Pages, to.Guards = nil, nil
		if to.Kind == image.VDSO && to.Protection&syscall.PROT_EXEC != 0 {
			to.Pages = []image.Run{{Start: to.Start, Count: (to.End - to.Start) / image.PageSize}}
		}
		if to.Kind != image.Anonymous && to.Kind != image.Private && (to.Kind != image.InObject || to.Flags&syscall.MAP_PRIVATE == 0) {
			continue
		}
		if slices.Contains(to.VMFlags, "dp") {
			continue // the kernel may drop it at any time; kept, a program could meet its random numbers again
		}
		kind := to.Kind
		if kind == image.InObject {
			kind = image.Private
		}
		var err error
		if regions, err = kernel.AppendPages(regions[:0], pagemap, to.Start, to.End, pagesQuery(kind, guards, t != nil && kind == image.Anonymous)); err != nil {
			return err
		}
		for _, r := range regions {
			if r.Categories&kernel.PageGuard != 0 {
				to.Guards = append(to.Guards, image.Span{Start: r.Start, End: r.End})
				continue
			}
			lack := []image.Run{{Start: r.Start, Count: (r.End - r.Start) / image.PageSize}}
			if kind == image.Anonymous && t.known(r.Categories) {
				var have []image.Run
				have, lack = t.split(r.Start, r.End)
				m.had[i] = append(m.had[i], have...)
			}
			for _, l := range lack {
				if n := len(to.Pages); n > 0 && endOf(to.Pages[n-1]) == l.Start {
					to.Pages[n-1].Count += l.Count
					continue
				}
				to.Pages = append(to.Pages, l)
			}
		}
	}
	return nil
}

// join adds the pages that the image had already to those that were copied.
func (m *memory) join() {
	for i, had := range m.had {
		if len(had) == 0 {
			continue
		}
		m.mappings[i].Pages = slices.DeleteFunc(overlay(had, m.mappings[i].Pages), func(r image.Run) bool { return r.Place.Up == zeroed })
	}
}

// guardsKnown reports whether the kernel tells guard pages apart (Linux 6.15).
func guardsKnown(pagemap *os.File) bool {
	_, err := kernel.AppendPages(nil, pagemap, 0, image.PageSize, pagesQuery(image.Anonymous, true, false))
	return err == nil
}

// estimate returns how many bytes an image would hold now.
func (m *memory) estimate(p *procfs.Process) (uint64, error) {
	pagemap, err := openPagemap(p)
	if err != nil {
		return 0, err
	}
	defer pagemap.Close()
	if err := m.scan(pagemap, guardsKnown(pagemap), nil); err != nil {
		return 0, err
	}
	total := m.bytes()
	for _, o := range m.objects {
		total += o.Size
	}
	return total, nil
}

// bytes is the memory of the mappings' own pages.
func (m *memory) bytes() (total uint64) {
	for i := range m.mappings {
		for _, r := range m.mappings[i].Pages {
			total += r.Count * image.PageSize
		}
	}
	return total
}

func openPagemap(p *procfs.Process) (*os.File, error) {
	return os.Open(path.Join("/proc", fmt.Sprint(p.PID()), "pagemap"))
}

// identity returns the device and inode of a file.
func identity(info os.FileInfo) (device, inode uint64) {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Dev, s.Ino
	}
	return 0, 0
}

// dumpObject writes shared memory, but for what a parent of the image has of it. The
// buffer is of whole pages.
func dumpObject(o image.Object, file *os.File, w *image.Writer, before *earlier, buffer []byte) (image.Object, error) {
	copier := &copier{writer: w, before: before, mappings: []image.Mapping{{Kind: image.Anonymous}}}
	info, err := file.Stat()
	if err != nil {
		return o, err
	}
	o.Size, o.Mode = uint64(info.Size()), uint32(info.Mode().Perm())
	if o.Kind == "memfd" {
		if o.Seals, err = kernel.Seals(file); err != nil {
			return o, err
		}
	}
	for at := int64(0); at < info.Size(); {
		data, err := kernel.SeekData(file, at)
		if err == io.EOF {
			break
		}
		if err != nil {
			return o, err
		}
		at = data &^ (image.PageSize - 1)
		n, err := file.ReadAt(buffer[:min(int64(len(buffer)), info.Size()-at)], at)
		if err != nil && err != io.EOF || n == 0 {
			return o, fmt.Errorf("read at %d: %w", at, err)
		}
		full := (n + image.PageSize - 1) &^ (image.PageSize - 1)
		clear(buffer[n:full])
		all := job{pieces: []piece{{start: uint64(at), count: uint64(full / image.PageSize)}}}
		if err := copier.keep(&all, buffer[:full]); err != nil {
			return o, err
		}
		for _, r := range all.runs[0] {
			o.Pages = appendRun(o.Pages, r)
		}
		at += int64(full)
	}
	return o, nil
}

var zeroes [chunk]byte
