package match

import (
	"cmp"
	"slices"
	"sort"

	"github.com/virtualizing-os/vos/internal/x86"
)

// A stub is an entry of the PLT: a jump through a slot.
type stub struct {
	addr uint64
	slot uint64
}

// stubAt decodes a stub: at most an endbr64, then a jump through a slot that a
// relocation fills in. nil where there is none.
func (b *Build) stubAt(addr uint64) *stub {
	i := sort.Search(len(b.stubs), func(i int) bool { return b.stubs[i].addr >= addr })
	if i < len(b.stubs) && b.stubs[i].addr == addr {
		return &b.stubs[i]
	}
	code := b.im.at(addr)
	at := addr
	for range 2 {
		inst, err := x86.Decode(code)
		if err != nil {
			return nil
		}
		if inst.Flow == x86.JumpIndirect && inst.IsRIPRelative() {
			slot, _ := inst.Target(at)
			if w := b.wordAt(slot); w != nil && (w.isSlot() || w.plt) {
				return &stub{addr, slot}
			}
			return nil
		}
		endbr := inst.Map == x86.Map0F && inst.Opcode == 0x1e && inst.Len == 4
		if !endbr {
			return nil
		}
		code, at = code[inst.Len:], at+uint64(inst.Len)
	}
	return nil
}

// readStubs finds the stubs that code refers to.
func (b *Build) readStubs() {
	seen := map[uint64]bool{}
	for i := range b.References {
		r := &b.References[i]
		if r.Mode == Access || seen[r.Target] || b.FunctionAt(r.Target) >= 0 || b.im.region(b.Object, r.Target) != Text {
			continue
		}
		seen[r.Target] = true
		if s := b.stubAt(r.Target); s != nil {
			b.stubs = append(b.stubs, *s)
		}
	}
	slices.SortFunc(b.stubs, func(x, y stub) int { return cmp.Compare(x.addr, y.addr) })
}

// resolve says of each reference what it leads to, and marks functions whose
// address is taken and those that are called directly.
func (b *Build) resolve() {
	b.readStubs()
	for i := range b.Functions {
		f := &b.Functions[i]
		for k := f.first; k < f.last; k++ {
			b.resolveReference(&b.References[k])
			r := &b.References[k]
			if r.To < 0 || r.Region != Text {
				continue
			}
			to := &b.Functions[r.To]
			if r.Target != to.Addr {
				continue
			}
			switch r.Mode {
			case Address, Through:
				to.AddressTaken = true
			case Call, Jump:
				if int(r.To) != i {
					to.DirectCalled = true
				}
			}
		}
	}
	arrays := b.startupWords()
	for k := range b.words {
		w := &b.words[k]
		if w.target == 0 || w.isSlot() || arrays[w.at] {
			continue
		}
		if t := b.FunctionAt(w.target); t >= 0 && b.Functions[t].Addr == w.target {
			b.Functions[t].AddressTaken = true
		}
	}
}

func (b *Build) resolveReference(r *Reference) {
	p := b.im.placeAt(r.Target)
	if p != nil {
		r.Region = p.region
	} else {
		r.Region = b.im.regionOf(b.Object, r.Target)
	}
	switch r.Region {
	case Text:
		if at := b.FunctionAt(r.Target); at >= 0 {
			r.To = int32(at)
			return
		}
		if s := b.stubAt(r.Target); s != nil {
			b.throughSlot(r, b.wordAt(s.slot), false)
			return
		}
		if r.Mode == Address || r.Mode == Access {
			r.Region = Const // a table within .text
		}
	case Relro, Data, Slot:
		if w := b.wordAt(r.Target); w != nil {
			// A pointer of .got that the linker made is no data of the program's.
			if w.isSlot() || w.plt || r.Region == Slot && w.target != 0 {
				b.throughSlot(r, w, r.Mode == Address)
			}
		}
	}
}

// throughSlot makes a reference of a slot one of what the slot leads to.
func (b *Build) throughSlot(r *Reference, w *word, address bool) {
	if w.isTLS() {
		r.Region = TLS
		r.To = b.importName("tls " + w.name)
		if w.name == "" {
			r.To = b.importName("tls")
		}
		return
	}
	if address { // the slot's own address: code of the PLT or the loader's
		r.Region, r.To = Slot, b.importName("slot of "+w.name)
		return
	}
	if w.name != "" {
		// Whoever defines it: the loader decides, and exports are checked by name.
		r.Region, r.To = Slot, b.importName(w.name)
		if r.Mode == Access {
			r.Mode = Through
		}
		return
	}
	if r.Mode == Access {
		r.Mode = Through
	}
	r.Target, r.Width = w.target, 0
	r.Region = b.im.region(b.Object, w.target)
	if r.Region == Text {
		if at := b.FunctionAt(w.target); at >= 0 {
			r.To = int32(at)
		} else {
			r.Region = Const
		}
	}
}
