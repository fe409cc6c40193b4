package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// Take lets the borrowed thread make a descriptor by a system call, takes a copy of it,
// and lets the thread close its own, which it does whatever becomes of the tracer: the
// number that the call returns is stored where the thread pops the argument of close
// from. All threads must be stopped, so that none can pass the descriptor on by fork. The
// caller closes the copy. Where a thread can't do that it returns ErrNotAtOnce, and has
// made no call.
//
//	store  of the number, at close's argument
//	pops   the signal to itself: here the copy is taken
//	pops   close
//	pops   the signal to itself
//	home tail
func (s *Session) Take(call Call) (_ kernel.Raw, err error) {
	b := s.borrowed
	if b == nil {
		return -1, errThreadLost
	}
	if !s.held || !s.asksAtOnce(b) {
		return -1, ErrNotAtOnce
	}
	c, g, done := &b.chain, &s.gadgets, b.done()
	for _, one := range []Call{call, {Number: syscall.SYS_CLOSE}} {
		if err := s.checkSeccompAt(b, one, g.Plain); err != nil {
			return -1, err
		}
	}
	signal := []uint64{g.PopRDI, done.Args[0], g.PopRSI, done.Args[1], g.PopRDX, done.Args[2], g.PopRAX, done.Number, g.Plain}
	words := append([]uint64{g.Store, 0}, signal...)
	taken := len(words)      // where the copy is taken
	number := len(words) + 1 // the argument of close
	words = append(words, g.PopRDI, ^uint64(0), g.PopRAX, syscall.SYS_CLOSE, g.Plain)
	words = append(words, signal...)
	start := c.homeTail - uint64(8*len(words))
	address := func(word int) uint64 { return start + uint64(8*word) }
	image := c.image[start-c.results : c.homeTail-c.results]
	for i, w := range words {
		binary.LittleEndian.PutUint64(image[8*i:], w)
	}
	if _, err := s.memory.WriteAt(image, int64(start)); err != nil {
		return -1, err
	}
	pidfd, err := kernel.OpenPidfd(s.process.PID())
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, pidfd.Close()) }()

	regs := call.registers(&b.regs, g.Plain, start)
	regs.RBX = address(number) - uint64(int64(g.StoreAt))
	if err := s.leave(&regs, everySignal&^(1<<(b.signal-1))); err != nil {
		return -1, err
	}
	if err := s.runTo(&regs, address(taken)); err != nil {
		return -1, err
	}
	copied, failed := kernel.Raw(-1), error(nil)
	if _, failed = s.memory.ReadAt(image, int64(start)); failed == nil {
		result := binary.LittleEndian.Uint64(image[8*number:])
		if failed = call.Err(result); failed == nil {
			copied, failed = kernel.TakeRaw(pidfd, int(result))
		}
	}
	if err := s.runTo(&regs, c.homeTail); err != nil {
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return -1, fmt.Errorf("make a descriptor inside the process: %w", errors.Join(failed, copied.Close()))
	}
	return copied, nil
}
