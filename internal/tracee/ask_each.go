package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// An Answer is what a thread's calls of an AskEach have written and returned.
type Answer struct {
	Data    []byte
	Results []uint64
}

// AskEach is Ask of many threads, which StopAll has stopped and whose statuses the caller
// has read since; none is borrowed. All are asked the same: calls is given the address of
// size zero bytes. Some threads make their calls at the same time, each with its way home
// in a lane of its own, above the place where the way home of a single one stands:
//
//	lane   results | data | words | home tail | home frame | extended state
//
// with words as those of Ask. The seal of that place says, until all are home, how far
// the lanes reach: should this session die, the next one waits for all who are on their
// way in them. A thread that can't make the calls by itself is borrowed alone, and all
// are where there is no room for lanes.
func (s *Session) AskEach(statuses []*procfs.Status, size int, calls func(at uint64) []Call) ([]Answer, error) {
	answers := make([]Answer, len(statuses))
	var lanes []*lane
	var alone []int
	for i, status := range statuses {
		l, err := s.enlist(status)
		if err != nil {
			return nil, err
		}
		if l == nil {
			alone = append(alone, i)
			continue
		}
		l.answer = &answers[i]
		lanes = append(lanes, l)
	}
	shape := s.laneShape(lanes, size, calls)
	width := s.laneRoom(shape.bytes, len(lanes))
	if width == 0 {
		lanes, alone = nil, nil
		for i := range statuses {
			alone = append(alone, i)
		}
	}
	for _, i := range alone {
		var err error
		if answers[i], err = s.askAlone(statuses[i], size, calls); err != nil {
			return nil, err
		}
	}
	if len(lanes) == 0 {
		return answers, nil
	}
	return answers, s.askTogether(lanes, width, shape, calls)
}

// askAlone is Ask of one thread.
func (s *Session) askAlone(status *procfs.Status, size int, calls func(at uint64) []Call) (a Answer, err error) {
	if err := s.BorrowThread(status); err != nil {
		return a, err
	}
	if a.Data, a.Results, err = s.Ask(size, calls); err != nil {
		return a, err
	}
	return a, s.GiveBack()
}

// A lane is the way of one of several threads that are borrowed together.
type lane struct {
	*borrowed
	way      home
	extended []byte // state, as it stands in a frame
	start    uint64
	homeTail uint64
	calls    []Call
	answer   *Answer
	lost     bool // the thread has ended
}

// enlist returns a thread that can make calls by itself, or nil.
func (s *Session) enlist(status *procfs.Status) (*lane, error) {
	t := s.threads[status.PID]
	if t == nil || !t.stopped || !s.held || s.borrowed != nil {
		return nil, fmt.Errorf("borrow thread %d with others: not all are stopped, or one is borrowed", status.PID)
	}
	l := &lane{borrowed: s.described(status)}
	l.thread = t
	var err error
	if l.way, err = s.ready(l.borrowed); err != nil {
		return nil, err
	}
	if !s.asksAtOnce(l.borrowed) {
		return nil, nil
	}
	// A copy: the next one's is read to the same place.
	l.extended, err = encodeXState(l.way.xstate)
	return l, err
}

// A laneShape is how lanes are laid out, all of them alike.
type laneShape struct {
	calls, size         int
	words, frame, bytes uint64 // from the begin of a lane to its words, its home frame, its end
}

const (
	maxLanes     = 12
	maxLaneCalls = 8
	maxLaneData  = 256
)

// laneShape returns the shape of lanes for as many calls as a thread makes; of no bytes
// where they don't fit into one, or can't be made by all.
func (s *Session) laneShape(lanes []*lane, size int, calls func(at uint64) []Call) (shape laneShape) {
	made := calls(0)
	if len(made) > maxLaneCalls || size > maxLaneData || !alike(made) {
		return shape
	}
	xstate := 0
	for _, l := range lanes {
		xstate = max(xstate, len(l.extended))
	}
	shape.calls, shape.size = len(made), size
	shape.words = uint64(8*len(made)+size+7) &^ 7
	shape.frame = (shape.words + uint64(8*askedWords*len(made)) + homeRoom + 15) &^ 15
	state := (shape.frame + ucontextBytes + xstateAlign - 1) &^ (xstateAlign - 1)
	shape.bytes = (state + uint64(xstate) + xstateAlign - 1) &^ (xstateAlign - 1)
	return shape
}

// laneRoom returns how many lanes there is room for, 0 if it is not worth it. It is memory
// that nobody uses as that of a single way home: of pages that were never touched, or far
// below the stack pointer of the main thread.
func (s *Session) laneRoom(bytes uint64, wanted int) int {
	if bytes == 0 || s.last == nil || s.area == nil {
		return 0
	}
	start := s.last.seal + sealBytes
	used := (start + pageSize - 1) &^ (pageSize - 1) // the pages below belong to a single way home
	for n := min(wanted, maxLanes); n > 1; n-- {
		end := (start + uint64(n)*bytes + pageSize - 1) &^ (pageSize - 1)
		if end > s.area.end {
			continue
		}
		main := s.threads[s.process.PID()]
		if main != nil && main.stopped && main.regs.RSP < s.area.end && main.regs.RSP >= end+deadDistance {
			return n
		}
		if touched, err := s.pagemap.TouchedPages(nil, used, end); err == nil && len(touched) == 0 {
			return n
		}
	}
	return 0
}

// askTogether lets threads make their calls: while those of one group make them, those of
// the one before are brought home. As many as width are on their way at a time.
func (s *Session) askTogether(lanes []*lane, width int, shape laneShape, calls func(at uint64) []Call) error {
	c, half := s.last, width/2
	start, size := c.seal+sealBytes, uint64(half)*shape.bytes
	if err := c.reserve(s.memory, 2*size); err != nil {
		return err
	}
	s.lanes = lanes // whatever happens, the session's end brings home who is away
	memory := make([]byte, size)
	var before []*lane
	for group := range slices.Chunk(lanes, half) {
		at := start
		if len(before) > 0 && before[0].start == start {
			at += size
		}
		clear(memory)
		for i, l := range group {
			l.start = at + uint64(i)*shape.bytes
			if err := s.layLane(l, shape, calls, memory[l.start-at:][:shape.bytes]); err != nil {
				return err
			}
		}
		if _, err := s.memory.WriteAt(memory, int64(at)); err != nil {
			return err
		}
		if err := s.runLanes(group); err != nil {
			return err
		}
		if err := s.collect(before, shape, memory); err != nil {
			return err
		}
		before = group
	}
	if err := s.collect(before, shape, memory); err != nil {
		return err
	}
	return s.leaveLanes()
}

// collect waits for a group, reads what its calls have left, into memory, and brings all
// of it home.
func (s *Session) collect(group []*lane, shape laneShape, memory []byte) error {
	if len(group) == 0 {
		return nil
	}
	for _, l := range group {
		if err := s.arrive(l); err != nil {
			return err
		}
	}
	start := group[0].start
	if _, err := s.memory.ReadAt(memory, int64(start)); err != nil {
		return fmt.Errorf("read results of system calls: %w", err)
	}
	for _, l := range group {
		text := memory[l.start-start:]
		l.answer.Results = make([]uint64, shape.calls)
		for i := range l.answer.Results {
			l.answer.Results[i] = binary.LittleEndian.Uint64(text[8*i:])
		}
		l.answer.Data = slices.Clone(text[8*shape.calls:][:shape.size])
		if err := s.leaveLane(l); err != nil {
			return err
		}
	}
	return nil
}

// layLane fills in the memory of a lane.
func (s *Session) layLane(l *lane, shape laneShape, calls func(at uint64) []Call, memory []byte) error {
	g := &s.gadgets
	if l.calls = calls(l.start + uint64(8*shape.calls)); len(l.calls) != shape.calls {
		return fmt.Errorf("ask thread %d: %d system calls, %d of others", l.thread.tid, len(l.calls), shape.calls)
	}
	for _, call := range l.calls {
		if err := s.checkSeccompAt(l.borrowed, call, g.Plain); err != nil {
			return err
		}
	}
	tail, words := g.tail(), s.askWords(l.calls, l.done(), l.start)
	l.homeTail = l.start + shape.frame - uint64(len(tail))
	state := (shape.frame + ucontextBytes + xstateAlign - 1) &^ (xstateAlign - 1)
	frame := encodeContext(&l.way.regs, l.way.mask, l.start+state)
	copy(memory[l.homeTail-l.start-uint64(len(words)):], words)
	copy(memory[l.homeTail-l.start:], tail)
	copy(memory[shape.frame:], frame[:])
	copy(memory[state:], l.extended)
	return nil
}

// runLanes lets the threads of a group make their calls.
func (s *Session) runLanes(group []*lane) error {
	g := &s.gadgets
	for _, l := range group {
		words := uint64(8 * askedWords * len(l.calls))
		regs := l.calls[0].registers(&l.regs, g.Plain, l.homeTail-words)
		regs.RBX = l.start - uint64(int64(g.StoreAt))
		if err := kernel.SetRegisters(l.thread.tid, &regs); err != nil {
			return err
		}
		l.thread.lane, l.away = l, true
		if err := kernel.SetSignalMask(l.thread.tid, everySignal&^(1<<(l.signal-1))); err != nil {
			return err
		}
		if err := l.resume(); err != nil {
			return err
		}
	}
	return nil
}

func (l *lane) resume() error {
	l.thread.stopped = false
	return kernel.Continue(l.thread.tid, 0)
}

// arrive waits until the thread of a lane has made its calls.
func (s *Session) arrive(l *lane) error {
	for {
		if err := s.await("make system calls inside", func() bool { return l.thread.stopped || l.lost }); err != nil {
			return err
		}
		if l.lost {
			return errThreadLost
		}
		switch status := l.thread.status; {
		case status.Event() == 0 && status.Signal() == l.signal:
			var regs kernel.Registers
			if err := kernel.GetRegisters(l.thread.tid, &regs); err != nil {
				return err
			}
			if regs.RSP == l.homeTail {
				return nil
			}
		case status.Event() != kernel.EventStop:
			return fmt.Errorf("run system calls in thread %d: it stopped with signal %d", l.thread.tid, status.Signal())
		}
		if err := l.resume(); err != nil {
			return err
		}
	}
}

// leaveLane gives the thread of a lane its own state back.
func (s *Session) leaveLane(l *lane) error {
	if l.away && !l.lost {
		if err := s.takeHome(l.borrowed, func() bool { return l.lost }); err != nil {
			return err
		}
	}
	l.away, l.thread.lane = false, nil
	return nil
}

// leaveLanes gives the threads of all lanes their own state back.
func (s *Session) leaveLanes() error {
	var errs []error
	for _, l := range s.lanes {
		errs = append(errs, s.leaveLane(l))
	}
	s.lanes = nil
	if err := errors.Join(errs...); err != nil {
		return err // the seal stays: somebody may still be on the way
	}
	return s.last.finish(s.memory)
}
