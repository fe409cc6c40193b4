package match

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/x86"
)

// A Drift says how far structures seem to have another layout in the new
// build: memory operands of aligned instructions in changed functions, off
// registers that don't point at the stack.
type Drift struct {
	Accesses  int          // compared
	Moved     int          // of them with another displacement
	Functions int          // compared
	Unaligned int          // functions that differ too much to be compared
	Moves     []Move       // seen in two functions or more: refused
	Resized   []Resize     // allocations of another size: refused
	Layouts   []TypeChange // types of another layout, by DWARF: refused
	DWARF     bool         // both builds have type information, which decides
}

// A Move is one displacement that became another.
type Move struct {
	From, To  int64
	Functions []string
	Count     int
}

// A Resize is an allocation whose constant size changed.
type Resize struct {
	Function  string
	Allocator string
	From, To  int64
}

// leastFunctions is in how many functions the same displacement must change to
// the same other one. One alone happens where a patch uses another field.
const leastFunctions = 2

// detectDrift compares the changed functions whose pairs are trusted.
func detectDrift(p *pairing) Drift {
	var d Drift
	moves := map[[2]int64]*Move{}
	for k := range p.pairs {
		q := &p.pairs[k]
		if q.equal || q.Trust < Likely {
			continue
		}
		a, b := p.old.instructions(q.Old), p.new.instructions(q.New)
		pairs := align(a, b)
		if pairs == nil {
			d.Unaligned++
			continue
		}
		d.Functions++
		name := p.new.Name(q.New)
		d.compareAccesses(moves, name, a, b, pairs)
		d.compareAllocations(p, q, name, a, b, pairs)
	}
	for _, m := range moves {
		if len(m.Functions) >= leastFunctions {
			d.Moves = append(d.Moves, *m)
		}
	}
	slices.SortFunc(d.Moves, func(x, y Move) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To))
	})
	return d
}

func (d *Drift) compareAccesses(moves map[[2]int64]*Move, name string, a, b []instruction, pairs [][2]int32) {
	framed := usesFramePointer(a) || usesFramePointer(b)
	for i, at := range pairs {
		x, y := &a[at[0]], &b[at[1]]
		if !isFieldAccess(&x.Inst, framed) {
			continue
		}
		d.Accesses++
		from, to := x.Mem.Disp.Value, y.Mem.Disp.Value
		if from == to {
			continue
		}
		// Between instructions that correspond as well: elsewhere the alignment
		// may have taken one field's access for another's.
		if i == 0 || i+1 == len(pairs) || pairs[i-1] != [2]int32{at[0] - 1, at[1] - 1} || pairs[i+1] != [2]int32{at[0] + 1, at[1] + 1} {
			continue
		}
		d.Moved++
		m := moves[[2]int64{from, to}]
		if m == nil {
			m = &Move{From: from, To: to}
			moves[[2]int64{from, to}] = m
		}
		m.Count++
		if n := len(m.Functions); n == 0 || m.Functions[n-1] != name {
			m.Functions = append(m.Functions, name)
		}
	}
}

// isFieldAccess tells a memory operand that may be a field of a structure.
func isFieldAccess(i *x86.Inst, framed bool) bool {
	if !i.HasMem || i.IsNop() || i.Mem.Index != x86.NoReg {
		return false
	}
	switch i.Mem.Base {
	case x86.NoReg, x86.RIP, x86.RSP:
		return false
	case x86.RBP:
		if framed {
			return false
		}
	}
	return !(i.Encoding == x86.Legacy && i.Map == x86.MapOneByte && i.Opcode == 0x8d)
}

// usesFramePointer tells code that copies RSP into RBP: its operands off RBP
// are on the stack.
func usesFramePointer(code []instruction) bool {
	for i := range code {
		n := &code[i].Inst
		if n.Map == x86.MapOneByte && n.Encoding == x86.Legacy && (n.Opcode == 0x89 && n.ModRM == 0xe5 || n.Opcode == 0x8b && n.ModRM == 0xec) ||
			n.Opcode == 0x8d && n.HasMem && n.Mem.Base == x86.RSP && n.ModRM>>3&7 == 5 && n.Ext&4 == 0 {
			return true
		}
	}
	return false
}

// compareAllocations looks for constant sizes that changed before a call of an
// allocator: a structure that grew at its end moves no field.
func (d *Drift) compareAllocations(p *pairing, q *Pair, name string, a, b []instruction, pairs [][2]int32) {
	g := &p.new.Functions[q.New]
	refs := p.new.referencesOf(g)
	for _, at := range pairs {
		x, y := &a[at[0]].Inst, &b[at[1]].Inst
		if !isMoveImmediate(x) || !isMoveImmediate(y) || x.Imm.Value == y.Imm.Value || x.Imm.Value <= 8 || y.Imm.Value <= 8 {
			continue
		}
		register := x.Opcode&7 | x.Ext&1<<3
		if x.Opcode == 0xc7 {
			register = x.ModRM&7 | x.Ext&1<<3
		}
		callee := p.new.nextCall(refs, b, int(at[1]))
		if x.Imm.Value%4 != 0 || y.Imm.Value%4 != 0 {
			continue // a buffer: structures are aligned, unless they hold characters only
		}
		if isAllocator(callee) && (register == edi || register == esi && hasSecondSize(callee)) {
			d.Resized = append(d.Resized, Resize{name, callee, x.Imm.Value, y.Imm.Value})
		}
	}
}

// The registers of the first two arguments, as encoded.
const (
	edi = 7
	esi = 6
)

// hasSecondSize tells allocators that take a size as their second argument, too.
func hasSecondSize(name string) bool {
	return strings.Contains(name, "calloc") || strings.Contains(name, "realloc") || strings.Contains(name, "memalign") || strings.Contains(name, "aligned")
}

// nextCall returns the name of what is called next, within the next few
// instructions.
func (b *Build) nextCall(refs []Reference, code []instruction, from int) string {
	for i := from + 1; i < len(code) && i < from+12; i++ {
		n := &code[i]
		if n.Flow == x86.CallIndirect || n.Flow == x86.Call || n.Flow == x86.Jump || n.Flow == x86.JumpIndirect {
			k, ok := slices.BinarySearchFunc(refs, n.at, func(r Reference, at uint32) int { return cmp.Compare(r.In, at) })
			if !ok {
				return ""
			}
			r := &refs[k]
			switch {
			case r.Region == Slot && r.To >= 0:
				return b.names[r.To]
			case r.Region == Text && r.To >= 0 && len(b.Functions[r.To].Names) > 0:
				return b.Functions[r.To].Names[0]
			}
			return ""
		}
	}
	return ""
}

// isAllocator tells names of functions that allocate.
func isAllocator(name string) bool {
	name, _, _ = strings.Cut(strings.ToLower(name), "@")
	return strings.Contains(name, "alloc") && !strings.Contains(name, "dealloc") && !strings.Contains(name, "allocator") || name == "_znwm" || name == "_znam"
}

// refuseDrift refuses what the detector or DWARF shows.
func (m *Match) refuseDrift(all *refusals) {
	d := &m.Drift
	for _, t := range d.Layouts {
		all.add(CodeLayoutChanged, t.Name, "%s", t.Detail)
	}
	if d.DWARF {
		return // it decides
	}
	for _, v := range d.Moves {
		all.add(CodeLayoutDrift, fmt.Sprintf("%#x → %#x", v.From, v.To), "a field seems to have moved: %d times, in %s", v.Count, few(v.Functions))
	}
	for _, v := range d.Resized {
		all.add(CodeAllocation, v.Function, "%s is called for %d bytes, not %d: a structure seems to have grown", v.Allocator, v.To, v.From)
	}
}

// few lists some names of many.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
