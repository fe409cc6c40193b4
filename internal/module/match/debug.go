package match

import (
	"cmp"
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A TypeChange is a structure whose layout differs between the builds.
type TypeChange struct {
	Name   string
	Detail string
}

// ReadTypes reads the type information of an object or a debug file; nil
// without an error where it has none.
func ReadTypes(r io.ReaderAt) (*dwarf.Data, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("read types: %w", err)
	}
	s := f.Section(".debug_info")
	if s == nil || s.Type == elf.SHT_NOBITS {
		return nil, nil
	}
	d, err := f.DWARF()
	if err != nil {
		return nil, fmt.Errorf("read types: %w", err)
	}
	return d, nil
}

// A layout is where the members of a structure are.
type layout struct {
	size   int64
	fields []field
}

type field struct {
	name               string
	at, size           int64
	bitOffset, bitSize int64
}

// compareTypes compares the structures of one name. Where several sources have
// different ones of a name, each old one must be among the new ones.
func compareTypes(old, new *dwarf.Data) ([]TypeChange, error) {
	was, err := layouts(old)
	if err != nil {
		return nil, err
	}
	is, err := layouts(new)
	if err != nil {
		return nil, err
	}
	var all []TypeChange
	for name, olds := range was {
		news, ok := is[name]
		if !ok {
			continue
		}
		for _, l := range olds {
			if !slices.ContainsFunc(news, l.equal) {
				all = append(all, TypeChange{name, l.difference(news[0])})
				break
			}
		}
	}
	slices.SortFunc(all, func(a, b TypeChange) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// judgeTypes lets type information decide; where it can't be read, the detector
// does.
func (d *Drift) judgeTypes(old, new *dwarf.Data) {
	if changes, err := compareTypes(old, new); err == nil {
		d.Layouts, d.DWARF = changes, true
	}
}

// equal compares where members are. One may have another name, but none that
// another member had.
func (l layout) equal(m layout) bool {
	_, _, moved := l.moved(m)
	return !moved && l.size == m.size && slices.EqualFunc(l.fields, m.fields, func(a, b field) bool {
		a.name, b.name = "", ""
		return a == b
	})
}

// moved returns the first member that is at another place.
func (l layout) moved(m layout) (was, is field, moved bool) {
	for _, f := range l.fields {
		for _, g := range m.fields {
			if f.name == g.name && f.name != "" && (f.at != g.at || f.bitOffset != g.bitOffset) {
				return f, g, true
			}
		}
	}
	return field{}, field{}, false
}

func (l layout) difference(m layout) string {
	switch was, is, moved := l.moved(m); {
	case moved && was.at != is.at:
		return fmt.Sprintf("%s was at %d, and is at %d", was.name, was.at, is.at)
	case moved:
		return fmt.Sprintf("%s was at bit %d of %d, and is at bit %d", was.name, was.bitOffset, was.at, is.bitOffset)
	}
	if l.size != m.size {
		return fmt.Sprintf("it had %d bytes, and has %d", l.size, m.size)
	}
	return "its members differ"
}

// layouts collects the structures, classes and unions that have a name.
func layouts(d *dwarf.Data) (map[string][]layout, error) {
	all := map[string][]layout{}
	r := d.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("read types: %w", err)
		}
		if e == nil {
			return all, nil
		}
		switch e.Tag {
		case dwarf.TagCompileUnit, dwarf.TagPartialUnit, dwarf.TagTypeUnit, dwarf.TagNamespace:
			continue // look inside
		case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType:
			name, _ := e.Val(dwarf.AttrName).(string)
			if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); name != "" && !declared {
				if l, ok := layoutOf(d, e.Offset); ok && !slices.ContainsFunc(all[name], l.equal) {
					all[name] = append(all[name], l)
				}
			}
		}
		r.SkipChildren()
	}
}

func layoutOf(d *dwarf.Data, at dwarf.Offset) (l layout, ok bool) {
	t, err := d.Type(at)
	if err != nil {
		return l, false // in another file, as dwz makes them
	}
	s, ok := t.(*dwarf.StructType)
	if !ok || s.Incomplete {
		return l, false
	}
	l.size = s.ByteSize
	for _, f := range s.Field {
		if strings.HasPrefix(f.Name, "_vptr") {
			f.Name = "_vptr"
		}
		l.fields = append(l.fields, field{f.Name, f.ByteOffset, f.Type.Size(), f.BitOffset + f.DataBitOffset, f.BitSize})
	}
	return l, true
}
