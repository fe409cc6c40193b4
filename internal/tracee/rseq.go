package tracee

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A RestartableSequence is a thread's registration for restartable sequences, rseq(2).
type RestartableSequence struct {
	TID       int
	Offset    int64 // of struct rseq from the thread pointer
	Signature uint32
	address   uint64
}

// RestartableSequences returns the registrations of all threads, which are to be
// stopped. A thread without one is left out: it has none yet, or the kernel can't
// tell (before Linux 5.13).
func (s *Session) RestartableSequences() ([]RestartableSequence, error) {
	var all []RestartableSequence
	for tid, t := range s.threads {
		if !t.stopped {
			return nil, fmt.Errorf("read rseq of thread %d: it is not stopped", tid)
		}
		c, err := kernel.GetRseqConfiguration(tid)
		if err != nil {
			if gone(err) {
				return nil, err
			}
			continue
		}
		if c.Pointer != 0 {
			all = append(all, RestartableSequence{tid, int64(c.Pointer - t.regs.FSBase), c.Signature, c.Pointer})
		}
	}
	return all, nil
}

// LeaveSections makes the kernel forget the restartable sequence that a thread was
// in last, where it lies in a range: what describes it is about to be unmapped. No
// thread may be within one.
func (s *Session) LeaveSections(of Range) error {
	all, err := s.RestartableSequences()
	if err != nil {
		return err
	}
	for _, r := range all {
		var section [1]uint64
		at := r.address + rseqSectionOffset
		if err := s.readWords(at, section[:]); err != nil {
			return err
		}
		if section[0] < of.Start || section[0] >= of.End {
			continue
		}
		if _, err := s.memory.WriteAt(make([]byte, 8), int64(at)); err != nil {
			return fmt.Errorf("clear the restartable sequence of thread %d: %w", r.TID, err)
		}
	}
	return nil
}
