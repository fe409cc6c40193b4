package module

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// StillWithin returns which of the threads that were within a build when another
// took over may still be: those that are in its code, or have an address of it on
// their stack. It stops nobody, so of a thread that runs at the moment nothing is
// known, and it counts as within.
//
// Calls don't lead to that build any more, so a thread that is seen outside once
// has left. One that is in the same system call before and after its stack was
// read has not left in between: to come back to it would have taken such a call.
func (p *Process) StillWithin(done Replaced) ([]int, error) {
	memory, err := p.openMemory()
	if err != nil {
		return done.Visitors, err
	}
	maps, err := p.Maps()
	if err != nil {
		return done.Visitors, err
	}
	var within []int
	for _, tid := range done.Visitors {
		at, err := p.Syscall(tid)
		if errors.Is(err, procfs.ErrGone) || errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil || at.Running || inRange(done.Before, at.ProgramPC) || stackHolds(memory, maps, at.StackPtr, done.Before) {
			within = append(within, tid)
			continue
		}
		if again, err := p.Syscall(tid); err != nil || again != at {
			within = append(within, tid)
		}
	}
	return within, nil
}

func inRange(r tracee.Range, address uint64) bool { return address >= r.Start && address < r.End }

// stackHolds reports whether a stack has an address of the range, or can't be
// read.
func stackHolds(memory *procfs.Memory, maps []procfs.Mapping, pointer uint64, r tracee.Range) bool {
	const chunk, deepest = 64 << 10, 8 << 20
	i := slices.IndexFunc(maps, func(m procfs.Mapping) bool { return m.Contains(pointer) })
	if i < 0 {
		return true
	}
	end := min(maps[i].End, pointer&^7+deepest)
	buf := make([]byte, chunk)
	for at := pointer &^ 7; at < end; at += chunk {
		words := buf[:min(chunk, end-at)]
		if _, err := memory.ReadAt(words, int64(at)); err != nil {
			return true
		}
		for ; len(words) >= 8; words = words[8:] {
			if inRange(r, binary.LittleEndian.Uint64(words)) {
				return true
			}
		}
	}
	return false
}

// runningCode returns the process addresses of the code of the build that ran
// before a plan is carried out.
func (p *Process) runningCode(r *Replacement) tracee.Range {
	if r.before == nil || r.before.Current() == 0 {
		return r.Module.code()
	}
	g := r.before.Generations()[r.before.Current()]
	if m := p.moduleAt(g.Start); m != nil && m.Staged() && m.Object != nil {
		return m.code()
	}
	return tracee.Range{Start: g.Start, End: g.End}
}
