package match

import (
	"cmp"
	"debug/elf"
	"slices"
	"sort"
	"strings"

	"github.com/virtualizing-os/vos/internal/dso"
)

// A label is a symbol of .symtab, of the object or of its debug file.
type label struct {
	name string
	key  string // file and name: what two builds have in common; "" where it has none
	addr uint64
	size uint64
	code bool
	tls  bool
}

// labels are the symbols that stripping takes away. complete tells that all
// objects are among them, so that one which is not there does not exist.
type labels struct {
	byAddr    []label
	byKey     map[string]int // -1 where a key is there twice
	functions []uint64
	complete  bool
}

func readLabels(o, debug *dso.Object) (*labels, error) {
	l := &labels{byKey: map[string]int{}}
	for _, from := range []*dso.Object{o, debug} {
		if from == nil || l.complete {
			continue
		}
		if from != o && from.BuildID != o.BuildID {
			continue // hazards say so
		}
		t, err := from.StaticSymbols()
		if err != nil {
			return nil, err
		}
		l.collect(t)
	}
	slices.SortStableFunc(l.byAddr, func(a, b label) int { return cmp.Compare(a.addr, b.addr) })
	for i, s := range l.byAddr {
		if s.code {
			l.functions = append(l.functions, s.addr)
		}
		if s.key == "" {
			continue
		}
		if _, twice := l.byKey[s.key]; twice {
			i = -1
		}
		l.byKey[s.key] = i
	}
	return l, nil
}

// collect takes the symbols with a size or of code. A local one is told from
// others of its name by the source file, the STT_FILE symbol before it.
func (l *labels) collect(t *dso.SymbolTable) {
	file := ""
	for s := range t.All() {
		if s.Type == elf.STT_FILE {
			file = s.Name
			continue
		}
		if !s.Defined() || s.Name == "" || s.Section == elf.SHN_ABS {
			continue
		}
		switch s.Type {
		case elf.STT_OBJECT, elf.STT_FUNC, elf.STT_GNU_IFUNC, elf.STT_TLS, elf.STT_COMMON:
		default:
			continue
		}
		n := label{name: s.Name, addr: s.Value, size: s.Size, code: s.IsFunction(), tls: s.IsTLS()}
		switch {
		case s.Binding != elf.STB_LOCAL:
			n.key = s.Name
		case file != "" && !numbered(s.Name):
			n.key = file + "\x00" + s.Name
		}
		// name@version of .symtab: the version is part of the name there.
		n.key = strings.Replace(n.key, "@@", "@", 1)
		if n.tls {
			n.key = "" // their addresses are offsets
		}
		l.byAddr = append(l.byAddr, n)
		l.complete = l.complete || s.Binding == elf.STB_LOCAL && !n.code
	}
}

// numbered tells names that the compiler made different by a number: it counts
// anew in each build.
func numbered(name string) bool {
	i := strings.LastIndexByte(name, '.')
	return i >= 0 && i+1 < len(name) && name[i+1] >= '0' && name[i+1] <= '9'
}

// at returns the labels of an address.
func (l *labels) at(addr uint64) []label {
	i := sort.Search(len(l.byAddr), func(i int) bool { return l.byAddr[i].addr >= addr })
	j := i
	for j < len(l.byAddr) && l.byAddr[j].addr == addr {
		j++
	}
	return l.byAddr[i:j]
}

// object returns the symbol of data that has an address.
func (l *labels) object(addr uint64) (label, bool) {
	i := sort.Search(len(l.byAddr), func(i int) bool { return l.byAddr[i].addr > addr })
	for n := 0; i > 0 && n < 16; n++ {
		i--
		if s := l.byAddr[i]; !s.code && !s.tls && addr-s.addr < max(s.size, 1) {
			return s, true
		}
	}
	return label{}, false
}

// roomAt returns how many bytes of an object of data lie from an address on, where
// a symbol tells.
func (b *Build) roomAt(addr uint64) (uint64, bool) {
	l, ok := b.labels.object(addr)
	switch {
	case !ok:
		return 0, false
	case l.name == "__dso_handle" && l.size == 0: // the compiler's, one word
		l.size = 8
	}
	return l.addr + l.size - addr, l.size > 0
}
