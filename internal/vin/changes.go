package vin

import (
	"bytes"
	"fmt"
	"slices"
)

// A Change is bytes to be written at a process address.
type Change struct {
	Address uint64
	Bytes   []byte
}

// run is what lies at one place of a vIN: items of one size, one behind another,
// as many as there are.
type run struct {
	offset uint64
	item   int
	bytes  []byte
	kind   runKind
}

type runKind uint8

const (
	fixed  runKind = iota // items never change once a count includes them
	tables                // words that may change while stubs read them
	live                  // the words that say what there is
)

// runs returns all that a vIN holds, in the order in which a live one grows: what
// is behind a count before the count, what it refers to before that.
func (v *Vin) runs() []run {
	l := &v.layout
	n := len(v.entries)
	stubs := make([]byte, 0, n*stubSize)
	trampolines := make([]byte, n*trampolineSize)
	for i := range v.entries {
		s := v.stub(i)
		stubs = append(stubs, s[:]...)
		copy(trampolines[i*trampolineSize:], v.trampolines[i])
	}
	header := make([]byte, headerSize)
	v.putHeader(header)
	all := []run{
		{0, headerSize, header, fixed},
		{l.code, stubSize, stubs, fixed},
		{l.trampolines, trampolineSize, trampolines, fixed},
	}
	for g := range v.generations {
		table := make([]byte, 0, n*wordSize)
		for _, target := range v.generations[g].targets {
			table = le.AppendUint64(table, target)
		}
		all = append(all, run{l.table(g), wordSize, table, tables})
	}
	all = append(all,
		records(entryRecords, entrySize, v.entries, (*Entry).put),
		records(l.slotRecords, slotSize, v.slots, (*Slot).put),
		records(generationRecords, generationSize, v.generations, func(g *generation, b []byte) { g.put(b) }),
		records(mergeRecords, mergeSize, v.merges, (*mergeOf).put),
	)
	word := func(offset, value uint64) {
		all = append(all, run{offset, wordSize, le.AppendUint64(nil, value), live})
	}
	// What follows the one that runs comes last: cut short, nothing goes in circles.
	for _, follows := range []bool{false, true} {
		for g := range v.generations {
			if before := v.generations[g].before; (before == v.current) == follows {
				word(beforeOffset+uint64(g)*wordSize, uint64(before))
			}
		}
	}
	word(entriesOffset, uint64(len(v.entries)))
	word(slotsOffset, uint64(len(v.slots)))
	word(generationsOffset, uint64(len(v.generations)))
	word(mergesOffset, uint64(len(v.merges)))
	word(pendingOffset, v.pending.Word())
	word(selectorOffset, v.SelectorFor(v.current))
	return all
}

func records[T any](offset uint64, size int, all []T, put func(*T, []byte)) run {
	b := make([]byte, len(all)*size)
	for i := range all {
		put(&all[i], b[i*size:(i+1)*size])
	}
	return run{offset, size, b, fixed}
}

// shrinking is the order of live words where a generation is dropped.
var shrinking = []uint64{selectorOffset, pendingOffset, mergesOffset, generationsOffset, entriesOffset, slotsOffset}

// Changes returns what to write, in this order, into the live vIN that old was
// read from, so that it becomes new, a changed clone of it. It may be cut short
// between any two changes: what is there then can be read.
//
// Items that old didn't have are written whole, as anything may be behind its
// counts. Target words that old had, counts, journal and selector are changes of
// their own, each to be written by one store of 8 bytes. The selector comes last,
// or first of these if a generation is dropped.
//
// It is an error, ErrInvalid, if new isn't for the same module and place, or has
// another entry, slot, generation or merge in the place of one: what is dropped
// and added again are two lists of changes.
func Changes(old, new *Vin) ([]Change, error) {
	if old.config != new.config || len(new.entries) < len(old.entries) || len(new.slots) < len(old.slots) {
		return nil, fmt.Errorf("compare vIN at %#x with one at %#x: %w", old.config.Base, new.config.Base, ErrInvalid)
	}
	before := map[uint64][]byte{}
	for _, r := range old.runs() {
		before[r.offset] = r.bytes
	}
	runs := new.runs()
	if len(new.generations) < len(old.generations) {
		first := len(runs) - len(shrinking)
		slices.SortFunc(runs[first:], func(a, b run) int {
			return slices.Index(shrinking, a.offset) - slices.Index(shrinking, b.offset)
		})
	}
	var all []Change
	for _, r := range runs {
		was := before[r.offset]
		common := min(len(was), len(r.bytes))
		address := new.config.Base + r.offset
		if r.kind == fixed && !bytes.Equal(was[:common], r.bytes[:common]) {
			return nil, fmt.Errorf("compare vIN at %#x: other contents at +%#x: %w", new.config.Base, r.offset, ErrInvalid)
		}
		for at := 0; at < common; at += r.item {
			if item := r.bytes[at : at+r.item]; !bytes.Equal(item, was[at:at+r.item]) {
				all = append(all, Change{address + uint64(at), item})
			}
		}
		if common < len(r.bytes) {
			all = append(all, Change{address + uint64(common), r.bytes[common:]})
		}
	}
	return all, nil
}

// Runs returns all bytes of a vIN that are not zero because nothing is there: to
// be written into a file or mapping of zeros. Addresses are those of the process.
func (v *Vin) Runs() []Change {
	var all []Change
	for _, r := range v.runs() {
		if len(r.bytes) != 0 {
			all = append(all, Change{v.config.Base + r.offset, r.bytes})
		}
	}
	return all
}

// Table returns the table part, whole: Size says how much that is.
func (v *Vin) Table() []byte { return v.image(0, v.layout.code) }

// Code returns the code part, whole.
func (v *Vin) Code() []byte { return v.image(v.layout.code, v.layout.end) }

func (v *Vin) image(start, end uint64) []byte {
	b := make([]byte, end-start)
	for _, r := range v.runs() {
		if r.offset >= start && r.offset < end {
			copy(b[r.offset-start:], r.bytes)
		}
	}
	return b
}
