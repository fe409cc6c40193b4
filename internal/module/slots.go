package module

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// An ImportSlot is a word of a module that the loader bound, or will bind, to an
// imported function.
type ImportSlot struct {
	Importer *Module
	Symbol   dso.Symbol
	Address  uint64 // of the word
	Value    uint64 // what it holds
	Target   uint64 // the function that it leads to, behind what vOS put there; 0 if that is not certain
	Lazy     bool   // it is not bound yet: the function has not been called by this module

	// Taken tells that its value may be used as a pointer, compared or kept, and
	// not just called.
	Taken bool
}

// importSlots returns the slots of all modules that import functions.
func (p *Process) importSlots() ([]ImportSlot, error) {
	memory, err := p.openMemory()
	if err != nil {
		return nil, err
	}
	order, err := p.searchOrder()
	if err != nil {
		return nil, err
	}
	words := &wordReader{memory: memory}
	var all []ImportSlot
	for _, m := range p.Modules {
		if m.Object == nil || m.Kind == Loader || m.Kind == VDSO {
			continue
		}
		slots, err := p.slotsOf(m, words, order)
		if errors.Is(err, procfs.ErrAddress) && m.Opened {
			continue // the program has closed it meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("import slots of %s: %w", m.Name, err)
		}
		all = append(all, slots...)
	}
	passEntries(all)
	return all, nil
}

// passEntries lets slots lead to functions, which hold entries of the executable's
// PLT: one that takes a function's address, and is not position-independent, stands
// for it with such an entry, in all modules. What passes there is counted as the
// executable's.
func passEntries(slots []ImportSlot) {
	functions := make(map[uint64]uint64)
	for _, s := range slots {
		if s.Symbol.Value != 0 && !s.Symbol.Defined() && s.Target != 0 {
			functions[s.Importer.Bias+s.Symbol.Value] = s.Target
		}
	}
	for i := range slots {
		if function, ok := functions[slots[i].Target]; ok {
			slots[i].Target = function
		}
	}
}

func (p *Process) slotsOf(m *Module, words *wordReader, order []*Module) ([]ImportSlot, error) {
	symbols, err := m.Object.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	taken, err := p.files.takenSlots(m.Object)
	if err != nil {
		return nil, err
	}
	var all []ImportSlot
	for r, err := range m.Object.Relocations() {
		if err != nil {
			return nil, err
		}
		switch r.Type {
		case elf.R_X86_64_JMP_SLOT, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_64:
		default:
			continue
		}
		s, ok := symbols.At(r.Symbol)
		if !ok || s.Name == "" || r.Type == elf.R_X86_64_64 && r.Addend != 0 || s.IsTLS() || s.Type == elf.STT_OBJECT {
			continue
		}
		slot := ImportSlot{Importer: m, Symbol: s, Address: r.Offset + m.Bias, Taken: r.Type == elf.R_X86_64_64 || r.Type == elf.R_X86_64_GLOB_DAT && taken[r.Offset]}
		if slot.Value, err = words.read(slot.Address); err != nil {
			return nil, err
		}
		if slot.Value == 0 {
			continue // weak, and nobody defines it
		}
		slot.Lazy = r.Type == elf.R_X86_64_JMP_SLOT && m.unbound(r, slot.Value)
		if slot.Lazy {
			if slot.Target, err = binding(order, m, s); err != nil {
				return nil, err
			}
		} else {
			slot.Target = p.behindInterceptor(slot.Value)
		}
		if slot.Target != 0 && !p.executable(slot.Target) {
			if !slot.Lazy {
				continue // a variable, of which the symbol does not tell
			}
			slot.Target = 0
		}
		all = append(all, slot)
	}
	return all, nil
}

// executable reports whether an address can be called: code of a module, or a stub
// of a vIN.
func (p *Process) executable(address uint64) bool {
	i, _ := slices.BinarySearchFunc(p.maps, address, func(m procfs.Mapping, at uint64) int {
		if m.End <= at {
			return -1
		}
		return 1
	})
	return i < len(p.maps) && p.maps[i].Contains(address) && p.maps[i].Perms&procfs.Exec != 0
}

// binding returns what the loader would bind a symbol to that a module imports, 0
// where that is not certain: which modules a library sees that dlopen brought, and in
// which order, is not known, nor what a resolver (IFUNC) would return.
func binding(order []*Module, importer *Module, s dso.Symbol) (uint64, error) {
	if !slices.Contains(order, importer) {
		return 0, nil // of another namespace (dlmopen)
	}
	var first *Module
	var found dso.Symbol
	for _, m := range order {
		definition, ok, err := m.Object.Lookup(s.Name, s.Version)
		switch {
		case err != nil:
			return 0, fmt.Errorf("look up %s in %s: %w", s.Name, m.Name, err)
		case !ok:
		case first == nil:
			first, found = m, definition
		case !m.startup && !importer.startup:
			return 0, nil // which of them depends on scopes
		}
	}
	if first == nil || found.IsIFUNC() || found.IsTLS() || found.Section == elf.SHN_ABS ||
		!first.startup && importer.startup || importer.Object.Flags&elf.DF_SYMBOLIC != 0 {
		return 0, nil
	}
	return first.Bias + found.Value, nil
}

// takenSlots returns the GLOB_DAT slots of an object, by their object addresses,
// that its code does other things with than call or jump to what they hold. Any
// four bytes that would be the distance to a slot count: code is not decoded, so
// nothing hides between its instructions.
func (s *Store) takenSlots(o *dso.Object) (map[uint64]bool, error) {
	s.mu.Lock()
	once := s.taken[o]
	if once == nil {
		once = sync.OnceValues(func() (map[uint64]bool, error) { return takenSlots(o) })
		s.taken[o] = once
	}
	s.mu.Unlock()
	return once()
}

func takenSlots(o *dso.Object) (map[uint64]bool, error) {
	taken := make(map[uint64]bool)
	low, high := ^uint64(0), uint64(0)
	for r, err := range o.Relocations() {
		if err != nil {
			return nil, err
		}
		if r.Type == elf.R_X86_64_GLOB_DAT {
			taken[r.Offset] = false
			low, high = min(low, r.Offset), max(high, r.Offset)
		}
	}
	if len(taken) == 0 {
		return taken, nil
	}
	for _, segment := range o.Mappings() {
		if segment.Segment.Flags&elf.PF_X == 0 {
			continue
		}
		code := make([]byte, segment.Exact)
		if err := o.ReadMapped(code, segment.Addr); err != nil {
			return nil, err
		}
		for at := 2; at+4 <= len(code); at++ {
			target := segment.Addr + uint64(at) + 4 + uint64(int64(int32(binary.LittleEndian.Uint32(code[at:]))))
			// An immediate of up to four bytes may follow the distance.
			if target+4 < low || target > high {
				continue
			}
			for _, immediate := range []uint64{0, 1, 2, 4} {
				known, isSlot := taken[target+immediate]
				if !isSlot || known {
					continue
				}
				calls := code[at-2] == 0xff && (code[at-1] == 0x15 || code[at-1] == 0x25) // call *slot(%rip), jmp *slot(%rip)
				if immediate != 0 || !calls {
					taken[target+immediate] = true
				}
			}
		}
	}
	return taken, nil
}
