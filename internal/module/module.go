package module

import (
	"debug/elf"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Kind is what a module is to its process.
type Kind uint8

// The kinds of modules.
const (
	Library Kind = iota
	Executable
	Loader // ld.so
	VDSO
)

func (k Kind) String() string {
	return [...]string{"library", "executable", "loader", "vdso"}[k]
}

// A Module is an ELF object mapped in a process.
type Module struct {
	Name string // soname, or the file's name where it has none
	Path string // as the process sees it; "[vdso]" of the vDSO
	Kind Kind
	Bias uint64 // process address minus object address

	// Object is the module as its file has it; nil where the file can't be
	// read as what is mapped, and Obstacles say why.
	Object *dso.Object
	File   procfs.FileState

	// Opened tells that it was not loaded at the start, nor has to stay: the program
	// opened it by dlopen and may close it at any time.
	Opened bool

	// Generation is the number of the build that calls of the module reach: 0 is
	// the one that the program loaded. Of a staged module it is its own.
	Generation int

	// Obstacles are why the module can be neither verified nor refreshed.
	Obstacles []api.Refusal

	startup bool           // loaded at the start: the whole program sees its names
	mapping procfs.Mapping // its first
	start   uint64         // of its mappings
	end     uint64
	text    []region // constant segments, as they are mapped
	origin  *Module  // that a staged module replaces
}

// A region is a part of a constant segment that is still the file's mapping.
type region struct {
	start, end uint64 // process addresses, whole pages
	segment    dso.Segment
}

// Outdated reports whether the file at the module's path is another one now.
func (m *Module) Outdated() bool {
	return m.Kind != VDSO && (m.File.Change == procfs.FileReplaced || m.File.Change == procfs.FileDeleted)
}

// BuildID returns the build-id that the file has, "" where it has none.
func (m *Module) BuildID() string {
	if m.Object == nil {
		return ""
	}
	return m.Object.BuildID
}

// Contains reports whether an address lies within the module's mappings.
func (m *Module) Contains(address uint64) bool { return address >= m.start && address < m.end }

// obstacle adds a refusal about the module.
func (m *Module) obstacle(code api.Code, detail, remedy string) {
	m.Obstacles = append(m.Obstacles, api.Refusal{Code: code, Subject: m.Name, Detail: detail, Remedy: remedy})
}

const (
	codeUnreadable   api.Code = "file_unreadable"
	codeNotELF       api.Code = "not_elf"
	codeTruncated    api.Code = "file_truncated"
	codeModified     api.Code = "file_modified"
	codeBuildID      api.Code = "build_id_differs"
	codeTextrel      api.Code = "textrel"
	codeTextRemapped api.Code = "text_remapped"
	codeUnmapped     api.Code = "module_unmapped"
	codePath         api.Code = "path_unknown"
	codeNoFunction   api.Code = "no_function"

	// Of what is left unchecked.
	codeRELROWritable api.Code = "relro_writable"
	codeLoading       api.Code = "being_loaded"
)

const restart = "restart the program"

// check finds the obstacles that the file and the mappings show.
func (m *Module) check(started time.Time) {
	if m.Object == nil || m.Kind == VDSO {
		return
	}
	last := m.Object.Mappings()
	if n := len(last); n > 0 && m.File.Size > 0 {
		if end := int64(last[n-1].Offset + last[n-1].Exact); pageUp(m.File.Size) < pageUp(end) {
			m.obstacle(codeTruncated, fmt.Sprintf("%s has %d bytes, %d of them are mapped", m.Path, m.File.Size, end), restart)
		}
	}
	// The kernel tells a process's start to a hundredth of a second.
	if !m.Staged() && m.File.Modified.After(started.Add(20*time.Millisecond)) {
		m.obstacle(codeModified, fmt.Sprintf("%s was written at %s, after the program was started: what was loaded is not known",
			m.Path, m.File.Modified.Format(time.DateTime)), restart)
	}
	var mapped, constant uint64
	for _, r := range m.text {
		mapped += r.end - r.start
	}
	for _, s := range m.Object.Mappings() {
		if s.Segment.Flags&elf.PF_W == 0 {
			constant += s.Size
		}
	}
	if mapped < constant {
		m.obstacle(codeTextRemapped, fmt.Sprintf("%d KiB of its code and constants are no longer mapped from the file: the program has replaced them",
			(constant-mapped)>>10), "none is known")
	}
}

func pageUp(n int64) int64 { return (n + procfs.PageSize - 1) &^ (procfs.PageSize - 1) }

// name returns what a module is called.
func name(o *dso.Object, file string) string {
	if o != nil && o.Soname != "" {
		return o.Soname
	}
	return path.Base(file)
}

// isLoader reports whether an object is the dynamic loader of glibc or musl.
func isLoader(o *dso.Object) bool {
	return strings.HasPrefix(o.Soname, "ld-linux") || strings.HasPrefix(o.Soname, "ld-musl") || strings.HasPrefix(o.Soname, "ld.so")
}

// Start is the address of the module's first byte.
func (m *Module) Start() uint64 { return m.start }

// Size is the bytes of addresses that the module takes.
func (m *Module) Size() uint64 { return m.end - m.start }
