package module

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Word is a relocated word that is not what it should be.
type Word struct {
	Address  uint64 // in the process
	Found    uint64
	Expected uint64 // where Known
	Known    bool
	Symbol   string // that an import should point at, "" of a RELATIVE word
	Reason   string // why what should be there is not known
}

// wordReader reads words of a process, a page at a time.
type wordReader struct {
	memory *procfs.Memory
	page   uint64
	valid  bool
	buf    [procfs.PageSize]byte
}

func (r *wordReader) read(address uint64) (uint64, error) {
	page := address &^ (procfs.PageSize - 1)
	at := address - page
	if at > procfs.PageSize-8 {
		var word [8]byte
		_, err := r.memory.ReadAt(word[:], int64(address))
		return binary.LittleEndian.Uint64(word[:]), err
	}
	if !r.valid || r.page != page {
		r.valid = false
		if _, err := r.memory.ReadAt(r.buf[:], int64(page)); err != nil {
			return 0, err
		}
		r.page, r.valid = page, true
	}
	return binary.LittleEndian.Uint64(r.buf[at:]), nil
}

// compareStaged compares the sealed words of a staged module with its file, which
// has them relocated. Import slots may lead to stubs by now.
func (p *Process) compareStaged(c *Comparison) error {
	m := c.Module
	memory, err := p.openMemory()
	if err != nil {
		return err
	}
	words := &wordReader{memory: memory}
	for r, err := range m.Object.Relocations() {
		if err != nil {
			return err
		}
		if !m.Object.RELRO.Contains(r.Offset) {
			continue
		}
		expected, err := m.Object.Bytes(r.Offset, 8)
		if err != nil {
			return err
		}
		address := r.Offset + m.Bias
		found, err := words.read(address)
		if err != nil {
			return err
		}
		c.Words++
		if want := binary.LittleEndian.Uint64(expected); found != want && p.behindInterceptor(found) != want && p.behindStub(found) != want && len(c.Bad) < maxRuns {
			c.Bad = append(c.Bad, Word{Address: address, Found: found, Expected: want, Known: true, Symbol: r.Name})
		}
	}
	return nil
}

// compareWords checks the words that the loader relocated and that nobody may
// change afterwards.
func (p *Process) compareWords(c *Comparison) error {
	m := c.Module
	if m.Staged() {
		return p.compareStaged(c)
	}
	if unchecked := p.unsealed(m); unchecked != nil {
		c.Unchecked = append(c.Unchecked, *unchecked)
		return nil
	}
	memory, err := p.openMemory()
	if err != nil {
		return err
	}
	words := &wordReader{memory: memory}
	for r, err := range m.Object.Relocations() {
		if err != nil {
			return err
		}
		sealed := m.Object.RELRO.Contains(r.Offset)
		var bad *Word
		switch r.Type {
		case elf.R_X86_64_RELATIVE:
			if !sealed || m.Kind == Loader {
				continue // ld.so seals its own data after it has changed them
			}
			bad, err = p.checkRelative(words, m, r)
		case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT:
			bad, err = p.checkImport(words, m, r, sealed)
		case elf.R_X86_64_64:
			if !sealed || m.Kind == Loader {
				continue
			}
			bad, err = p.checkImport(words, m, r, sealed)
		default:
			continue
		}
		if err != nil {
			return err
		}
		c.Words++
		if bad != nil && len(c.Bad) < maxRuns {
			c.Bad = append(c.Bad, *bad)
		}
	}
	return nil
}

// unsealed tells of a module whose relocated words may be changed rightly, as
// its RELRO data are not sealed; nil if they are. The loader may have been at
// work on it when the process was inspected: it maps the whole read-only at
// first, then the writable segment over that, and write-protects RELRO of it when
// all is relocated (in whole pages, _dl_protect_relro in glibc's
// elf/dl-reloc.c). Or the program has made them writable again, or it relocates
// itself and never seals them (musl, static).
func (p *Process) unsealed(m *Module) *api.Refusal {
	const page = ^uint64(procfs.PageSize - 1)
	relro := m.Object.RELRO
	start, end := (relro.Addr+m.Bias)&page, (relro.End()+m.Bias)&page
	if start >= end {
		return nil
	}
	if at, writable := p.firstWritable(start, end); writable {
		return &api.Refusal{Code: codeRELROWritable, Subject: m.Name,
			Detail: fmt.Sprintf("its relocated constants are not compared: they are writable at 0x%x: the program has made them so, never sealed them, or is still loading the module", at),
			Remedy: "verify again if the program was just started; otherwise none is known"}
	}
	segment, ok := m.Object.SegmentAt(relro.Addr)
	if hasRest := ok && end < segment.Vaddr+segment.Memsz+m.Bias; hasRest && !p.writable(end) {
		return &api.Refusal{Code: codeLoading, Subject: m.Name,
			Detail: "its relocated constants are not compared: its data are not mapped yet", Remedy: "verify again"}
	}
	return nil
}

// firstWritable returns the first address from start to end that the process may
// write to.
func (p *Process) firstWritable(start, end uint64) (at uint64, found bool) {
	for i := range p.maps {
		if m := &p.maps[i]; m.Start < end && m.End > start && m.Perms&procfs.Write != 0 {
			return max(start, m.Start), true
		}
	}
	return 0, false
}

func (p *Process) writable(address uint64) bool {
	return slices.ContainsFunc(p.maps, func(m procfs.Mapping) bool { return m.Contains(address) && m.Perms&procfs.Write != 0 })
}

func (p *Process) checkRelative(words *wordReader, m *Module, r dso.Relocation) (*Word, error) {
	address := r.Offset + m.Bias
	found, err := words.read(address)
	if err != nil {
		return nil, err
	}
	expected := m.Bias + uint64(r.Addend)
	if found == expected {
		return nil, nil
	}
	return &Word{Address: address, Found: found, Expected: expected, Known: true}, nil
}

// checkImport checks that a word points at its symbol in a module that defines
// it. Which of several, the loader decided by its order of search.
func (p *Process) checkImport(words *wordReader, m *Module, r dso.Relocation, sealed bool) (*Word, error) {
	address := r.Offset + m.Bias
	found, err := words.read(address)
	if err != nil {
		return nil, err
	}
	symbols, err := m.Object.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	symbol, ok := symbols.At(r.Symbol)
	if !ok || symbol.Name == "" {
		return nil, nil // R_X86_64_64 without a symbol: a section's address
	}
	target := found - uint64(r.Addend)
	if r.Type == elf.R_X86_64_JMP_SLOT {
		target = found // its addend is not added
	}
	if target == 0 && symbol.Binding == elf.STB_WEAK && !symbol.Defined() {
		return nil, nil
	}
	if symbol.Defined() && target == m.Bias+symbol.Value {
		return nil, nil // bound to the module's own
	}
	if r.Type == elf.R_X86_64_JMP_SLOT && !m.Object.BindNow() {
		if stub, err := m.Object.Bytes(r.Offset, 8); err == nil && found == m.Bias+binary.LittleEndian.Uint64(stub) {
			return nil, nil // not called yet
		}
	}
	if p.defines(p.behindStub(target), symbol) {
		return nil, nil
	}
	bad := &Word{Address: address, Found: found, Symbol: symbol.String()}
	expected, err := p.onlyDefinition(symbol)
	if err != nil {
		bad.Reason = err.Error()
	} else {
		bad.Expected, bad.Known = expected, true
		if r.Type != elf.R_X86_64_JMP_SLOT {
			bad.Expected += uint64(r.Addend)
		}
	}
	return bad, nil
}

// defines reports whether the module at target defines the symbol there.
func (p *Process) defines(target uint64, symbol dso.Symbol) bool {
	m := p.moduleAt(target)
	if m == nil || m.Object == nil {
		// A module that can't be read could define anything.
		return m != nil
	}
	definition, ok, err := m.Object.Lookup(symbol.Name, symbol.Version)
	if err != nil {
		return true
	}
	if ok && m.points(target, definition) {
		return true
	}
	// An executable that takes the address of an imported function stands for
	// it with an entry of its own PLT: undefined, with a value. A symbol may
	// also be defined in several versions.
	symbols, err := m.Object.DynamicSymbols()
	if err != nil {
		return true
	}
	for s := range symbols.All() {
		if s.Name == symbol.Name && s.Value != 0 && m.points(target, s) {
			return true
		}
	}
	return false
}

// points reports whether a process address is that of a module's symbol. What
// an IFUNC's resolver returns is known to be code of the module.
func (m *Module) points(target uint64, s dso.Symbol) bool {
	if s.IsIFUNC() {
		segment, ok := m.Object.SegmentAt(target - m.Bias)
		return ok && segment.Flags&elf.PF_X != 0
	}
	return target == m.Bias+s.Value || s.Section == elf.SHN_ABS && target == s.Value
}

// onlyDefinition returns the address of a symbol that one module alone defines:
// then the order of search does not matter.
func (p *Process) onlyDefinition(symbol dso.Symbol) (uint64, error) {
	var address uint64
	var definer *Module
	for _, m := range p.Modules {
		if m.Object == nil || m.Kind == VDSO {
			continue
		}
		s, ok, err := m.Object.Lookup(symbol.Name, symbol.Version)
		if err != nil || !ok {
			continue
		}
		switch {
		case definer != nil:
			return 0, fmt.Errorf("both %s and %s define %s", definer.Name, m.Name, symbol)
		case s.IsIFUNC():
			return 0, fmt.Errorf("%s in %s is chosen at run time (IFUNC)", symbol, m.Name)
		}
		address, definer = m.Bias+s.Value, m
	}
	if definer == nil {
		return 0, fmt.Errorf("no module defines %s", symbol)
	}
	return address, nil
}
