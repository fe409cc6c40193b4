package vin

import (
	"fmt"
	"maps"
	"slices"
)

// Identity is the module that a vIN belongs to, as it was mapped first.
type Identity struct {
	Soname  string // at most 255 bytes
	BuildID string // hexadecimal, at most 128 bytes
	Bias    uint64 // what is added to its object addresses
	Start   uint64 // of the first segment's mapping
	End     uint64 // of the last one's
}

// Config says what a new vIN is for.
type Config struct {
	Base    uint64 // the process address of the table part, of a page
	Module  Identity
	Entries int // how many functions may ever be redirected
	Slots   int // how many import slots may ever lead to stubs
}

// A Vin is one interceptor. It is a value of its own: methods may be called from
// one goroutine at a time.
type Vin struct {
	config Config
	layout layout

	entries     []Entry
	trampolines [][]byte // of each entry, nil where it has no veneer
	byFunction  map[uint64]int
	slots       []Slot
	generations []generation
	merges      []mergeOf
	current     int
	pending     Pending
}

// New returns a vIN with generation 0, the original build, alone.
func New(c Config) (*Vin, error) {
	l, err := newLayout(c.Entries, c.Slots)
	if err != nil {
		return nil, err
	}
	switch m := &c.Module; {
	case c.Base == 0 || c.Base%page != 0 || c.Base >= addressEnd-l.end:
		return nil, fmt.Errorf("make vIN at %#x: base: %w", c.Base, ErrInvalid)
	case m.Start >= m.End || m.End > addressEnd || m.Start < c.Base+l.end && c.Base < m.End:
		return nil, fmt.Errorf("make vIN at %#x: module at %#x to %#x: %w", c.Base, m.Start, m.End, ErrInvalid)
	case !validText(m.Soname, maxName) || !validText(m.BuildID, maxBuildID):
		return nil, fmt.Errorf("make vIN at %#x: name or build-id of the module: %w", c.Base, ErrInvalid)
	}
	m := c.Module
	return &Vin{
		config:     c,
		layout:     l,
		byFunction: map[uint64]int{},
		generations: []generation{{Generation: Generation{
			BuildID: m.BuildID, Name: m.Soname, Bias: m.Bias, Start: m.Start, End: m.End,
		}}},
	}, nil
}

// Config returns what the vIN was made for.
func (v *Vin) Config() Config { return v.config }

// Clone returns a vIN that shares nothing with v.
func (v *Vin) Clone() *Vin {
	c := *v
	c.entries = slices.Clone(v.entries)
	for i := range c.entries {
		c.entries[i].Original = slices.Clone(c.entries[i].Original)
	}
	c.trampolines = slices.Clone(v.trampolines) // their bytes never change
	c.byFunction = maps.Clone(v.byFunction)
	c.slots = slices.Clone(v.slots)
	c.generations = slices.Clone(v.generations)
	for i := range c.generations {
		c.generations[i].targets = slices.Clone(c.generations[i].targets)
	}
	c.merges = slices.Clone(v.merges)
	return &c
}

// SelectorAddress returns where the word is that says which generation runs.
func (v *Vin) SelectorAddress() uint64 { return v.config.Base + selectorOffset }

// SelectorFor returns the word to store there, 8 bytes at once, so that a
// generation runs; 0 for one that is not there.
func (v *Vin) SelectorFor(generation int) uint64 {
	if generation < 0 || generation >= len(v.generations) {
		return 0
	}
	return v.config.Base + v.layout.table(generation)
}

// Current returns the generation that runs: the selector's.
func (v *Vin) Current() int { return v.current }

// SetCurrent records that a generation runs.
func (v *Vin) SetCurrent(generation int) error {
	if v.SelectorFor(generation) == 0 {
		return fmt.Errorf("select generation %d of %d: %w", generation, len(v.generations), ErrInvalid)
	}
	v.current = generation
	return nil
}

// Phase is how far a change of the program is.
type Phase uint8

// The phases. A vIN that is Idle has nothing to be finished or undone.
const (
	Idle       Phase = iota
	Loading          // the new build is being mapped and prepared
	Installing       // veneers and import slots are being written: neutral
	Merging          // initial values are being written
	Entering         // the selector is being stored
	Leaving          // going back: merges are being undone
	Removing         // veneers and slots are being taken out
	lastPhase  = Removing
)

func (p Phase) String() string {
	if p > lastPhase {
		return fmt.Sprintf("phase %d", uint8(p))
	}
	return [...]string{"idle", "loading", "installing", "merging", "entering", "leaving", "removing"}[p]
}

// Pending is the journal: the generation that is being entered, also one whose
// record is still to be written, and how far that is. The zero value: nothing is.
type Pending struct {
	Generation int
	Phase      Phase
}

// Word returns what is stored at PendingAddress, 8 bytes at once.
func (p Pending) Word() uint64 { return uint64(p.Phase)<<32 | uint64(uint32(p.Generation)) }

// PendingAddress returns where the journal's word is.
func (v *Vin) PendingAddress() uint64 { return v.config.Base + pendingOffset }

// Pending returns the journal's content.
func (v *Vin) Pending() Pending { return v.pending }

// SetPending records what is stored in the journal.
func (v *Vin) SetPending(p Pending) error {
	if p.Phase > lastPhase || p.Generation < 0 || p.Generation > len(v.generations) || p.Generation >= MaxGenerations ||
		p.Phase == Idle && p.Generation != 0 {
		return fmt.Errorf("record %v of generation %d as pending: %w", p.Phase, p.Generation, ErrInvalid)
	}
	v.pending = p
	return nil
}
