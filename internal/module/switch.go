package module

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

// A Replaced is how a replacement went.
type Replaced struct {
	Times tracee.Times
	Total time.Duration
	Tries int // stops in which a thread stood where entries are to be written

	// Visitors are the threads that were within the build before when the other
	// took over, and finish there; Before is that build's code.
	Visitors []int
	Before   tracee.Range
}

// CommitReplacement carries out a plan without refusals, in this process alone.
// Where it returns an error, calls reach the generation that they reached before.
func (p *Process) CommitReplacement(ctx context.Context, r *Replacement) (done Replaced, err error) {
	begin := time.Now()
	defer func() { done.Total = time.Since(begin) }()
	if r.Empty() {
		return done, nil
	}
	if r.Generation > 0 {
		if err := p.Pin(ctx, r.Module); err != nil {
			return done, err
		}
	}
	if r.Image != nil {
		times, err := p.stageInto(ctx, r)
		done.Times.Borrow, done.Times.Pause = times.Borrow, times.Pause
		if err != nil {
			return done, fmt.Errorf("stage %s in process %d: %w", r.Module.Name, p.PID(), err)
		}
	}
	err = p.letUnwind(ctx, r)
	if err == nil {
		err = p.switchWhenFree(ctx, r, &done)
	}
	if err == nil {
		return done, p.verifySwitch(context.WithoutCancel(ctx), r) // what is done is done
	}
	if err != nil && r.Image != nil && !errors.Is(err, procfs.ErrGone) {
		// Also where the request was cancelled.
		err = errors.Join(err, p.unstage(context.WithoutCancel(ctx), r))
	}
	return done, err
}

// verifySwitch compares the module with its file again: of generation 0 every
// byte must be the program's own.
func (p *Process) verifySwitch(ctx context.Context, r *Replacement) error {
	if err := r.vin.SetCurrent(r.Generation); err != nil {
		return err
	}
	p.vins[r.Module], r.Module.Generation = r.vin, r.Generation
	c, err := p.Compare(ctx, r.Module, false)
	if err != nil {
		return fmt.Errorf("switched, but not verified: %w", err)
	}
	differs := c.Corrupt()
	for _, run := range c.Runs {
		differs = differs || run.Kind == api.KindVOS && r.Generation == 0
	}
	if differs {
		return fmt.Errorf("%s of process %d was switched to generation %d, but differs in %d places", r.Module.Name, p.PID(), r.Generation, len(c.Runs)+len(c.Bad))
	}
	return nil
}

// switchWhenFree tries to switch until no thread is where something is to be
// written.
func (p *Process) switchWhenFree(ctx context.Context, r *Replacement, done *Replaced) error {
	const tries, pause = 400, 5 * time.Millisecond
	for {
		times, err := p.switchTo(ctx, r, done)
		done.Times.Pause = max(done.Times.Pause, times.Pause)
		var busy *occupied
		if !errors.As(err, &busy) {
			return err
		}
		if done.Tries++; done.Tries == tries {
			return api.Refusal{Code: codeEntryInUse, Subject: r.Module.Name, Detail: busy.Error(), Remedy: "try again when the program is less busy"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// occupied is a thread within the bytes of an entry.
type occupied struct{ tracee.Occupant }

func (o *occupied) Error() string {
	where := "is at"
	if o.Stack {
		where = "will come back to"
	}
	return fmt.Sprintf("thread %d %s 0x%x, within the first bytes of a function that is to be redirected", o.TID, where, o.Address)
}

// switchTo makes the generation of the plan the one that calls reach, with all
// threads stopped. The order is the law's: each write but the selector's leaves
// the program as it was, whoever dies when.
func (p *Process) switchTo(ctx context.Context, r *Replacement, done *Replaced) (tracee.Times, error) {
	var avoid []tracee.Range
	for _, e := range r.vin.Entries() {
		avoid = append(avoid, tracee.Range{Start: e.Function, End: e.Function + uint64(len(e.Original))})
	}
	var changes []vin.Change
	if r.before != nil {
		var err error
		if changes, err = vin.Changes(r.before, r.vin); err != nil {
			return tracee.Times{}, err
		}
	}
	maps, err := p.Maps()
	if err != nil {
		return tracee.Times{}, err
	}
	if err := ctx.Err(); err != nil {
		return tracee.Times{}, err
	}
	done.Before = p.runningCode(r)
	// From here on an interrupt comes too late: it would cut the writes short.
	return tracee.Do(context.WithoutCancel(ctx), p.Process, tracee.Options{Avoid: avoid, Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		text := readPages(s)
		writes, err := p.entryWrites(s, text, r)
		if err != nil {
			return err
		}
		if done.Visitors, err = unoccupied(s, r, writes, done.Before, maps); err != nil {
			return err
		}
		for _, c := range changes {
			if err := s.Write(c.Address, c.Bytes); err != nil {
				return err
			}
		}
		steps := []func() error{
			func() error { return text.write(writes) },
			func() error { return p.flip(s, r) },
		}
		if r.Generation == 0 {
			slices.Reverse(steps) // the entries are neutral while the selector leads there
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
}

func word(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
