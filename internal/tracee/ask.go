package tracee

import (
	"encoding/binary"
	"fmt"
)

// MaxAsk is how many system calls one Ask can make, and how many bytes they may write.
func (s *Session) MaxAsk() (calls, bytes int) {
	if s.borrowed != nil && s.asksAtOnce(s.borrowed) {
		return maxAsked, maxAskedData
	}
	return maxChain, maxData
}

const (
	maxAsked     = 64
	maxAskedData = 2 << 10
	askedWords   = 11 // of the stack, for each call
)

// Ask runs system calls that write to memory, in order and whatever they return: calls is
// given the address of size zero bytes, which are returned as the calls have left them,
// with the results.
//
// Where the program's code has what it takes (Gadgets.Pops), and calls differ in their
// first three arguments alone, a thread makes all of them by itself, also one whose next
// system call knows the time that is left: nothing of the kernel's is changed between two
// calls. What stands on its stack does it:
//
//	store  mov %rax, (%rbx); pop %rbx; ret — rbx points to the result's word
//	(rbx)  of the next result
//	pop    rdi, rsi, rdx, rax, each with its value behind it
//	plain  syscall; ret
//
// and, behind the last call, one that sends the thread the signal at which it stops, and
// the home tail.
//
//	results | data | … | words | home tail | home frame | extended state | seal
func (s *Session) Ask(size int, calls func(at uint64) []Call) ([]byte, []uint64, error) {
	b := s.borrowed
	if b == nil {
		return nil, nil, errThreadLost
	}
	if s.asksAtOnce(b) && size <= maxAskedData {
		at := b.chain.results + 8*maxAsked
		if all := calls(at); len(all) <= maxAsked && alike(all) {
			data := make([]byte, size)
			results, err := s.askAtOnce(all, data)
			return data, results, err
		}
	}
	data := make([]byte, size)
	at, err := s.Data(data)
	if err != nil {
		return nil, nil, err
	}
	results, err := s.Run(calls(at))
	if err != nil {
		return nil, nil, err
	}
	if _, err := s.memory.ReadAt(data, int64(at)); err != nil {
		return nil, nil, err
	}
	_, err = s.Data(data) // as it is now
	return data, results, err
}

// asksAtOnce reports whether a borrowed thread can make the calls of an Ask by itself.
func (s *Session) asksAtOnce(b *borrowed) bool {
	return s.gadgets.Pops() && b.signal != 0 && s.checkSeccompAt(b, b.done(), s.gadgets.Plain) == nil
}

// alike reports whether calls differ in their first three arguments alone.
func alike(calls []Call) bool {
	for i := range calls {
		if [3]uint64(calls[i].Args[3:]) != [3]uint64(calls[0].Args[3:]) {
			return false
		}
	}
	return len(calls) > 0
}

func (s *Session) askAtOnce(calls []Call, data []byte) ([]uint64, error) {
	b, c, g := s.borrowed, &s.borrowed.chain, &s.gadgets
	for _, call := range calls {
		if err := s.checkSeccompAt(b, call, g.Plain); err != nil {
			return nil, err
		}
	}
	words := s.askWords(calls, b.done(), c.results)
	start := c.homeTail - uint64(len(words))
	copy(c.image[start-c.results:], words)
	all := c.image[:8*maxAsked+len(data)]
	clear(all)
	if _, err := s.memory.WriteAt(all, int64(c.results)); err != nil {
		return nil, err
	}
	if _, err := s.memory.WriteAt(words, int64(start)); err != nil {
		return nil, err
	}
	regs := calls[0].registers(&b.regs, g.Plain, start)
	regs.RBX = c.results - uint64(int64(g.StoreAt))
	if err := s.runToSignal(&regs, everySignal&^(1<<(b.signal-1))); err != nil {
		return nil, err
	}
	if _, err := s.memory.ReadAt(all, int64(c.results)); err != nil {
		return nil, fmt.Errorf("read results of system calls: %w", err)
	}
	results := make([]uint64, len(calls))
	for i := range results {
		results[i] = binary.LittleEndian.Uint64(all[8*i:])
	}
	copy(data, all[8*maxAsked:])
	return results, nil
}

// askWords are what must stand on the stack of a thread that has made the first of calls,
// so that it stores its result, and makes the others, and one that tells that it is done.
func (s *Session) askWords(calls []Call, done Call, results uint64) []byte {
	g := &s.gadgets
	words := make([]byte, 0, 8*askedWords*len(calls))
	for i := range calls {
		next := &done
		if i < len(calls)-1 {
			next = &calls[i+1]
		}
		result := results + uint64(8*(i+1)) - uint64(int64(g.StoreAt))
		for _, w := range [askedWords]uint64{g.Store, result, g.PopRDI, next.Args[0], g.PopRSI, next.Args[1],
			g.PopRDX, next.Args[2], g.PopRAX, next.Number, g.Plain} {
			words = binary.LittleEndian.AppendUint64(words, w)
		}
	}
	return words
}
