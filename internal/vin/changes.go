package vin

import (
	"bytes"
	"fmt"
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
}

// runs returns all that a vIN holds, in the order in which a live one is to be
// written: what is behind a count before the count, the selector last.
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
	all := []run{{l.code, stubSize, stubs}, {l.trampolines, trampolineSize, trampolines}}
	for g := range v.generations {
		table := make([]byte, 0, n*wordSize)
		for _, target := range v.generations[g].targets {
			table = le.AppendUint64(table, target)
		}
		all = append(all, run{l.table(g), wordSize, table})
	}
	all = append(all,
		records(entryRecords, entrySize, v.entries, (*Entry).put),
		records(l.slotRecords, slotSize, v.slots, (*Slot).put),
		records(generationRecords, generationSize, v.generations, func(g *generation, b []byte) { g.put(b) }),
		records(mergeRecords, mergeSize, v.merges, (*mergeOf).put),
	)
	header, live := make([]byte, headerSize), make([]byte, liveSize-wordSize)
	v.putHeader(header)
	v.putLive(live)
	return append(all,
		run{0, headerSize, header},
		run{pendingOffset, wordSize, live},
		run{selectorOffset, wordSize, le.AppendUint64(nil, v.SelectorFor(v.current))})
}

func records[T any](offset uint64, size int, all []T, put func(*T, []byte)) run {
	b := make([]byte, len(all)*size)
	for i := range all {
		put(&all[i], b[i*size:(i+1)*size])
	}
	return run{offset, size, b}
}

// Changes returns what to write, in this order, into the live vIN that old was
// read from, so that it becomes new, a changed clone of it. Items that old didn't
// have are written whole, as anything may be behind its counts. The words of
// counts, journal and selector come last and one by one: each is to be written by
// one store of 8 bytes. It is an error if new isn't for the same module and place.
func Changes(old, new *Vin) ([]Change, error) {
	if old.config != new.config {
		return nil, fmt.Errorf("compare vIN at %#x with one at %#x: %w", old.config.Base, new.config.Base, ErrInvalid)
	}
	before := map[uint64][]byte{}
	for _, r := range old.runs() {
		before[r.offset] = r.bytes
	}
	var all []Change
	for _, r := range new.runs() {
		was := before[r.offset]
		apart := r.offset >= selectorOffset && r.offset < selectorOffset+liveSize
		open := false // the last change can be continued
		for at := 0; at < len(r.bytes); at += r.item {
			item := r.bytes[at : at+r.item]
			if at+r.item <= len(was) && bytes.Equal(item, was[at:at+r.item]) {
				open = false
				continue
			}
			if !open || apart {
				all = append(all, Change{Address: new.config.Base + r.offset + uint64(at)})
			}
			open = true
			last := &all[len(all)-1]
			last.Bytes = append(last.Bytes, item...)
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
