package menu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

const (
	// loopPatience is how long a request waits for the main loop.
	loopPatience = 5 * time.Second
	loopPause    = 2 * time.Millisecond

	// priority is above that of drawing, and below that of what the user does:
	// G_PRIORITY_HIGH_IDLE. It is the same for all, so that they run in order.
	priority = 100
)

// waits are the calls in which a main loop at rest waits, and its like.
var waits = []uint64{syscall.SYS_POLL, syscall.SYS_PPOLL}

// request lets the main loop carry out a request, and returns what it left in the
// state page. A main loop that does not come to it in time is a refusal: then the
// request was withdrawn.
func (m *mapped) request(ctx context.Context, p *target, functions map[string]uint64, operation uint64, shown string) (s state, err error) {
	number, err := m.queue(ctx, p, functions, operation, shown)
	if err != nil {
		return s, err
	}
	memory, err := p.OpenMemory()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	ran, taken := false, false
	if s, ran, err = m.await(ctx, memory, number); err == nil && !ran {
		if taken, err = m.withdraw(context.WithoutCancel(ctx), p); taken {
			s, ran, err = m.await(context.WithoutCancel(ctx), memory, number)
		}
	}
	switch {
	case err != nil || ran:
		return s, err
	case taken:
		return s, fmt.Errorf("the main loop of process %d has begun with it, and has not come to its end within %v", p.PID(), loopPatience)
	case ctx.Err() != nil:
		return s, fmt.Errorf("wait for the main loop of process %d: %w", p.PID(), ctx.Err())
	}
	return s, api.Refusal{Code: codeLoopBusy, Subject: fmt.Sprintf("process %d", p.PID()),
		Detail: fmt.Sprintf("its main loop has not come to it within %v", loopPatience), Remedy: "try again when the program answers its user"}
}

// queue writes a request and asks the main loop to call the code with its number.
// An error that is a refusal means that it was not asked, and nothing is written.
func (m *mapped) queue(ctx context.Context, p *target, functions map[string]uint64, operation uint64, shown string) (number uint64, err error) {
	place, err := p.WaitingPlace(waits...)
	if err != nil {
		return 0, err
	}
	var called error
	err = p.Session(ctx, func(s *tracee.Session) error {
		if err := s.BorrowForCall(place); err != nil {
			return err
		}
		before, err := m.readState(s.Memory())
		if err != nil {
			return err
		}
		number = before.word(stateQueued) + 1
		if operation == requestShow {
			err = s.Write(m.base+m.state+stateText, append([]byte(shown), 0))
		}
		for _, w := range []struct{ at, value uint64 }{{stateQueued, number}, {stateRequest, operation}} {
			if err == nil {
				err = s.Write(m.base+m.state+w.at, binary.LittleEndian.AppendUint64(nil, w.value))
			}
		}
		if err != nil {
			return err
		}
		_, called = s.CallFunction(tracee.Function{
			Address: functions["gdk_threads_add_idle_full"], Args: [6]uint64{priority, m.base + m.idle, number, 0},
			Calls: []uint64{syscall.SYS_FUTEX, syscall.SYS_WRITE, syscall.SYS_BRK, syscall.SYS_MMAP, syscall.SYS_MUNMAP, syscall.SYS_MPROTECT},
		})
		if len(api.Refusals(called)) > 0 {
			return called
		}
		if called == nil {
			// The thread that owns the main context is not woken by what it adds itself.
			_, called = s.CallFunction(tracee.Function{Address: functions["g_main_context_wakeup"], Calls: []uint64{syscall.SYS_FUTEX, syscall.SYS_WRITE}})
		}
		return nil // what was written stays: the main loop may come to it
	})
	switch {
	case err != nil:
		return 0, err
	case len(api.Refusals(called)) > 0: // to be woken; something else will wake it
		return number, nil
	}
	return number, called
}

// await waits until the main loop has run all up to a number.
func (m *mapped) await(ctx context.Context, memory *procfs.Memory, number uint64) (s state, ran bool, err error) {
	for end := time.Now().Add(loopPatience); ; time.Sleep(loopPause) {
		if s, err = m.readState(memory); err != nil {
			return s, false, err
		}
		if s.word(stateRan) == number && s.word(stateInside) == 0 {
			return s, true, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return s, false, nil
		}
	}
}

// withdraw takes a request back, with all threads stopped, or reports that the
// main loop has taken it.
func (m *mapped) withdraw(ctx context.Context, p *target) (taken bool, err error) {
	err = p.insist(ctx, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		now, err := m.readState(s.Memory())
		if err != nil {
			return err
		}
		if taken = now.word(stateRequest) == requestNone; taken {
			return nil
		}
		return s.Write(m.base+m.state+stateRequest, make([]byte, 8))
	})
	if refusals := api.Refusals(err); len(refusals) > 0 { // no refusal any more: something may come of it
		err = fmt.Errorf("the main loop of process %d has not come to it yet, and may still do so: it can't be withdrawn: %s: %s",
			p.PID(), refusals[0].Subject, refusals[0].Detail)
	}
	return taken, err
}
