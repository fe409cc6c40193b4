package restore

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Protections, flags and advice that package syscall does not name.
const (
	mapGrowsDown = 0x100
	mapNoReserve = 0x4000
	mapHuge      = 0x40000
	mapHuge2MiB  = 21 << 26
	mapDroppable = 0x8 // a type, beside MAP_PRIVATE and MAP_SHARED

	adviseMergeable     = 12
	adviseHugePages     = 14
	adviseNoHugePages   = 15
	adviseDontDump      = 16
	adviseWipeOnFork    = 18
	advisePopulateWrite = 23
	adviseGuard         = 102

	lockOnFault = 1

	prctlSetVMA     = 0x53564d41
	prctlAnonName   = 0
	archMapVDSO64   = 0x2003
	prctlSetTHP     = 41
	populateAtLeast = 16 // pages
)

// flagsByName tells what smaps' VmFlags take to be set again; those that follow from
// the mapping itself take nothing.
var flagsByName = map[string]struct {
	advice uint64
	plain  bool
}{
	"rd": {plain: true}, "wr": {plain: true}, "ex": {plain: true}, "sh": {plain: true},
	"mr": {plain: true}, "mw": {plain: true}, "me": {plain: true}, "ms": {plain: true},
	"gd": {plain: true}, "ac": {plain: true}, "nr": {plain: true}, "sd": {plain: true},
	"de": {plain: true}, "dp": {plain: true}, "lo": {plain: true}, "lf": {plain: true}, "sl": {plain: true},
	image.HugePages: {plain: true},
	"sr":            {advice: syscall.MADV_SEQUENTIAL}, "rr": {advice: syscall.MADV_RANDOM}, "dc": {advice: syscall.MADV_DONTFORK},
	"dd": {advice: adviseDontDump}, "wf": {advice: adviseWipeOnFork},
	"hg": {advice: adviseHugePages}, "nh": {advice: adviseNoHugePages}, "mg": {advice: adviseMergeable},
}

// refuseMappings returns what can't be mapped again.
func refuseMappings(p *image.Process, objects []image.Object) (refusals []api.Refusal) {
	last := uint64(0)
	for i := range p.Mappings {
		m := &p.Mappings[i]
		name := fmt.Sprintf("mapping %#x-%#x", m.Start, m.End)
		refuse := func(detail string) { refusals = append(refusals, notRestorable(name, detail)) }
		if m.Start < last || m.Start >= m.End || (m.Start|m.End)%pageSize != 0 || m.End > addressLimit {
			refuse("the image has it at a place where no mapping can be")
			continue
		}
		last = m.End
		for _, run := range m.Pages {
			if run.Start < m.Start || run.Start%pageSize != 0 || run.Count > (m.End-run.Start)/pageSize {
				refuse(fmt.Sprintf("the image has pages of it at %#x", run.Start))
				break
			}
		}
		switch m.Kind {
		case image.Anonymous, image.VDSO:
		case image.Private, image.SharedMap:
			if m.File == nil {
				refuse("the image does not say which file it is of")
			}
			if m.Kind == image.SharedMap && len(m.Pages) > 0 {
				refuse("the image has pages of it, which are its file's")
			}
		case image.InObject:
			switch {
			case m.Object < 0 || m.Object >= len(objects):
				refuse("the image does not have the memory that it shares")
			case objects[m.Object].Kind == objectSysV && (m.Flags&syscall.MAP_PRIVATE != 0 ||
				m.Offset+(m.End-m.Start) > (objects[m.Object].Size+pageSize-1)&^(pageSize-1)):
				refuse("it is no part of the segment that the image has of it")
			case len(m.Pages) > 0 && m.Flags&syscall.MAP_PRIVATE == 0:
				refuse("the image has pages of it, which are those of the memory that it shares")
			}
		default:
			refuse(fmt.Sprintf("of a kind %q", m.Kind))
		}
		if slices.Contains(m.VMFlags, image.HugePages) && (m.Kind != image.Anonymous || (m.Start|m.End)%image.HugePage != 0) {
			refuse("it can't be of huge pages")
		}
		for _, flag := range m.VMFlags {
			if _, known := flagsByName[flag]; !known && m.Kind != image.VDSO {
				refuse(fmt.Sprintf("it has the flag %q of VmFlags", flag))
			}
		}
	}
	return refusals
}

// While its pages are written a private mapping must be writable.
func filledWith(m *image.Mapping) uint64 {
	if len(m.Pages) > 0 || m.Kind != image.SharedMap && m.Kind != image.InObject && slices.Contains(m.VMFlags, "ac") {
		return uint64(m.Protection) | syscall.PROT_READ | syscall.PROT_WRITE
	}
	return uint64(m.Protection)
}

// mapAll makes the mappings. files are the descriptors, in the process, of what needs
// lists, and objects those of the image's objects, of.
func (p *process) mapAll(mappings []image.Mapping, list []need, files, objects []uint64, of []image.Object) error {
	b := p.batch()
	for i := range mappings {
		m := &mappings[i]
		flags := uint64(m.Flags)&(mapGrowsDown|mapNoReserve) | mapFixedNoReplace
		file, offset := noFile, m.Offset
		switch m.Kind {
		case image.VDSO:
			continue
		case image.Anonymous:
			flags |= syscall.MAP_PRIVATE | syscall.MAP_ANONYMOUS
			if slices.Contains(m.VMFlags, "dp") {
				flags = flags&^syscall.MAP_PRIVATE | mapDroppable
			}
			if slices.Contains(m.VMFlags, image.HugePages) {
				flags |= mapHuge | mapHuge2MiB
			}
			offset = 0
		case image.Private:
			flags |= syscall.MAP_PRIVATE
			file = files[find(list, m)]
		case image.SharedMap:
			flags |= syscall.MAP_SHARED
			file = files[find(list, m)]
		case image.InObject:
			flags |= syscall.MAP_SHARED
			if m.Flags&syscall.MAP_PRIVATE != 0 {
				flags = flags&^syscall.MAP_SHARED | syscall.MAP_PRIVATE
			}
			file = objects[m.Object]
		}
		size := m.End - m.Start
		if m.Kind == image.InObject && of[m.Object].Kind == objectSysV {
			gap, err := p.room(mappings, (of[m.Object].Size+pageSize-1)&^(pageSize-1))
			if err != nil {
				return err
			}
			p.attachSegment(b, m, &of[m.Object], gap)
		} else {
			b.addAt("map memory at", m.Start, syscall.SYS_MMAP, m.Start, size, filledWith(m), flags, file, offset)
		}
		for _, flag := range m.VMFlags {
			if advice := flagsByName[flag].advice; advice != 0 {
				b.addAt("advise ("+flag+") about memory at", m.Start, syscall.SYS_MADVISE, m.Start, size, advice)
			}
		}
	}
	_, err := b.run()
	return err
}

// finishMappings gives the mappings, whose pages are written, what else they had.
func (p *process) finishMappings(mappings []image.Mapping) error {
	b := p.batch()
	for i := range mappings {
		m := &mappings[i]
		if m.Kind == image.VDSO {
			continue
		}
		size := m.End - m.Start
		for _, g := range m.Guards {
			b.addAt("put guard pages at", g.Start, syscall.SYS_MADVISE, g.Start, g.End-g.Start, adviseGuard)
		}
		if filledWith(m) != uint64(m.Protection) {
			b.addAt("protect memory at", m.Start, syscall.SYS_MPROTECT, m.Start, size, uint64(m.Protection))
		}
		if slices.Contains(m.VMFlags, "lo") {
			how := uint64(0)
			if slices.Contains(m.VMFlags, "lf") {
				how = lockOnFault
			}
			if m.Protection&syscall.PROT_READ != 0 {
				b.addAt("lock memory at", m.Start, sysMlock2, m.Start, size, how)
			} else {
				b.try(sysMlock2, m.Start, size, how) // ENOMEM, as nothing can be brought in; it is locked
			}
		}
		if slices.Contains(m.VMFlags, "sl") {
			b.addAt("seal memory at", m.Start, sysMseal, m.Start, size, 0)
		}
	}
	_, err := b.run()
	return err
}

// nameMappings gives anonymous memory its names, and reports whether the kernel has
// them (CONFIG_ANON_VMA_NAME).
func (p *process) nameMappings(mappings []image.Mapping) (named bool, err error) {
	b := p.batch()
	for i := range mappings {
		m := &mappings[i]
		if m.Kind != image.Anonymous || m.Name == "" || strings.HasPrefix(m.Name, "[") {
			continue
		}
		name, err := b.place(append([]byte(m.Name), 0))
		if err != nil {
			return false, err
		}
		b.addAt("name memory at", m.Start, syscall.SYS_PRCTL, prctlSetVMA, prctlAnonName, m.Start, m.End-m.Start, name)
	}
	_, err = b.run()
	if errors.Is(err, syscall.EINVAL) {
		return false, nil
	}
	return true, err
}

// checkMappings compares what is mapped with what was to be.
func (p *process) checkMappings(mappings []image.Mapping) (err error) {
	held, err := procfs.Open(p.pid)
	if err != nil {
		return err
	}
	defer held.Close()
	found, err := held.Maps()
	if err != nil {
		return err
	}
	var want, got []extent
	for i := range mappings {
		m := &mappings[i]
		want = appendExtent(want, extent{m.Start, m.End, m.Protection & 7})
	}
	g := &p.main.arena
	for i := range found {
		m := &found[i]
		if m.Kind == procfs.KindVsyscall || m.Start >= g.start && m.End <= g.end {
			continue
		}
		got = appendExtent(got, extent{m.Start, m.End, uint32(m.Perms &^ procfs.Shared)})
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			return fmt.Errorf("build process %d: %v is mapped, which is not in the image", p.pid, got[i])
		case i >= len(got):
			return fmt.Errorf("build process %d: %v of the image is not mapped", p.pid, want[i])
		case want[i] != got[i]:
			return fmt.Errorf("build process %d: %v is mapped, where the image has %v", p.pid, got[i], want[i])
		}
	}
	return nil
}

// An extent is addresses of one protection.
type extent struct {
	start, end uint64
	protection uint32
}

func (e extent) String() string {
	return fmt.Sprintf("%#x-%#x (protection %d)", e.start, e.end, e.protection)
}

func appendExtent(list []extent, e extent) []extent {
	if n := len(list); n > 0 && list[n-1].end == e.start && list[n-1].protection == e.protection {
		list[n-1].end = e.end
		return list
	}
	return append(list, e)
}

// pull lets the process take copies of vOS's own open files, and returns their numbers.
func (p *process) pull(files []*os.File) ([]uint64, error) {
	b := p.batch()
	b.add("open the process of vos", sysPidfdOpen, ownPID(), 0)
	opened, err := b.run()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b.add("take over the descriptor of "+f.Name(), sysPidfdGetfd, opened[0], uint64(f.Fd()), 0)
	}
	b.add("close the process of vos", syscall.SYS_CLOSE, opened[0])
	numbers, err := b.run()
	if err != nil {
		return nil, err
	}
	return numbers[:len(files)], nil
}
