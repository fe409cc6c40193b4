package procfs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Perms are what a mapping allows.
type Perms uint8

// The permissions of a mapping; without Shared it is private.
const (
	Read Perms = 1 << iota
	Write
	Exec
	Shared
)

// String writes them as maps does: "r-xp".
func (p Perms) String() string {
	text := []byte("---p")
	for i, c := range []byte("rwx") {
		if p&(1<<i) != 0 {
			text[i] = c
		}
	}
	if p&Shared != 0 {
		text[3] = 's'
	}
	return string(text)
}

// A Kind tells what stands behind a mapping.
type Kind uint8

// The kinds of mappings. Only of KindFile is Path a path.
const (
	KindAnonymous       Kind = iota // private memory without a name
	KindFile                        // a file; also a device node
	KindHeap                        // [heap]: the brk area
	KindStack                       // [stack] of the main thread
	KindVDSO                        // [vdso]
	KindVVar                        // [vvar], [vvar_vclock]: the kernel's data for the vDSO
	KindVsyscall                    // [vsyscall], above every readable address
	KindNamedAnonymous              // [anon:NAME], by prctl PR_SET_VMA
	KindSharedAnonymous             // memory that the kernel keeps as a file of its own: MAP_SHARED|MAP_ANONYMOUS, MAP_HUGETLB
	KindMemfd                       // memfd_create(2): /memfd:NAME
	KindSysV                        // System V shared memory: /SYSV0000abcd
	KindAnonInode                   // anon_inode:[NAME], socket:[N], dmabuf: …
	KindSpecial                     // another bracketed name: [uprobes], …
)

var kindNames = [...]string{
	"anonymous", "file", "heap", "stack", "vdso", "vvar", "vsyscall", "named anonymous",
	"shared anonymous", "memfd", "sysv", "anon inode", "special",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", k)
}

// A Mapping is one line of /proc/PID/maps, proc_pid_maps(5).
type Mapping struct {
	Start, End         uint64 // addresses, End exclusive
	Offset             uint64 // of Start in the file, bytes
	Perms              Perms
	Kind               Kind
	Deleted            bool // no name leads to the file any more
	DevMajor, DevMinor uint32
	Inode              uint64 // 0 where there is no file
	// Path is the name without the kernel's escapes and without " (deleted)":
	// a path from the root of the process's mount namespace, or a pseudo name.
	Path string
}

// Size returns the mapping's length in bytes.
func (m *Mapping) Size() uint64 { return m.End - m.Start }

// Contains reports whether the address lies in the mapping.
func (m *Mapping) Contains(address uint64) bool { return m.Start <= address && address < m.End }

// PrivateFile reports whether it is a private mapping of a file: its pages are
// the file's until they are written.
func (m *Mapping) PrivateFile() bool { return m.Kind == KindFile && m.Perms&Shared == 0 }

func (m *Mapping) String() string {
	return fmt.Sprintf("%x-%x %v %x %s", m.Start, m.End, m.Perms, m.Offset, m.Path)
}

// Maps reads what is mapped, in ascending order. Names that the text leaves
// open are settled by the files (see ParseMaps). It needs the right to read
// the process (ptrace access mode PTRACE_MODE_READ). A kernel thread has no
// maps: the error wraps ErrNoMemory. A process that maps and unmaps meanwhile
// may show states of different moments, never a mapping twice.
func (p *Process) Maps() ([]Mapping, error) { return p.AppendMaps(nil) }

// AppendMaps is Maps into a slice that the caller reuses.
func (p *Process) AppendMaps(maps []Mapping) ([]Mapping, error) {
	first := len(maps)
	err := p.readMemoryFile("maps", func(text []byte) (err error) {
		maps, err = ParseMaps(maps, text)
		return err
	})
	if err != nil {
		return maps[:first], err
	}
	p.settleNames(maps[first:])
	return maps, nil
}

// ParseMaps appends the mappings of the text of a maps file. Names are taken
// at their likeliest: \012 as a newline, a trailing " (deleted)" as the
// kernel's mark. Process.Maps knows better, as it looks at the files.
func ParseMaps(maps []Mapping, text []byte) ([]Mapping, error) {
	first := len(maps)
	if room := bytes.Count(text, []byte("\n")); cap(maps)-len(maps) < room {
		maps = slices.Grow(maps, room)
	}
	var names nameCache
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		var m Mapping
		if !parseMapping(&m, line, &names) {
			return maps[:first], fmt.Errorf("parse maps: not a mapping: %.120q", line)
		}
		maps = append(maps, m)
	}
	return maps, nil
}

// parseMapping reads "start-end perms offset major:minor inode  name". It is
// written by hand since it runs thousands of times for every look at a large
// program.
func parseMapping(m *Mapping, line []byte, names *nameCache) bool {
	var ok bool
	i := 0
	number := func(base uint64, end byte) (v uint64) {
		start := i
		for i < len(line) && line[i] != end {
			i++
		}
		if !ok {
			return 0
		}
		v, ok = parseUnsigned(line[start:i], base)
		i++
		return v
	}
	ok = true
	m.Start = number(16, '-')
	m.End = number(16, ' ')
	if !ok || m.End < m.Start || i+5 > len(line) || line[i+4] != ' ' {
		return false
	}
	for bit, c := range line[i : i+4] {
		switch c {
		case "rwxs"[bit]:
			m.Perms |= 1 << bit
		case "---p"[bit]:
		default:
			return false
		}
	}
	i += 5
	m.Offset = number(16, ' ')
	major := number(16, ':')
	minor := number(16, ' ')
	m.Inode = number(10, ' ')
	if !ok || major > 1<<32-1 || minor > 1<<32-1 {
		return false
	}
	m.DevMajor, m.DevMinor = uint32(major), uint32(minor)
	for i < len(line) && line[i] == ' ' {
		i++
	}
	if i >= len(line) {
		if m.Inode != 0 { // a name that the kernel could not write
			m.Kind = KindFile
		}
		return true
	}
	name := names.get(line[i:])
	m.Path, m.Kind, m.Deleted = name.path, name.kind, name.deleted
	if m.Inode == 0 && m.Kind == KindFile {
		m.Kind = KindSpecial
	}
	return true
}

const deletedMark = " (deleted)"

// A mappingName is the name of a line, taken apart.
type mappingName struct {
	path    string
	kind    Kind
	deleted bool
}

// A nameCache makes one string of the names of a module's several mappings.
type nameCache struct {
	last []byte // the text of the line before
	name mappingName
	seen map[string]mappingName
}

func (c *nameCache) get(text []byte) mappingName {
	if bytes.Equal(text, c.last) {
		return c.name
	}
	name, found := c.seen[string(text)]
	if !found {
		name = parseName(text)
		if c.seen == nil {
			c.seen = make(map[string]mappingName)
		}
		c.seen[string(text)] = name
	}
	c.last, c.name = text, name
	return name
}

func parseName(text []byte) mappingName {
	name := mappingName{path: string(text), kind: KindFile}
	if strings.HasPrefix(name.path, "[") {
		name.kind = bracketKind(name.path)
		return name
	}
	name.path = strings.ReplaceAll(name.path, `\012`, "\n")
	name.path, name.deleted = strings.CutSuffix(name.path, deletedMark)
	switch {
	case !strings.HasPrefix(name.path, "/"):
		name.kind = KindAnonInode
	case name.deleted:
		name.kind = deletedKind(name.path)
	}
	return name
}

func bracketKind(name string) Kind {
	switch {
	case name == "[heap]":
		return KindHeap
	case name == "[stack]":
		return KindStack
	case name == "[vdso]":
		return KindVDSO
	case name == "[vvar]", name == "[vvar_vclock]":
		return KindVVar
	case name == "[vsyscall]":
		return KindVsyscall
	case strings.HasPrefix(name, "[anon:"):
		return KindNamedAnonymous
	case strings.HasPrefix(name, "[anon_shmem:"):
		return KindSharedAnonymous
	default:
		return KindSpecial
	}
}

// deletedKind knows the files that the kernel makes for memory. They never had
// a name, so they always come as deleted.
func deletedKind(path string) Kind {
	switch {
	case path == "/dev/zero", path == "/anon_hugepage":
		return KindSharedAnonymous
	case strings.HasPrefix(path, "/memfd:"):
		return KindMemfd
	case strings.HasPrefix(path, "/SYSV") && len(path) == len("/SYSV00000000"):
		return KindSysV
	default:
		return KindFile
	}
}
