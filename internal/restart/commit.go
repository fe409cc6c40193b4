package restart

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A Result tells what was done.
type Result struct {
	Rounds  int
	Longest time.Duration // that all threads were stopped at once
	Paused  time.Duration // all in all
	Total   time.Duration
	Copied  uint64 // bytes on fresh pages
	Dropped uint64 // bytes of pages of zeroes, which are not there any more
	Before  Memory
	After   Memory
	Left    []Left
}

// Memory is how much a program has.
type Memory struct {
	Mappings   int
	Resident   uint64 // bytes
	PageTables uint64 // bytes
}

// Commit makes the memory anew. After an error the program runs on unharmed; some of its
// memory may be fresh.
func (p *Plan) Commit(ctx context.Context) (result Result, err error) {
	begin := time.Now()
	defer func() { result.Total = time.Since(begin) }()
	if len(p.Refusals) > 0 {
		errs := make([]error, len(p.Refusals))
		for i, r := range p.Refusals {
			errs[i] = r
		}
		return result, errors.Join(errs...)
	}
	result.Left = slices.Clone(p.Left)
	if result.Before, err = memoryOf(p.Process); err != nil {
		return result, err
	}
	pagemap, err := p.Process.OpenPagemap()
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, pagemap.Close()) }()
	for pieces := p.nextRound(); len(pieces) > 0; pieces = p.nextRound() {
		r := &round{Plan: p, pagemap: pagemap, pieces: pieces, result: &result}
		times, err := tracee.Do(ctx, p.Process, tracee.Options{}, func(s *tracee.Session) error {
			r.session = s
			return r.held(ctx)
		})
		result.Rounds++
		result.Paused += times.Pause
		result.Longest = max(result.Longest, times.Pause)
		if err != nil && !r.lost && !errors.Is(err, procfs.ErrGone) {
			err = p.abandon(err)
		}
		if err != nil {
			return result, err
		}
		if p.options.Progress != nil {
			p.options.Progress(result.Copied+result.Dropped, p.Bytes)
		}
		select {
		case <-time.After(times.Pause):
		case <-ctx.Done():
			return result, p.abandon(ctx.Err())
		}
	}
	for _, a := range p.areas {
		if a.left != "" {
			result.Left = count(result.Left, a.left, a.End-a.done)
		}
	}
	result.After, err = memoryOf(p.Process)
	return result, err
}

// abandon gives back what was mapped for areas that are not done, after an interrupt or
// an error.
func (p *Plan) abandon(why error) error {
	r := &round{Plan: p}
	r.leaveAll("it was broken off")
	if !slices.ContainsFunc(p.areas, func(a *area) bool { return a.left != "" && a.staged != 0 }) {
		return why
	}
	_, err := tracee.Do(context.Background(), p.Process, tracee.Options{}, func(s *tracee.Session) error {
		r.session = s
		return r.tidy()
	})
	return errors.Join(why, err)
}

// count adds memory that stays to the list, which is in the order of its reasons.
func count(all []Left, reason string, size uint64) []Left {
	i, found := slices.BinarySearchFunc(all, reason, func(l Left, reason string) int { return strings.Compare(l.Reason, reason) })
	if !found {
		all = slices.Insert(all, i, Left{Reason: reason})
	}
	all[i].Mappings++
	all[i].Bytes += size
	return all
}

func memoryOf(p *procfs.Process) (m Memory, err error) {
	maps, err := p.Maps()
	if err != nil {
		return m, err
	}
	status, err := p.Status()
	return Memory{Mappings: len(maps), Resident: status.Resident, PageTables: status.PageTables}, err
}
