package tracee

import (
	"context"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// TestLanes: a program of several threads has room for lanes, and all of its threads take
// them; where its code lacks what that takes they are asked alone.
func TestLanes(t *testing.T) {
	p := steady(t, nil, "8", "mixed")
	_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		if err := s.GiveBack(); err != nil {
			return err
		}
		var lanes []*lane
		for tid := range s.threads {
			status, err := s.process.ThreadStatus(tid)
			if err != nil {
				return err
			}
			l, err := s.enlist(&status)
			if err != nil {
				return err
			}
			if l == nil {
				t.Errorf("thread %d can't make calls by itself", tid)
				continue
			}
			lanes = append(lanes, l)
		}
		shape := s.laneShape(lanes, 16, func(uint64) []Call { return make([]Call, 3) })
		if room := s.laneRoom(shape.bytes, len(lanes)); room < 2 {
			t.Errorf("there is room for %d lanes of %d bytes", room, shape.bytes)
		}
		if shape = s.laneShape(lanes, maxLaneData+1, func(uint64) []Call { return make([]Call, 3) }); s.laneRoom(shape.bytes, len(lanes)) != 0 {
			t.Error("there is room for lanes with more data than fits into one")
		}
		if err := askTogether(s); err != nil {
			return err
		}
		pops := s.gadgets.PopRDX
		defer func() { s.gadgets.PopRDX = pops }()
		s.gadgets.PopRDX = 0
		return askTogether(s)
	})
	if err != nil {
		t.Fatal(err)
	}
	checkFree(t, p)
}

// TestStatesAreTheirOwn: what is kept of each thread's state is that thread's, so that each
// gets its own signal mask and registers back.
func TestStatesAreTheirOwn(t *testing.T) {
	p := steady(t, nil, "8", "mixed")
	_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		states, err := s.ThreadStates()
		if err != nil {
			return err
		}
		for i := range states {
			kept := s.threads[states[i].TID].state
			if kept == nil || kept.TID != states[i].TID {
				t.Errorf("of thread %d another one's state is kept: %+v", states[i].TID, kept)
			}
		}
		if err := onlyTogether(s); err != nil {
			return err
		}
		for i := range states {
			mask, err := kernel.GetSignalMask(states[i].TID)
			if err != nil {
				return err
			}
			if mask != states[i].Mask {
				t.Errorf("thread %d blocks %#x, before %#x", states[i].TID, mask, states[i].Mask)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checkFree(t, p)
}

// TestLanesLeft: what a session that died has said to stand beyond its seal is known to
// the next one, which brings all in order.
func TestLanesLeft(t *testing.T) {
	p := steady(t, nil, "2", "wait")
	const beyond = 10 * beyondUnit
	var left *chain
	reserved := func(s *Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		if err := s.GiveBack(); err != nil {
			return err
		}
		left = s.last
		return s.last.reserve(s.memory, beyond)
	}
	looked := func(want uint64, whole bool) func(s *Session) error {
		return func(s *Session) error {
			length := left.seal + sealBytes - left.results
			covered, got, ok := s.readSeal(left.results, length)
			if !ok || got != want || (covered == length-sealBytes) != whole {
				t.Errorf("the seal covers %d of %d bytes and says that %d are beyond it, want %d; it fits: %v", covered, length-sealBytes, got, want, ok)
			}
			return nil
		}
	}
	called := func(s *Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		_, err := s.Call(syscall.SYS_GETPID)
		return err
	}
	for _, f := range []func(*Session) error{reserved, looked(beyond, false), called, looked(0, true)} {
		if _, err := Do(context.Background(), p, Options{}, f); err != nil {
			t.Fatal(err)
		}
	}
	checkFree(t, p)
}
