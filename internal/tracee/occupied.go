package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// An Occupant is a thread that is, or will come back, to a place that is about
// to be overwritten.
type Occupant struct {
	TID     int
	Address uint64 // within one of the ranges
	Stack   bool   // found on its stack: a return address, or where a signal interrupted it
}

// redZone is the memory below a stack pointer that a function may use: psABI,
// "The Stack Frame".
const redZone = 128

// deepestStack is how much of a stack is looked at: what a thread has by default
// (RLIMIT_STACK). A stack within a larger mapping, of a coroutine, ends before.
const deepestStack = 8 << 20

// Occupied looks, with all threads stopped, for one whose instruction pointer
// lies in one of the ranges, or whose stack holds an address that does: a return
// address, or the instruction pointer in the frame of a signal. Any word of a
// stack that looks like one counts. Ranges must be ascending and not overlap.
//
// It also returns the threads that are in code of the watched range, or have an
// address of it on their stack.
//
// Maps are the process's as of a moment ago: reading them takes longer than all
// else here. Where a stack is not in them they are read again.
func (s *Session) Occupied(ranges []Range, watched Range, maps []procfs.Mapping) (occupant Occupant, visitors []int, found bool, err error) {
	within := func(address uint64) bool {
		i := sort.Search(len(ranges), func(i int) bool { return ranges[i].End > address })
		return i < len(ranges) && address >= ranges[i].Start
	}
	low, high := watched.Start, watched.End
	if len(ranges) > 0 {
		low, high = min(low, ranges[0].Start), max(high, ranges[len(ranges)-1].End)
	}
	var buf []byte
	for _, t := range s.threads {
		if !t.stopped {
			return Occupant{}, nil, false, fmt.Errorf("look at the stack of thread %d: it is not stopped", t.tid)
		}
		if within(t.regs.RIP) {
			return Occupant{TID: t.tid, Address: t.regs.RIP}, nil, true, nil
		}
		visits := t.regs.RIP >= watched.Start && t.regs.RIP < watched.End
		stack, err := s.readStack(t, maps, &buf)
		if err != nil {
			if maps, err = s.process.Maps(); err != nil {
				return Occupant{}, nil, false, err
			}
			if stack, err = s.readStack(t, maps, &buf); errors.Is(err, errNoStack) {
				stack = nil // nothing to return by
			} else if err != nil {
				return Occupant{}, nil, false, err
			}
		}
		for ; len(stack) >= 8; stack = stack[8:] {
			word := binary.LittleEndian.Uint64(stack)
			if word < low || word >= high {
				continue
			}
			if within(word) {
				return Occupant{TID: t.tid, Address: word, Stack: true}, nil, true, nil
			}
			visits = visits || word >= watched.Start && word < watched.End
		}
		if visits {
			visitors = append(visitors, t.tid)
		}
	}
	return Occupant{}, visitors, false, nil
}

var errNoStack = errors.New("its stack pointer leads to no memory")

// readStack reads the stack of a stopped thread, from its red zone on.
func (s *Session) readStack(t *thread, maps []procfs.Mapping, buf *[]byte) ([]byte, error) {
	i := slices.IndexFunc(maps, func(m procfs.Mapping) bool { return m.Contains(t.regs.RSP) })
	if i < 0 {
		return nil, errNoStack
	}
	from := max((t.regs.RSP-redZone)&^7, maps[i].Start)
	size := int(min(maps[i].End-from, deepestStack))
	if cap(*buf) < size {
		*buf = make([]byte, size)
	}
	stack := (*buf)[:size]
	if _, err := s.memory.ReadAt(stack, int64(from)); err != nil {
		return nil, fmt.Errorf("read the stack of thread %d: %w", t.tid, err)
	}
	return stack, nil
}
