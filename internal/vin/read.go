package vin

import (
	"bytes"
	"fmt"
	"io"
)

// Read reads the vIN of size bytes, table and code, that a process has at base.
// Addresses are offsets of r. Errors wrap ErrCorrupt or ErrVersion where what is
// there is no vIN of this format, otherwise that of r.
func Read(r io.ReaderAt, base, size uint64) (*Vin, error) {
	v, err := read(reader{r, base}, size)
	if err != nil {
		return nil, fmt.Errorf("read vIN at %#x: %w", base, err)
	}
	return v, nil
}

// reader reads at offsets from a vIN's base.
type reader struct {
	r    io.ReaderAt
	base uint64
}

func (r reader) at(offset uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	if got, err := r.r.ReadAt(b, int64(r.base+offset)); got < n {
		return nil, fmt.Errorf("read %d bytes at +%#x: %w", n, offset, err)
	}
	return b, nil
}

// chunk is how many bytes of records are read at a time, so that a wrong count
// makes a wrong record known before there is memory for all of them.
const chunk = 64 << 10

// each reads n items of some size, and calls take with each; what it keeps of an
// item stays as it is.
func (r reader) each(what string, offset uint64, n, size int, take func(i int, b []byte) error) error {
	for i := 0; i < n; {
		k := min(n-i, chunk/size)
		b, err := r.at(offset+uint64(i*size), k*size)
		if err != nil {
			return err
		}
		for ; k > 0; i, k, b = i+1, k-1, b[size:] {
			if err := take(i, b[:size:size]); err != nil {
				return fmt.Errorf("%s %d: %w: %w", what, i, ErrCorrupt, err)
			}
		}
	}
	return nil
}

// errRecord is what is wrong with a record that can't be taken apart.
var errRecord = fmt.Errorf("record: %w", ErrInvalid)

func read(r reader, size uint64) (*Vin, error) {
	if r.base >= addressEnd || size < entryRecords || size > addressEnd {
		return nil, fmt.Errorf("%#x bytes: %w", size, ErrCorrupt)
	}
	head, err := r.at(0, headerSize+liveSize)
	if err != nil {
		return nil, err
	}
	v, err := readHeader(head[:headerSize], r.base, size)
	if err != nil {
		return nil, err
	}
	word := func(offset int) uint64 { return le.Uint64(head[offset:]) }
	entries, slots, generations, merges := word(entriesOffset), word(slotsOffset), word(generationsOffset), word(mergesOffset)
	if entries > uint64(v.layout.entries) || slots > uint64(v.layout.slots) ||
		generations < 1 || generations > MaxGenerations || merges > MaxMerges {
		return nil, fmt.Errorf("%d entries, %d slots, %d generations, %d merges: %w", entries, slots, generations, merges, ErrCorrupt)
	}
	// Each step checks against what the ones before it made: entries come before
	// generations but for the original, as those get a table of their targets.
	for _, step := range []func() error{
		func() error { return v.readEntries(r, int(entries)) },
		func() error { return v.readCode(r) },
		func() error { return v.readGenerations(r, int(generations)) },
		func() error { return v.readTargets(r) },
		func() error { return v.readSlots(r, int(slots)) },
		func() error { return v.readMerges(r, int(merges)) },
		func() error { v.readOrder(head[beforeOffset:]); return nil },
		func() error { return v.readState(word(selectorOffset), word(pendingOffset)) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func readHeader(b []byte, base, size uint64) (*Vin, error) {
	if !bytes.Equal(b[:8], magic[:]) {
		return nil, fmt.Errorf("header begins with % x: %w", b[:8], ErrCorrupt)
	}
	if version := le.Uint32(b[8:]); version != Version {
		return nil, fmt.Errorf("version %d: %w", version, ErrVersion)
	}
	id, okID := text(b[72:200])
	name, okName := text(b[200:455])
	if !sealed(b) || !okID || !okName {
		return nil, fmt.Errorf("header: %w", ErrCorrupt)
	}
	v, err := New(Config{
		Base:    le.Uint64(b[16:]),
		Module:  Identity{Soname: name, BuildID: id, Bias: le.Uint64(b[48:]), Start: le.Uint64(b[56:]), End: le.Uint64(b[64:])},
		Entries: int(le.Uint32(b[40:])),
		Slots:   int(le.Uint32(b[44:])),
	})
	if err != nil {
		return nil, fmt.Errorf("header: %w: %w", ErrCorrupt, err)
	}
	// Header size, sizes of both parts, and what has no meaning yet.
	again := make([]byte, headerSize)
	v.putHeader(again)
	if !bytes.Equal(b, again) || v.config.Base != base || v.layout.end != size {
		return nil, fmt.Errorf("header of %#x bytes at %#x: %w", v.layout.end, v.config.Base, ErrCorrupt)
	}
	return v, nil
}

// readEntries adds all entries again: what is derived from their records is
// what it was when they were added.
func (v *Vin) readEntries(r reader, n int) error {
	return r.each("entry", entryRecords, n, entrySize, func(_ int, b []byte) error {
		e, ok := readEntry(b)
		if !ok {
			return errRecord
		}
		switch e.Kind {
		case Veneer:
			if whole, err := overwritten(e.Original); err != nil || len(whole) != len(e.Original) {
				return fmt.Errorf("instructions of %d bytes: %w", len(e.Original), ErrInvalid)
			}
			_, err := v.AddVeneer(e.Function, e.Original)
			return err
		case Slots:
			if len(e.Original) != 0 {
				return errRecord
			}
			_, err := v.AddSlotEntry(e.Function)
			return err
		}
		return errRecord
	})
}

// readCode compares stubs and trampolines with those of the entries.
func (v *Vin) readCode(r reader) error {
	n := len(v.entries)
	err := r.each("stub", v.layout.code, n, stubSize, func(i int, b []byte) error {
		if stub := v.stub(i); !bytes.Equal(b, stub[:]) {
			return fmt.Errorf("% x: %w", b, ErrInvalid)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.each("trampoline", v.layout.trampolines, n, trampolineSize, func(i int, b []byte) error {
		t := v.trampolines[i]
		if !bytes.Equal(b[:len(t)], t) || !zero(b[len(t):]) {
			return fmt.Errorf("% x: %w", b, ErrInvalid)
		}
		return nil
	})
}

func (v *Vin) readGenerations(r reader, n int) error {
	return r.each("generation", generationRecords, n, generationSize, func(i int, b []byte) error {
		g, ok := readGeneration(b)
		if !ok {
			return errRecord
		}
		if i == 0 {
			if g != v.generations[0].Generation {
				return fmt.Errorf("not the module's: %w", ErrInvalid)
			}
			return nil
		}
		_, err := v.AddGeneration(g)
		return err
	})
}

func (v *Vin) readTargets(r reader) error {
	for g := range v.generations {
		err := r.each(fmt.Sprintf("generation %d, target", g), v.layout.table(g), len(v.entries), wordSize, func(i int, b []byte) error {
			target := le.Uint64(b)
			if target == v.generations[g].targets[i] {
				return nil
			}
			return v.SetTarget(g, i, target)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *Vin) readSlots(r reader, n int) error {
	return r.each("slot", v.layout.slotRecords, n, slotSize, func(_ int, b []byte) error {
		s, ok := readSlot(b)
		if !ok {
			return errRecord
		}
		return v.AddSlot(s.Entry, s.Address, s.Before)
	})
}

func (v *Vin) readMerges(r reader, n int) error {
	return r.each("merge", mergeRecords, n, mergeSize, func(_ int, b []byte) error {
		m, ok := readMerge(b)
		if !ok {
			return errRecord
		}
		return v.AddMerge(m.generation, m.Merge)
	})
}

// readOrder reads which generation ran before which. A word that can't be right
// is read as 0: it leads to the original, which is always there.
func (v *Vin) readOrder(words []byte) {
	for g := 1; g < len(v.generations); g++ {
		if before := le.Uint64(words[g*wordSize:]); before < uint64(len(v.generations)) && before != uint64(g) {
			v.generations[g].before = int(before)
		}
	}
}

func (v *Vin) readState(selector, pending uint64) error {
	found := false
	for g := range v.generations {
		if v.SelectorFor(g) == selector {
			v.current, found = g, true
		}
	}
	if !found {
		return fmt.Errorf("selector %#x: %w", selector, ErrCorrupt)
	}
	p := Pending{Generation: int(uint32(pending)), Phase: Phase(min(pending>>32, 0xff))}
	if err := v.SetPending(p); err != nil {
		return fmt.Errorf("journal: %w: %w", ErrCorrupt, err)
	}
	return nil
}
