package module

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// imports finds what the loader would store into the words of another build of a
// module. What the running build imports as well has the value that it has
// there, as the loader found it in the program's own order of search. The rest is
// looked up.
type imports struct {
	p        *Process
	old      *Module
	new      *dso.Object
	newBias  uint64
	bound    map[string]uint64 // addresses by symbol key
	lazy     map[string]uint64 // what a slot that is not bound yet leads to
	thread   map[threadWord]uint64
	defining []*Module // in the loader's order of search
}

// A threadWord is a relocation of thread-local storage, which depends on the
// symbol (or the module itself) and the type alone.
type threadWord struct {
	key    string
	kind   elf.R_X86_64
	addend int64
}

// errImport is an import that nothing in the process provides.
var errImport = errors.New("nothing in the process provides it")

// key is the name under which two builds' symbols are the same to the loader.
func symbolKey(s dso.Symbol) string {
	if s.Version == "" {
		return s.Name
	}
	return s.Name + "@" + s.Version
}

// readImports reads the words of the running build.
func (p *Process) readImports(old *Module, new *dso.Object, newBias uint64) (*imports, error) {
	in := &imports{p: p, old: old, new: new, newBias: newBias,
		bound: map[string]uint64{}, lazy: map[string]uint64{}, thread: map[threadWord]uint64{}}
	memory, err := p.openMemory()
	if err != nil {
		return nil, err
	}
	symbols, err := old.Object.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	words := &wordReader{memory: memory}
	for r, err := range old.Object.Relocations() {
		if err != nil {
			return nil, err
		}
		s, _ := symbols.At(r.Symbol)
		key := symbolKey(s)
		switch r.Type {
		case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT, elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64:
		default:
			continue
		}
		value, err := words.read(r.Offset + old.Bias)
		if err != nil {
			return nil, err
		}
		switch r.Type {
		case elf.R_X86_64_GLOB_DAT:
			in.bound[key] = p.behindInterceptor(value)
		case elf.R_X86_64_JMP_SLOT:
			if old.unbound(r, value) {
				in.lazy[key] = value
			} else if _, known := in.bound[key]; !known {
				in.bound[key] = p.behindInterceptor(value)
			}
		default:
			in.thread[threadWord{key, r.Type, r.Addend}] = value
		}
	}
	in.defining, err = p.searchOrder()
	return in, err
}

// unbound reports whether a slot still leads to the loader's resolver, as it
// does until its function is called for the first time.
func (m *Module) unbound(r dso.Relocation, value uint64) bool {
	if m.Object.BindNow() {
		return false
	}
	stub, err := m.Object.Bytes(r.Offset, 8)
	return err == nil && value == m.Bias+binary.LittleEndian.Uint64(stub)
}

// word returns what the loader would store for a relocation of the new build.
func (in *imports) word(r dso.Relocation) (uint64, error) {
	symbols, err := in.new.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	s, _ := symbols.At(r.Symbol)
	key := symbolKey(s)
	switch r.Type {
	case elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64:
		return in.threadWord(r, s)
	}
	value, ok := in.bound[key]
	if own, err := in.ownConstant(s, value, ok); err != nil || own {
		value, ok = in.newBias+s.Value, true
		if err != nil {
			return 0, err
		}
	} else if !ok {
		value, ok, err = in.lookup(s)
		if err != nil {
			return 0, err
		}
	}
	if !ok && r.Type == elf.R_X86_64_JMP_SLOT {
		value, ok = in.lazy[key] // the old build's resolver finds it, at each call
	}
	switch {
	case ok && r.Type == elf.R_X86_64_64 && value != 0:
		return value + uint64(r.Addend), nil
	case ok:
		return value, nil
	case s.Binding == elf.STB_WEAK:
		return 0, nil
	}
	return 0, fmt.Errorf("import %s: %w", key, errImport)
}

// ownConstant reports whether a symbol is a constant that the new build must have
// for itself: both builds define it and its contents differ. The same contents
// are better taken from the running build, whose address the program may have.
func (in *imports) ownConstant(s dso.Symbol, bound uint64, isBound bool) (bool, error) {
	if !s.Defined() || s.Type != elf.STT_OBJECT || s.Size == 0 || isBound && !in.old.Contains(bound) {
		return false, nil
	}
	constant := func(o *dso.Object, at uint64) bool {
		segment, ok := o.SegmentAt(at)
		return ok && segment.Flags&elf.PF_W == 0
	}
	was, ok, err := in.old.Object.Lookup(s.Name, s.Version)
	if err != nil || !ok || !constant(in.new, s.Value) || !constant(in.old.Object, was.Value) {
		return false, err
	}
	if was.Size != s.Size {
		return true, nil
	}
	a, err := in.old.Object.Bytes(was.Value, was.Size)
	if err != nil {
		return false, err
	}
	b, err := in.new.Bytes(s.Value, s.Size)
	return !bytes.Equal(a, b), err
}

// threadWord returns a word of thread-local storage: the running build's.
func (in *imports) threadWord(r dso.Relocation, s dso.Symbol) (uint64, error) {
	if value, ok := in.thread[threadWord{symbolKey(s), r.Type, r.Addend}]; ok {
		return value, nil
	}
	own := r.Symbol == 0 || s.Defined()
	switch {
	case own && r.Type == elf.R_X86_64_DTPOFF64:
		return s.Value + uint64(r.Addend), nil
	case own && r.Type == elf.R_X86_64_DTPMOD64:
		// The number is the module's, by whatever name.
		for w, value := range in.thread {
			if w.kind == elf.R_X86_64_DTPMOD64 && in.ownThreadLocal(w.key) {
				return value, nil
			}
		}
	}
	return 0, fmt.Errorf("thread-local %s (%v): %w", orNone(symbolKey(s)), r.Type, errImport)
}

// ownThreadLocal reports whether a key of the old build is its own: none, or a
// symbol that it defines.
func (in *imports) ownThreadLocal(key string) bool {
	if key == "" {
		return true
	}
	symbols, err := in.old.Object.DynamicSymbols()
	if err != nil {
		return false
	}
	for s := range symbols.All() {
		if s.IsTLS() && s.Defined() && symbolKey(s) == key {
			return true
		}
	}
	return false
}

// lookup searches the process for a symbol that the running build doesn't
// import. What the new build defines itself is the running build's where that
// defines it as well.
func (in *imports) lookup(s dso.Symbol) (uint64, bool, error) {
	preemptible := s.Visibility == elf.STV_DEFAULT || !s.Defined()
	for _, m := range in.defining {
		if !preemptible && m != in.old {
			continue
		}
		found, ok, err := m.Object.Lookup(s.Name, s.Version)
		if err != nil {
			return 0, false, fmt.Errorf("look up %s in %s: %w", s.Name, m.Name, err)
		}
		if !ok || found.IsTLS() {
			continue
		}
		if found.IsIFUNC() {
			return in.resolved(m, found, s)
		}
		return m.Bias + found.Value, true, nil
	}
	if s.Defined() && !s.IsIFUNC() {
		return in.newBias + s.Value, true, nil
	}
	return 0, false, nil
}

// resolved returns what the resolver of an IFUNC chose when the loader called it:
// the module that defines it may have a word for its own calls
// (R_X86_64_IRELATIVE), others have import slots.
func (in *imports) resolved(m *Module, ifunc, wanted dso.Symbol) (uint64, bool, error) {
	memory, err := in.p.openMemory()
	if err != nil {
		return 0, false, err
	}
	words := &wordReader{memory: memory}
	for r, err := range m.Object.Relocations() {
		if err != nil {
			return 0, false, err
		}
		if r.Type == elf.R_X86_64_IRELATIVE && uint64(r.Addend) == ifunc.Value {
			value, err := words.read(r.Offset + m.Bias)
			return value, err == nil && m.Contains(value), err
		}
	}
	for _, importer := range in.defining {
		symbols, err := importer.Object.DynamicSymbols()
		if err != nil {
			return 0, false, err
		}
		for r, err := range importer.Object.Relocations() {
			if err != nil {
				return 0, false, err
			}
			if r.Name != wanted.Name || r.Type != elf.R_X86_64_GLOB_DAT && r.Type != elf.R_X86_64_JMP_SLOT {
				continue
			}
			if s, ok := symbols.At(r.Symbol); !ok || s.Version != wanted.Version {
				continue
			}
			value, err := words.read(r.Offset + importer.Bias)
			if err != nil {
				return 0, false, err
			}
			if value = in.p.behindInterceptor(value); !importer.unbound(r, value) && m.Contains(value) {
				return value, true, nil
			}
		}
	}
	return 0, false, nil
}

// searchOrder returns the modules that symbols are looked up in, as the loader's
// list of them goes: the executable, then the libraries in the order of loading.
func (p *Process) searchOrder() ([]*Module, error) {
	byBias := make(map[uint64]*Module)
	for _, m := range p.Modules {
		if m.Object == nil || m.Staged() {
			continue
		}
		byBias[m.Bias] = m
	}
	list, err := p.linkMap()
	if err != nil {
		return nil, err
	}
	var order []*Module
	for _, bias := range list {
		if m := byBias[bias]; m != nil && !slices.Contains(order, m) {
			order = append(order, m)
		}
	}
	return order, nil
}

// linkMap returns the load addresses of the loader's list of modules: struct
// r_debug and struct link_map of <link.h>, which musl has, too.
func (p *Process) linkMap() ([]uint64, error) {
	memory, err := p.openMemory()
	if err != nil {
		return nil, err
	}
	word := func(at uint64) (uint64, error) {
		var b [8]byte
		if _, err := memory.ReadAt(b[:], int64(at)); err != nil {
			return 0, fmt.Errorf("read the loader's list of modules: %w", err)
		}
		return binary.LittleEndian.Uint64(b[:]), nil
	}
	debug, err := p.loaderDebug()
	if err != nil {
		return nil, err
	}
	if debug == 0 {
		return nil, fmt.Errorf("read the loader's list of modules: process %d has none: %w", p.PID(), procfs.ErrUnmapped)
	}
	at, err := word(debug + debugMap)
	if err != nil {
		return nil, err
	}
	var list []uint64
	for at != 0 && len(list) < maxLinks {
		bias, err := word(at + linkBiasAt)
		if err != nil {
			return nil, err
		}
		list = append(list, bias)
		if at, err = word(at + linkNextAt); err != nil {
			return nil, err
		}
	}
	return list, nil
}
