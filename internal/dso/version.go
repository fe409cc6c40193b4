package dso

import "debug/elf"

// A Version is a version of symbols that the object defines (Library "") or
// needs from a library (LSB core, "Symbol Versioning").
type Version struct {
	Index   uint16 // by which .gnu.version refers to it
	Name    string
	Library string   // of DT_VERNEED: the file that has it
	Parents []string // of DT_VERDEF: the versions that it follows
	Base    bool     // VER_FLG_BASE: the object's own name, not a version of symbols
	Weak    bool     // VER_FLG_WEAK
}

// Flags and special values of .gnu.version.
const (
	verFlagBase = 1
	verFlagWeak = 2
	versymHide  = 0x8000
	versymMask  = 0x7fff
	versymUser  = 2 // 0 is local, 1 global without a version
)

// A versionTable gives each symbol of .dynsym its version.
type versionTable struct {
	versym  []byte // one uint16 for each symbol; nil where there are no versions
	all     []Version
	byIndex []uint16 // index of .gnu.version → place in all + 1; 0 where there is none
}

// Versions returns the versions that the object defines and needs, in the order
// of DT_VERDEF and DT_VERNEED.
func (o *Object) Versions() ([]Version, error) {
	t, err := o.versionTable()
	if err != nil {
		return nil, err
	}
	return t.all, nil
}

// versionTable is the versions without .gnu.version.
func (o *Object) versionTable() (*versionTable, error) {
	return o.versions.get(func() (*versionTable, error) {
		t := &versionTable{}
		if err := o.readVersionDefinitions(t); err != nil {
			return nil, err
		}
		if err := o.readVersionNeeds(t); err != nil {
			return nil, err
		}
		for i, v := range t.all {
			if int(v.Index) >= len(t.byIndex) {
				t.byIndex = append(t.byIndex, make([]uint16, int(v.Index)+1-len(t.byIndex))...)
			}
			t.byIndex[v.Index] = uint16(i + 1)
		}
		return t, nil
	})
}

// readVersions returns the versions of a .dynsym of n symbols.
func (o *Object) readVersions(n uint32) (*versionTable, error) {
	at, ok := o.Dyn(elf.DT_VERSYM)
	if !ok {
		return nil, nil
	}
	t, err := o.versionTable()
	if err != nil {
		return nil, err
	}
	raw, err := o.image.table(at, uint64(n)*2, "symbol versions")
	if err != nil {
		return nil, err
	}
	return &versionTable{raw, t.all, t.byIndex}, nil
}

// apply sets the version of a symbol of the table. A nil table sets none.
func (t *versionTable) apply(s *Symbol) {
	if t == nil || uint64(s.Index)*2+2 > uint64(len(t.versym)) {
		return
	}
	raw := le.Uint16(t.versym[uint64(s.Index)*2:])
	s.Hidden = raw&versymHide != 0
	index := raw & versymMask
	if int(index) >= len(t.byIndex) || t.byIndex[index] == 0 {
		return
	}
	if v := &t.all[t.byIndex[index]-1]; !v.Base {
		s.Version, s.Library = v.Name, v.Library
	}
}

// satisfies tells whether a definition satisfies a reference to a version, or
// to none (glibc elf/dl-lookup.c, check_match).
func (t *versionTable) satisfies(s Symbol, version string) bool {
	if t == nil || t.versym == nil {
		return true
	}
	if version == "" {
		return !s.Hidden
	}
	return s.Version == version || s.Version == "" && !s.Hidden
}

// readVersionDefinitions reads the Verdef records, which are linked by
// distances forwards: none is negative, so the segment bounds the walk.
func (o *Object) readVersionDefinitions(t *versionTable) error {
	at, ok := o.Dyn(elf.DT_VERDEF)
	if !ok {
		return nil
	}
	const what = "version definitions"
	names, err := o.dynamicStrings()
	if err != nil {
		return err
	}
	w := window{image: &o.image, what: what}
	steps := 0
	for range min(o.dyn(elf.DT_VERDEFNUM), maxVersions) {
		p, err := w.at(at, 20)
		if err != nil {
			return err
		}
		format, flags, index, aux := le.Uint16(p), le.Uint16(p[2:]), le.Uint16(p[4:])&versymMask, le.Uint16(p[6:])
		first, next := uint64(le.Uint32(p[12:])), uint64(le.Uint32(p[16:]))
		if format != 1 {
			return malformed(what, at, "format %d", format)
		}
		v := Version{Index: index, Base: flags&verFlagBase != 0, Weak: flags&verFlagWeak != 0}
		for n, from := 0, at+first; n < int(aux); n++ {
			if steps++; steps > maxVersions {
				return readError(what, from, ErrLimit)
			}
			p, err := w.at(from, 8)
			if err != nil {
				return err
			}
			name, ok := names.at(uint64(le.Uint32(p)))
			if !ok {
				return malformed(what, from, "a name at offset %#x", le.Uint32(p))
			}
			if n == 0 {
				v.Name = name
			} else {
				v.Parents = append(v.Parents, name)
			}
			step := uint64(le.Uint32(p[4:]))
			if step == 0 {
				break
			}
			from += step
		}
		t.all = append(t.all, v)
		if next == 0 {
			break
		}
		at += next
	}
	return nil
}

// readVersionNeeds reads the Verneed records, one a library with an auxiliary
// record for each version.
func (o *Object) readVersionNeeds(t *versionTable) error {
	at, ok := o.Dyn(elf.DT_VERNEED)
	if !ok {
		return nil
	}
	const what = "version needs"
	names, err := o.dynamicStrings()
	if err != nil {
		return err
	}
	w := window{image: &o.image, what: what}
	for range min(o.dyn(elf.DT_VERNEEDNUM), maxVersions) {
		p, err := w.at(at, 16)
		if err != nil {
			return err
		}
		format, aux := le.Uint16(p), le.Uint16(p[2:])
		file, first, next := uint64(le.Uint32(p[4:])), uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[12:]))
		if format != 1 {
			return malformed(what, at, "format %d", format)
		}
		library, ok := names.at(file)
		if !ok {
			return malformed(what, at, "a name at offset %#x", file)
		}
		for n, from := 0, at+first; n < int(aux); n++ {
			if len(t.all) >= maxVersions-1 {
				return readError(what, from, ErrLimit)
			}
			p, err := w.at(from, 16)
			if err != nil {
				return err
			}
			name, ok := names.at(uint64(le.Uint32(p[8:])))
			if !ok {
				return malformed(what, from, "a name at offset %#x", le.Uint32(p[8:]))
			}
			t.all = append(t.all, Version{
				Index:   le.Uint16(p[6:]) & versymMask,
				Name:    name,
				Library: library,
				Weak:    le.Uint16(p[4:])&verFlagWeak != 0,
			})
			step := uint64(le.Uint32(p[12:]))
			if step == 0 {
				break
			}
			from += step
		}
		if next == 0 {
			break
		}
		at += next
	}
	return nil
}
