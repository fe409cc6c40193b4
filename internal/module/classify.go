package module

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/x86"
)

const breakpointOpcode = 0xcc // int3

// classify finds out what each run comes from.
func (c *Comparison) classify() error {
	var relocated []dso.Range
	m := c.Module
	if len(c.Runs) > 0 && m.Object.TextRel() {
		for r, err := range m.Object.Relocations() {
			if err != nil {
				return err
			}
			if r.Text {
				relocated = append(relocated, dso.Range{Addr: r.Offset, Size: uint64(r.Width())})
			}
		}
	}
	for i := range c.Runs {
		run := &c.Runs[i]
		switch {
		case run.Kind != "": // known already
		case covered(relocated, run, m.Bias):
			run.Kind = api.KindTextrel
		case m.isBreakpoint(run):
			run.Kind = api.KindBreakpoint
		default:
			run.Kind = api.KindCorruption
		}
	}
	return nil
}

// covered reports whether all of a run's bytes are relocated by the loader.
func covered(relocated []dso.Range, run *Run, bias uint64) bool {
	if len(relocated) == 0 {
		return false
	}
	for at := run.Address - bias; at < run.End()-bias; at++ {
		if run.Found[at+bias-run.Address] == run.Expected[at+bias-run.Address] {
			continue
		}
		inside := false
		for _, r := range relocated {
			inside = inside || r.Contains(at)
		}
		if !inside {
			return false
		}
	}
	return true
}

// isBreakpoint reports whether a run is a lone int3 where an instruction begins:
// the way of uprobes and debuggers. Where no function is known that the address
// is in, the instruction is taken for granted: a breakpoint that is removed is
// worse than one byte that is reported and stays.
func (m *Module) isBreakpoint(run *Run) bool {
	if len(run.Found) != 1 || run.Found[0] != breakpointOpcode {
		return false
	}
	at := run.Address - m.Bias
	segment, ok := m.Object.SegmentAt(at)
	if !ok || segment.Flags&elf.PF_X == 0 {
		return false
	}
	start, known := m.functionStart(at)
	return !known || beginsInstruction(m.Object, start, at)
}

// nop5 is the instruction that Linux 6.18 replaces by a call of its trampoline,
// instead of an int3, when a uprobe is set on it (arch/x86/kernel/uprobes.c).
var nop5 = []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}

const (
	callOpcode       = 0xe8
	uprobeTrampoline = "[uprobes-trampoline]"
)

// findCallProbes tells calls of the kernel's trampoline from corruption.
func (p *Process) findCallProbes(c *Comparison) error {
	for i := range c.Runs {
		run := &c.Runs[i]
		target, ok := run.callInNop()
		if !ok || run.Kind != api.KindCorruption {
			continue
		}
		// The trampoline may be younger than the maps that were read at first.
		maps, err := p.Maps()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(maps, func(m procfs.Mapping) bool { return m.Path == uprobeTrampoline && m.Contains(target) }) {
			run.Kind = api.KindBreakpoint
		}
	}
	return nil
}

// callInNop returns where the call leads that a run makes of a nop5. While the
// kernel writes it, an int3 stands for its opcode.
func (r *Run) callInNop() (target uint64, ok bool) {
	if len(r.Found) > len(nop5) || !bytes.HasPrefix(nop5, r.Expected) || r.Found[0] != callOpcode && r.Found[0] != breakpointOpcode {
		return 0, false
	}
	call := slices.Clone(nop5)
	copy(call, r.Found) // what is the same in both is not in the run
	distance := int32(binary.LittleEndian.Uint32(call[1:]))
	return r.Address + uint64(len(call)) + uint64(distance), true
}

// functionStart returns where the function that an object address is in begins.
func (m *Module) functionStart(at uint64) (start uint64, known bool) {
	if fde, ok, err := m.Object.FDEAt(at); err == nil && ok {
		return fde.Start, true
	}
	if l, ok := m.Object.LocateFunction(at); ok && !l.Beyond {
		return at - l.Offset, true
	}
	return 0, false
}

// beginsInstruction decodes from a function's start up to an object address and
// reports whether an instruction begins there. Code that can't be decoded
// counts as one that does.
func beginsInstruction(o *dso.Object, start, at uint64) bool {
	const maxFunction = 1 << 20
	if at-start > maxFunction {
		return true
	}
	code, err := o.Bytes(start, at-start)
	if err != nil {
		return true
	}
	for pc := 0; pc < len(code); {
		in, err := x86.Decode(code[pc:])
		if err != nil {
			// The last instruction may reach beyond the address.
			return len(code)-pc >= x86.MaxLen
		}
		pc += in.Len
	}
	return true
}
