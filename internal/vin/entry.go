package vin

import (
	"fmt"
	"slices"
)

// Kind is how calls get to a stub.
type Kind uint8

// The kinds.
const (
	Veneer Kind = iota + 1 // the function begins with a jump to it
	Slots                  // import slots hold its address
)

func (k Kind) String() string {
	switch k {
	case Veneer:
		return "veneer"
	case Slots:
		return "slots"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// An Entry is a function of the original build whose calls pass a stub. Its
// index counts from 0, in the order of adding.
type Entry struct {
	Function uint64 // its address in the original build
	Kind     Kind
	Stub     uint64

	// Original is what the veneer overwrote: the first 5 bytes and the rest of
	// the instruction that they end in, 5 to 19 bytes. No thread may be at one
	// behind the first byte when the veneer is written. nil without a veneer.
	Original []byte

	// Trampoline is where generation 0 leads: Original, moved. Without a veneer
	// it is Function.
	Trampoline uint64
}

// A Slot is an import slot that leads to an entry's stub.
type Slot struct {
	Entry   int
	Address uint64 // of the slot, 8 bytes
	Before  uint64 // what it held
}

// AddVeneer adds a function of the original build, whose code is given: at least
// the instructions that end behind its fifth byte. All generations that are there
// lead to its trampoline. Errors wrap ErrCannotMove (and what x86.Decode says),
// ErrRange, ErrOverlap, ErrExists, ErrFull or ErrInvalid.
//
// That nothing jumps into the function's first bytes, and that it isn't called
// by a private convention, is for the caller to know.
func (v *Vin) AddVeneer(function uint64, code []byte) (index int, err error) {
	if err := v.admit(function); err != nil {
		return 0, fmt.Errorf("add veneer at %#x: %w", function, err)
	}
	i := len(v.entries)
	original, err := overwritten(code)
	if err != nil {
		return 0, fmt.Errorf("add veneer at %#x: %w", function, err)
	}
	if end := function + uint64(len(original)); end > v.config.Module.End {
		return 0, fmt.Errorf("add veneer at %#x: ends behind its module: %w", function, ErrInvalid)
	}
	if err := v.alone(function, len(original)); err != nil {
		return 0, fmt.Errorf("add veneer at %#x: %w", function, err)
	}
	e := Entry{
		Function:   function,
		Kind:       Veneer,
		Stub:       v.config.Base + v.layout.stub(i),
		Original:   slices.Clone(original),
		Trampoline: v.config.Base + v.layout.trampoline(i),
	}
	trampoline, err := move(e.Original, e.Function, e.Trampoline)
	if err != nil {
		return 0, fmt.Errorf("add veneer at %#x: %w", function, err)
	}
	if _, err := jump(e.Function, e.Stub); err != nil {
		return 0, fmt.Errorf("add veneer at %#x: %w", function, err)
	}
	v.add(e, trampoline)
	return i, nil
}

// AddSlotEntry adds a function of the original build that gets no veneer. All
// generations that are there lead to itself. Errors wrap ErrExists, ErrOverlap,
// ErrFull or ErrInvalid.
func (v *Vin) AddSlotEntry(function uint64) (index int, err error) {
	if err := v.admit(function); err != nil {
		return 0, fmt.Errorf("add entry for slots of %#x: %w", function, err)
	}
	if err := v.alone(function, 1); err != nil {
		return 0, fmt.Errorf("add entry for slots of %#x: %w", function, err)
	}
	i := len(v.entries)
	v.add(Entry{Function: function, Kind: Slots, Stub: v.config.Base + v.layout.stub(i), Trampoline: function}, nil)
	return i, nil
}

func (v *Vin) admit(function uint64) error {
	if len(v.entries) >= v.layout.entries {
		return fmt.Errorf("%d entries: %w", len(v.entries), ErrFull)
	}
	if function < v.config.Module.Start || function >= v.config.Module.End {
		return fmt.Errorf("not in its module: %w", ErrInvalid)
	}
	if i, ok := v.byFunction[function]; ok {
		return fmt.Errorf("entry %d: %w", i, ErrExists)
	}
	return nil
}

// alone checks that no function that is there begins in the n bytes of a new one,
// and that it doesn't begin in what a veneer overwrites.
func (v *Vin) alone(function uint64, n int) error {
	for d := uint64(1); d < uint64(n); d++ {
		if i, ok := v.byFunction[function+d]; ok {
			return fmt.Errorf("entry %d begins at +%d: %w", i, d, ErrOverlap)
		}
	}
	for d := uint64(1); d < maxOverwritten; d++ {
		if i, ok := v.byFunction[function-d]; ok && uint64(len(v.entries[i].Original)) > d {
			return fmt.Errorf("entry %d begins %d bytes before: %w", i, d, ErrOverlap)
		}
	}
	return nil
}

func (v *Vin) add(e Entry, trampoline []byte) {
	v.byFunction[e.Function] = len(v.entries)
	v.entries = append(v.entries, e)
	v.trampolines = append(v.trampolines, trampoline)
	for g := range v.generations {
		v.generations[g].targets = append(v.generations[g].targets, e.Trampoline)
	}
}

// AddSlot adds an import slot of another module that is to lead to an entry's
// stub, and what it held before. An entry with a veneer may have slots, too.
// Errors wrap ErrFull or ErrInvalid.
func (v *Vin) AddSlot(index int, address, before uint64) error {
	switch {
	case len(v.slots) >= v.layout.slots:
		return fmt.Errorf("add slot %#x: %d slots: %w", address, len(v.slots), ErrFull)
	case index < 0 || index >= len(v.entries):
		return fmt.Errorf("add slot %#x of entry %d: %w", address, index, ErrInvalid)
	case !validSlot(address) || before >= addressEnd:
		return fmt.Errorf("add slot %#x that held %#x: %w", address, before, ErrInvalid)
	}
	v.slots = append(v.slots, Slot{Entry: index, Address: address, Before: before})
	return nil
}

func validSlot(address uint64) bool {
	return address != 0 && address%wordSize == 0 && address < addressEnd
}

// Entries returns all entries; their Original is not to be written to.
func (v *Vin) Entries() []Entry { return slices.Clone(v.entries) }

// Slots returns all import slots that lead to stubs.
func (v *Vin) Slots() []Slot { return slices.Clone(v.slots) }

// Find returns the entry of a function.
func (v *Vin) Find(function uint64) (index int, ok bool) {
	index, ok = v.byFunction[function]
	return index, ok
}

// Veneer returns the 5 bytes to be written at the function of an entry. What
// follows them stays: nothing gets there any more. ok is false for an entry
// without a veneer.
func (v *Vin) Veneer(index int) (code [VeneerSize]byte, ok bool) {
	if index < 0 || index >= len(v.entries) || v.entries[index].Kind != Veneer {
		return code, false
	}
	jmp, err := jump(v.entries[index].Function, v.entries[index].Stub)
	return jmp, err == nil
}
