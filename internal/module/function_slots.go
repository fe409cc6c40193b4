package module

import (
	"context"
	"debug/elf"
	"errors"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// A FunctionSlot is a word through which a module reaches a function of another one, or an
// exported one of its own: the program's handle of it.
type FunctionSlot struct {
	Address uint64
	Symbol  string
	Target  uint64  // what the word says; 0 is an absent weak import
	Of      *Module // where calls arrive; nil is not known
	Lazy    bool    // not called yet: Target is the module's own way to the loader

	// Led tells that calls through the slot come to a vIN, one that counts them or one
	// that leads them to Generation of Of: by the slot itself, or by the jump at the
	// function's entry.
	Led        bool
	Generation int
}

// FunctionSlots reads the import slots of functions of a module, in the order of its
// relocations.
func (p *Process) FunctionSlots(ctx context.Context, m *Module) ([]FunctionSlot, error) {
	if m.Object == nil || m.Kind == VDSO {
		return nil, nil
	}
	symbols, err := m.Object.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	memory, err := p.openMemory()
	if err != nil {
		return nil, err
	}
	led := map[uint64]*Module{} // by stub
	for of, v := range p.vins {
		for _, e := range v.Entries() {
			led[e.Stub] = of
		}
	}
	var slots []FunctionSlot
	words := &wordReader{memory: memory}
	for r, err := range m.Object.Relocations() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return slots, err
		}
		symbol, ok := symbols.At(r.Symbol)
		jump := r.Type == elf.R_X86_64_JMP_SLOT
		if !ok || symbol.Name == "" || !jump && (r.Type != elf.R_X86_64_GLOB_DAT || !symbol.IsFunction()) {
			continue
		}
		s := FunctionSlot{Address: r.Offset + m.Bias, Symbol: symbolKey(symbol)}
		s.Target, err = words.read(s.Address)
		if errors.Is(err, procfs.ErrAddress) {
			return slots, nil // the program has closed the module meanwhile
		}
		if err != nil {
			return slots, err
		}
		function := p.behindInterceptor(s.Target)
		s.Led = function != s.Target
		switch of, ok := led[function]; {
		case ok:
			s.Of, s.Led, s.Generation = of, true, of.Generation
		case jump && m.unbound(r, function):
			s.Lazy = true
		default:
			s.Of = p.moduleAt(function)
			if v := p.vins[s.Of]; v != nil && s.Of.Generation > 0 {
				if _, ok := v.Find(function); ok {
					s.Led, s.Generation = true, s.Of.Generation
				}
			}
		}
		slots = append(slots, s)
	}
	return slots, nil
}
