package module

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

// A Process is a process with its modules, as they were when it was inspected.
type Process struct {
	*procfs.Process
	Name    string
	Started time.Time
	Modules []*Module // by ascending address

	vins      map[*Module]*vin.Vin // of replaced modules
	vinErrors []error              // why a vIN can't be made sense of
	leftover  []procfs.PageRange   // what an interrupted replacement or attachment left mapped

	interceptors      []*intercept.Interceptor
	interceptorErrors []error // why one can't be made sense of

	identity procfs.Auxv // of the program that was inspected
	maps     []procfs.Mapping
	memory   *procfs.Memory
	pagemap  *procfs.Pagemap
	files    *Store
	store    *Store // files if it is its own, nil where it shares it
}

// Inspect lists the modules of a process. It takes over the process: Close
// closes it, also when Inspect fails.
func Inspect(store *Store, process *procfs.Process) (_ *Process, err error) {
	p := &Process{Process: process, files: store, vins: make(map[*Module]*vin.Vin)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	stat, err := process.Stat()
	if err != nil {
		return nil, err
	}
	if err := tracee.Lifeless(process.PID(), stat); err != nil {
		return nil, err
	}
	p.Name = stat.Command
	age, err := process.Age()
	if err != nil {
		return nil, err
	}
	p.Started = time.Now().Add(-age)
	// Read first: should the process become another program meanwhile, what
	// follows is of no use, and Commit notices by this.
	if p.identity, err = process.Auxv(); err != nil {
		return nil, err
	}
	if err := tracee.Foreign(process.PID(), p.identity); err != nil {
		return nil, err
	}
	if err := p.look(process); err != nil {
		return nil, err
	}
	return p, nil
}

// Open inspects the process pid with a store of its own, which Close closes too.
func Open(pid int) (*Process, error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return nil, err
	}
	store := NewStore()
	p, err := Inspect(store, process)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	p.store = store
	return p, nil
}

// Again inspects the same process once more, with the same store. With lock it is
// held against other vos until it is closed.
func (p *Process) Again(ctx context.Context, lock bool) (*Process, error) {
	process, err := procfs.Open(p.PID())
	if err != nil {
		return nil, err
	}
	if lock {
		if err := process.Lock(ctx); err != nil {
			return nil, errors.Join(err, process.Close())
		}
	}
	return Inspect(p.files, process)
}

// Loaded returns the module that another look at the process saw, as it is now, or
// nil if the program has it no more.
func (p *Process) Loaded(seen *Module) *Module {
	for _, m := range p.Modules {
		if m.Start() == seen.Start() && m.Path == seen.Path {
			return m
		}
	}
	return nil
}

// Close lets go of the process.
func (p *Process) Close() error {
	var errs []error
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if p.memory != nil {
		errs = append(errs, p.memory.Close())
	}
	if p.pagemap != nil {
		errs = append(errs, p.pagemap.Close())
	}
	return errors.Join(append(errs, p.Process.Close())...)
}

// openMemory opens the process's memory for reading, once.
func (p *Process) openMemory() (*procfs.Memory, error) {
	if p.memory != nil {
		return p.memory, nil
	}
	var err error
	p.memory, err = p.OpenMemory()
	return p.memory, err
}

// openPagemap opens the process's page map, once.
func (p *Process) openPagemap() (*procfs.Pagemap, error) {
	if p.pagemap != nil {
		return p.pagemap, nil
	}
	var err error
	p.pagemap, err = p.OpenPagemap()
	return p.pagemap, err
}

// mappedFile is what tells apart the files that are mapped in one process.
type mappedFile struct {
	major, minor uint32
	inode        uint64
	path         string
}

func fileOf(m *procfs.Mapping) mappedFile {
	return mappedFile{m.DevMajor, m.DevMinor, m.Inode, m.Path}
}

// find makes a module of every file with executable mappings, and of the vDSO.
func (p *Process) find(v view) error {
	executable, inParts := make(map[mappedFile]bool), make(map[mappedFile]bool)
	for i := range p.maps {
		switch m := &p.maps[i]; {
		case m.Inode == 0 || m.Perms&procfs.Shared != 0:
		case m.Perms&procfs.Exec != 0:
			executable[fileOf(m)] = true
		default:
			inParts[fileOf(m)] = true
		}
	}
	type found struct {
		file  *storedFile
		err   error
		state procfs.FileState
		used  bool
	}
	known := make(map[mappedFile]*found)
	closed := false
	for i := range p.maps {
		m := &p.maps[i]
		if m.Kind == procfs.KindVDSO {
			if err := p.addVDSO(m); err != nil {
				return err
			}
			continue
		}
		if m.Inode == 0 || m.Perms&procfs.Shared != 0 || !executable[fileOf(m)] || isVIN(m) || isInterceptor(m) || isMenu(m) {
			continue
		}
		f := known[fileOf(m)]
		if f == nil {
			f = &found{state: p.FileState(*m)}
			f.file, f.err = p.files.open(p.Process, *m)
			known[fileOf(m)] = f
		}
		if errors.Is(f.err, procfs.ErrUnmapped) {
			closed = true // by the program, or all of it by an execve
			continue
		}
		object, err := (*dso.Object)(nil), f.err
		if err == nil {
			object, err = f.file.read()
		}
		if err != nil {
			// Code that was made at run time, in /dev/zero or a memfd, is no
			// module; one that was spoiled is mapped in parts, as loaders do it.
			if !f.used && (inParts[fileOf(m)] || errors.Is(err, fs.ErrPermission)) {
				p.addUnread(m, f.state, err)
				f.used = true
			}
			continue
		}
		if p.addMapped(m, object, f.state) {
			f.used = true
		}
	}
	if closed {
		if err := p.checkSame(v); err != nil {
			return err
		}
	}
	slices.SortFunc(p.Modules, func(a, b *Module) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	p.nameKinds()
	return nil
}

// addMapped adds the module whose first segment is mapped at m, if all its
// segments are mapped behind it as they should be. A file may be mapped for
// other reasons than to be run.
func (p *Process) addMapped(m *procfs.Mapping, o *dso.Object, state procfs.FileState) bool {
	mappings := o.Mappings()
	if len(mappings) == 0 || m.Offset != mappings[0].Offset || p.withinModule(m) {
		return false
	}
	bias := m.Start - mappings[0].Addr
	if o.Type == elf.ET_EXEC && bias != 0 {
		return false
	}
	start, end := o.Span()
	mod := &Module{
		Name: name(o, m.Path), Path: m.Path, Bias: bias, Object: o, File: state,
		mapping: *m, start: start + bias, end: end + bias,
	}
	for _, segment := range mappings {
		parts := p.parts(m, segment, bias)
		if segment.Segment.Flags&elf.PF_X != 0 && len(parts) == 0 {
			return false
		}
		if segment.Segment.Flags&elf.PF_W == 0 {
			for _, r := range parts {
				mod.text = append(mod.text, region{r.Start, r.End, segment.Segment})
			}
		}
	}
	p.Modules = append(p.Modules, mod)
	return true
}

// withinModule reports whether a mapping lies within a module of the same file that
// was found before: of a small one whose segments are 2 MiB apart, the data are
// mapped from the file's first page, too.
func (p *Process) withinModule(m *procfs.Mapping) bool {
	return slices.ContainsFunc(p.Modules, func(known *Module) bool {
		return known.start <= m.Start && m.Start < known.end && fileOf(&known.mapping) == fileOf(m)
	})
}

// parts returns where a segment is still mapped from the file of first.
func (p *Process) parts(first *procfs.Mapping, segment dso.Mapping, bias uint64) []procfs.PageRange {
	start, end := segment.Addr+bias, segment.Addr+bias+segment.Size
	var parts []procfs.PageRange
	i, _ := slices.BinarySearchFunc(p.maps, start, func(m procfs.Mapping, at uint64) int {
		if m.End <= at {
			return -1
		}
		return 1
	})
	for ; i < len(p.maps) && p.maps[i].Start < end; i++ {
		m := &p.maps[i]
		from, to := max(start, m.Start), min(end, m.End)
		if fileOf(m) != fileOf(first) || m.Perms&procfs.Shared != 0 || m.Offset+(from-m.Start) != segment.Offset+(from-start) {
			continue
		}
		if n := len(parts); n > 0 && parts[n-1].End == from {
			parts[n-1].End = to
		} else {
			parts = append(parts, procfs.PageRange{Start: from, End: to})
		}
	}
	return parts
}

// addUnread adds a module whose file can't be read as what is mapped.
func (p *Process) addUnread(m *procfs.Mapping, state procfs.FileState, err error) {
	mod := &Module{Name: path.Base(m.Path), Path: m.Path, Bias: m.Start, File: state, mapping: *m, start: m.Start, end: m.End}
	for i := range p.maps {
		if fileOf(&p.maps[i]) == fileOf(m) {
			mod.end = max(mod.end, p.maps[i].End)
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		mod.obstacle(codeUnreadable, err.Error(), "run vos as root")
	case errors.Is(err, dso.ErrTruncated):
		mod.obstacle(codeTruncated, err.Error(), restart)
	default:
		mod.obstacle(codeNotELF, err.Error(), restart)
	}
	p.Modules = append(p.Modules, mod)
}

// nameKinds finds out which module is the executable and which the loader.
func (p *Process) nameKinds() {
	entry, base := p.identity[procfs.AuxEntry], p.identity[procfs.AuxBase]
	for _, m := range p.Modules {
		switch {
		case m.Object == nil || m.Kind == VDSO:
		case m.Bias+m.Object.Entry == entry && m.Contains(entry):
			m.Kind = Executable
		case base != 0 && m.Contains(base), isLoader(m.Object):
			m.Kind = Loader
		}
	}
}

// moduleAt returns the module that an address lies in, or nil.
func (p *Process) moduleAt(address uint64) *Module {
	i, found := slices.BinarySearchFunc(p.Modules, address, func(m *Module, at uint64) int {
		switch {
		case m.end <= at:
			return -1
		case m.start > at:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return p.Modules[i]
}

// addVDSO adds the module that the kernel maps into every process.
func (p *Process) addVDSO(m *procfs.Mapping) error {
	memory, err := p.openMemory()
	if errors.Is(err, fs.ErrPermission) {
		return nil // all that may be said of it is in its memory
	}
	if err != nil {
		return err
	}
	mod := &Module{
		Path: "[vdso]", Kind: VDSO, File: procfs.FileState{Change: procfs.FileNone}, mapping: *m, start: m.Start, end: m.End,
	}
	o, err := dso.ReadMemory(memory, m.Start)
	if err != nil {
		mod.Name = "linux-vdso.so.1"
		mod.obstacle(codeNotELF, fmt.Sprintf("its headers in memory: %v", err), restart)
	} else {
		mod.Object, mod.Name, mod.Bias = o, name(o, "[vdso]"), o.Bias()
		mod.text = []region{{m.Start, m.End, o.Segments[0]}}
	}
	p.Modules = append(p.Modules, mod)
	return nil
}
