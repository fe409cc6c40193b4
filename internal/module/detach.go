package module

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A Detachment is the plan by which the interceptors of a process go.
type Detachment struct {
	Writes   []SlotWrite              // by ascending address
	Unmap    []*intercept.Interceptor // what nothing leads to then
	Stays    []string                 // and what stays, with the reason
	Refusals []api.Refusal

	leftover []procfs.PageRange // of what was interrupted
}

// Empty reports whether there is nothing to do.
func (d *Detachment) Empty() bool {
	return len(d.Refusals) == 0 && len(d.Writes) == 0 && len(d.Unmap) == 0 && len(d.leftover) == 0
}

// PlanDetach plans to take all interceptors out of the process.
func (p *Process) PlanDetach() (*Detachment, error) {
	d := &Detachment{leftover: slices.Clone(p.leftover)}
	if r := p.interceptorRefusal(); r != nil {
		d.Refusals = append(d.Refusals, *r)
		return d, nil
	}
	samples := uint64(0) // whose table has to stay
	for _, in := range p.interceptors {
		taken, led := 0, 0
		for _, s := range in.Slots() {
			value, err := p.readWord(s.Address)
			if errors.Is(err, procfs.ErrAddress) {
				continue // its module is gone
			}
			if err != nil {
				return nil, err
			}
			if value == in.Stub(s.Function) {
				led++
				d.Writes = append(d.Writes, SlotWrite{s.Address, value, s.Before, s.Taken})
			}
			if s.Taken {
				taken++
			}
		}
		if taken == 0 {
			d.Unmap = append(d.Unmap, in)
			continue
		}
		if in.Config().Samples != 0 {
			samples = in.Config().Samples
		}
		base := in.Config().Base
		d.Stays = append(d.Stays, fmt.Sprintf("0x%x-0x%x: the program may have copied %d of its addresses; it counts what passes there, and a later attach uses it again",
			base, base+in.Size(), taken))
	}
	d.Unmap = slices.DeleteFunc(d.Unmap, func(in *intercept.Interceptor) bool {
		return samples != 0 && in.SamplesAddress() == samples && in.Config().Samples == 0
	})
	slices.SortFunc(d.Writes, func(a, b SlotWrite) int { return cmp.Compare(a.Address, b.Address) })
	return d, nil
}

// CommitDetach carries out a plan without refusals. Where a thread does not leave a
// stub within a while, slots are as they were and the rest stays: a later detach takes
// it out.
func (p *Process) CommitDetach(ctx context.Context, d *Detachment) (done Attached, err error) {
	begin := time.Now()
	defer func() { done.Total = time.Since(begin) }()
	done.Stays = slices.Clone(d.Stays)
	if done.Times, err = p.writeSlots(ctx, d.Writes, func(*tracee.Session) error { return nil }, &done.Slots); err != nil {
		return done, err
	}
	left, err := p.leftCalls()
	if err != nil || len(d.Unmap)+len(left) == 0 {
		return done, err
	}
	times, err := p.unmapWhenFree(ctx, d.Unmap, left...)
	done.Times.Pause, done.Times.Borrow = max(done.Times.Pause, times.Pause), max(done.Times.Borrow, times.Borrow)
	var busy *inside
	if errors.As(err, &busy) {
		done.Stays = append(done.Stays, busy.Error()+": detach again to take the memory out")
		err = nil
	}
	return done, err
}

// inside is a thread within a stub, or that will come back to one.
type inside struct{ tracee.Occupant }

func (o *inside) Error() string {
	return fmt.Sprintf("thread %d is in a function that a stub at 0x%x waits for", o.TID, o.Address)
}

// unmapWhenFree unmaps interceptors that no slot leads to, as soon as no thread is in
// their code, and makes the calls that take out what else is left.
func (p *Process) unmapWhenFree(ctx context.Context, all []*intercept.Interceptor, left ...tracee.Call) (worst tracee.Times, err error) {
	const tries, pause = 200, 5 * time.Millisecond
	for n := 1; ; n++ {
		times, err := p.unmapInterceptors(ctx, all, left)
		worst.Pause, worst.Borrow = max(worst.Pause, times.Pause), max(worst.Borrow, times.Borrow)
		var busy *inside
		if !errors.As(err, &busy) || n == tries {
			return worst, err
		}
		select {
		case <-ctx.Done():
			return worst, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (p *Process) unmapInterceptors(ctx context.Context, all []*intercept.Interceptor, left []tracee.Call) (tracee.Times, error) {
	var code []tracee.Range
	var calls []tracee.Call
	for _, in := range all {
		start, end := in.CodeRange()
		code = append(code, tracee.Range{Start: start, End: end})
		calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{in.Config().Base, in.Size()}})
	}
	calls = append(calls, left...)
	slices.SortFunc(code, func(a, b tracee.Range) int { return cmp.Compare(a.Start, b.Start) })
	maps, err := p.Maps()
	if err != nil {
		return tracee.Times{}, err
	}
	options := tracee.Options{Identity: p.identity, Avoid: code}
	return tracee.Do(context.WithoutCancel(ctx), p.Process, options, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		o, _, found, err := s.Occupied(code, tracee.Range{}, maps)
		if err != nil {
			return err
		}
		if found {
			return &inside{o}
		}
		for _, in := range all {
			start, end := in.SectionRange()
			if err := s.LeaveSections(tracee.Range{Start: start, End: end}); err != nil {
				return err
			}
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		results, err := s.Run(calls)
		if err != nil {
			return err
		}
		for i := range calls {
			if err := calls[i].Err(results[i]); err != nil {
				return fmt.Errorf("unmap 0x%x: %w", calls[i].Args[0], err)
			}
		}
		return nil
	})
}
