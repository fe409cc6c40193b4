package vin

import (
	"bytes"
	"fmt"
	"slices"
)

// A Generation is a build of the module that is or was in use. 0 is the original.
type Generation struct {
	BuildID string // hexadecimal, at most 128 bytes
	Name    string // of its file or mapping, at most 255 bytes
	Bias    uint64
	Start   uint64 // of its mapping
	End     uint64
	Digest  [32]byte // of the file that was mapped; zero for the original
	Flags   uint64   // the caller's
}

type generation struct {
	Generation
	targets []uint64 // of each entry
	before  int      // the generation that ran before it
}

// AddGeneration adds a build; all entries lead to generation 0's code in it until
// SetTarget says otherwise. Errors wrap ErrFull or ErrInvalid.
func (v *Vin) AddGeneration(g Generation) (number int, err error) {
	number = len(v.generations)
	if number >= MaxGenerations {
		return 0, fmt.Errorf("add generation %d: %w", number, ErrFull)
	}
	if !v.admits(&g) {
		return 0, fmt.Errorf("add generation %d at %#x to %#x: %w", number, g.Start, g.End, ErrInvalid)
	}
	v.generations = append(v.generations, generation{Generation: g, targets: slices.Clone(v.generations[0].targets)})
	return number, nil
}

// admits reports a build with names that have room, mapped outside the vIN.
func (v *Vin) admits(g *Generation) bool {
	base := v.config.Base
	return g.Start < g.End && g.End <= addressEnd && (g.End <= base || g.Start >= base+v.layout.end) && validText(g.BuildID, maxBuildID) && validText(g.Name, maxName)
}

// Generations returns all builds, the original first.
func (v *Vin) Generations() []Generation {
	all := make([]Generation, len(v.generations))
	for i := range all {
		all[i] = v.generations[i].Generation
	}
	return all
}

// Before returns the generation that ran before one was let run: 0 where it was
// not, and of the original, before which nothing ran.
func (v *Vin) Before(number int) int {
	if number < 1 || number >= len(v.generations) {
		return 0
	}
	return v.generations[number].before
}

// Follow records that a generation is to run after the one that runs. Where it
// has run already it leaves that place: Before leads from it to all that ran, each
// once, the last first, and at the end to the original. For the original, and the
// one that runs, nothing changes.
func (v *Vin) Follow(number int) error {
	if number < 0 || number >= len(v.generations) {
		return fmt.Errorf("let generation %d of %d follow: %w", number, len(v.generations), ErrInvalid)
	}
	if number == 0 || number == v.current {
		return nil
	}
	v.leave(number)
	v.generations[number].before = v.current
	return nil
}

// leave lets what came after a generation follow the one before it.
func (v *Vin) leave(number int) {
	for g := range v.generations {
		if g > 0 && v.generations[g].before == number {
			v.generations[g].before = v.generations[number].before
		}
	}
}

// TakeOrder makes Before answer as it does of another vIN of the same module.
func (v *Vin) TakeOrder(of *Vin) {
	for g := range v.generations {
		v.generations[g].before = min(of.Before(g), len(v.generations)-1)
	}
}

// SetTarget makes an entry lead to an address in a generation other than 0: one
// in the mapping of that generation or of one before, or generation 0's target.
func (v *Vin) SetTarget(generation, index int, address uint64) error {
	if generation < 1 || generation >= len(v.generations) || index < 0 || index >= len(v.entries) ||
		!v.mayTarget(generation, index, address) {
		return fmt.Errorf("lead entry %d to %#x in generation %d: %w", index, address, generation, ErrInvalid)
	}
	v.generations[generation].targets[index] = address
	return nil
}

func (v *Vin) mayTarget(generation, index int, address uint64) bool {
	if address == v.entries[index].Trampoline {
		return true
	}
	for g := 1; g <= generation; g++ {
		if address >= v.generations[g].Start && address < v.generations[g].End {
			return true
		}
	}
	return false
}

// Target returns where an entry leads in a generation; 0 where there is no such.
func (v *Vin) Target(generation, index int) uint64 {
	if generation < 0 || generation >= len(v.generations) || index < 0 || index >= len(v.entries) {
		return 0
	}
	return v.generations[generation].targets[index]
}

// MergeSize is the most bytes that one Merge can have.
const MergeSize = 32

// A Merge is a piece of the module's data that got the initial value of a
// generation's build, as the program had not changed the one before. Before and
// After are as long as each other, 1 to MergeSize bytes; what is longer is
// several merges. Going back restores Before where After still is.
type Merge struct {
	Address       uint64
	Before, After []byte
}

type mergeOf struct {
	generation int
	Merge
}

// AddMerge records a merge of a generation other than 0. Errors wrap ErrFull or
// ErrInvalid.
func (v *Vin) AddMerge(generation int, m Merge) error {
	if len(v.merges) >= MaxMerges {
		return fmt.Errorf("add merge at %#x: %d merges: %w", m.Address, len(v.merges), ErrFull)
	}
	n := len(m.After)
	if generation < 1 || generation >= len(v.generations) || n != len(m.Before) || n < 1 || n > MergeSize ||
		m.Address == 0 || m.Address >= addressEnd-uint64(n) {
		return fmt.Errorf("add merge of %d bytes at %#x of generation %d: %w", n, m.Address, generation, ErrInvalid)
	}
	v.merges = append(v.merges, mergeOf{generation, Merge{m.Address, bytes.Clone(m.Before), bytes.Clone(m.After)}})
	return nil
}

// Merges returns the merges of a generation in the order of adding; they are not
// to be written to.
func (v *Vin) Merges(generation int) []Merge {
	var all []Merge
	for _, m := range v.merges {
		if m.generation == generation {
			all = append(all, m.Merge)
		}
	}
	return all
}

// DropGeneration takes the last generation away, as if it had never been added:
// it must not run and have no merges.
func (v *Vin) DropGeneration() error {
	last := len(v.generations) - 1
	if last == 0 || v.current == last || len(v.Merges(last)) != 0 {
		return fmt.Errorf("drop generation %d: %w", last, ErrInvalid)
	}
	v.leave(last)
	v.generations = v.generations[:last]
	v.pending = Pending{}
	return nil
}

// DropMerges takes the merges of a generation away, when they are undone. They
// must be the last ones, so that one store of a count does it.
func (v *Vin) DropMerges(generation int) error {
	n := len(v.merges)
	for n > 0 && v.merges[n-1].generation == generation {
		n--
	}
	for _, m := range v.merges[:n] {
		if m.generation == generation {
			return fmt.Errorf("drop merges of generation %d: others follow: %w", generation, ErrInvalid)
		}
	}
	v.merges = v.merges[:n]
	return nil
}
