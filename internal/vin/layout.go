package vin

import "fmt"

// Name is the name of the memfd that holds the table and the code.
const Name = "vos-vin"

// Version is the version of the format.
const Version = 1

// What one vIN can hold.
const (
	MaxGenerations = 32      // the original build included
	MaxEntries     = 1 << 17 // functions
	MaxSlots       = 1 << 20 // import slots
	MaxMerges      = 4096    // merges of initial values, of all generations
)

// Sizes and offsets in bytes; offsets count from the base.
const (
	page = 4096

	headerSize     = 512 // the fixed part, its checksum included
	generationSize = 512
	mergeSize      = 96
	entrySize      = 64
	slotSize       = 32
	stubSize       = 16
	trampolineSize = 32
	wordSize       = 8

	selectorOffset    = headerSize
	pendingOffset     = selectorOffset + 1*wordSize
	entriesOffset     = selectorOffset + 2*wordSize
	slotsOffset       = selectorOffset + 3*wordSize
	generationsOffset = selectorOffset + 4*wordSize
	mergesOffset      = selectorOffset + 5*wordSize
	beforeOffset      = selectorOffset + 6*wordSize // a word a generation
	liveSize          = (6 + MaxGenerations) * wordSize

	generationRecords = page
	mergeRecords      = generationRecords + MaxGenerations*generationSize
	entryRecords      = mergeRecords + MaxMerges*mergeSize
)

// addressEnd is where user addresses end: 47 bits.
const addressEnd = 1 << 47

// layout is where things lie in a vIN of some capacity: offsets from its base.
// Records and tables have fixed places for all that could be there, so that
// adding moves nothing; pages that nothing was written to cost no memory.
type layout struct {
	entries, slots int

	slotRecords uint64
	targets     uint64 // MaxGenerations tables
	stride      uint64 // of one table, a multiple of a cache line
	code        uint64 // where the code part begins: the stubs
	trampolines uint64
	end         uint64
}

func newLayout(entries, slots int) (layout, error) {
	if entries < 1 || entries > MaxEntries || slots < 0 || slots > MaxSlots {
		return layout{}, fmt.Errorf("lay out vIN: %d entries and %d slots: %w", entries, slots, ErrFull)
	}
	l := layout{entries: entries, slots: slots}
	l.slotRecords = align(entryRecords+uint64(entries)*entrySize, page)
	l.targets = align(l.slotRecords+uint64(slots)*slotSize, page)
	l.stride = align(uint64(entries)*wordSize, 64)
	l.code = align(l.targets+MaxGenerations*l.stride, page)
	l.trampolines = align(l.code+uint64(entries)*stubSize, 64)
	l.end = align(l.trampolines+uint64(entries)*trampolineSize, page)
	return l, nil
}

func (l *layout) table(generation int) uint64 { return l.targets + uint64(generation)*l.stride }
func (l *layout) stub(i int) uint64           { return l.code + uint64(i)*stubSize }
func (l *layout) trampoline(i int) uint64     { return l.trampolines + uint64(i)*trampolineSize }

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// Size returns how many bytes the table part and the code part of a vIN for so
// many functions and import slots have, multiples of 4096; 0 where it can't be
// that many. The code lies behind the table. Most of it is never touched.
func Size(entries, slots int) (table, code uint64) {
	l, err := newLayout(entries, slots)
	if err != nil {
		return 0, 0
	}
	return l.code, l.end - l.code
}
