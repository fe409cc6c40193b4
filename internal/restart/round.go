package restart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

const (
	pageSize = procfs.PageSize
	// hugePage is what addresses of copies are as far from a multiple of as those of
	// what they replace, so that page tables move whole.
	hugePage = 2 << 20

	remapFixed        = 1 | 2 // MREMAP_MAYMOVE | MREMAP_FIXED
	mapFixedNoReplace = 0x100000
	adviseGuard       = 102 // MADV_GUARD_INSTALL
	prctlSetVMA       = 0x53564d41
	prctlVMAName      = 0
	addressLimit      = 0x7ffffffff000 // of programs, with page tables of four levels
	maxPieces         = 256            // of a round
)

// A piece is a part of an area that one round makes anew.
type piece struct {
	*area
	start, end uint64
	runs       []procfs.PageRange // what is to be copied
	guards     []procfs.PageRange
}

func (p *piece) copyAt() uint64 { return p.staged + (p.start - p.Start) }

// nextRound cuts the next pieces off the areas: with no more pages than a round copies,
// as they were seen.
func (p *Plan) nextRound() (pieces []*piece) {
	room := p.options.Round
	for _, a := range p.areas {
		if room > 0 && len(pieces) < maxPieces && a.left == "" && a.cut < a.End {
			q := &piece{area: a, start: a.cut, end: a.End}
			for _, r := range a.pages {
				if r.End <= q.start {
					continue
				}
				size := r.End - max(r.Start, q.start)
				if size < room {
					room -= size
					continue
				}
				q.end, room = max(r.Start, q.start)+room, 0
				// Whole page tables move faster; a little more to copy does not matter.
				q.end = min((q.end+hugePage-1)&^(hugePage-1), a.End)
				break
			}
			a.cut = q.end
			pieces = append(pieces, q)
		}
	}
	return pieces
}

// A round is one session that makes pieces anew.
type round struct {
	*Plan
	session *tracee.Session
	pagemap *procfs.Pagemap
	pieces  []*piece
	maps    []procfs.Mapping
	solo    *tracee.Solo
	result  *Result
	lost    bool // threads may be in memory that would be given back
}

// held does a round while all threads stand still.
func (r *round) held(ctx context.Context) (err error) {
	s := r.session
	if err := s.Prepare(); err != nil {
		return err
	}
	if err := s.StopAll(); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	if err := s.CheckSolo(callsMade); err != nil {
		return err
	}
	if err := s.Borrow(); err != nil {
		return err
	}
	err = r.prepare(ctx)
	if err == nil && len(r.pieces) > 0 {
		if err = r.swap(); err != nil && !errors.Is(err, tracee.ErrNotBegun) {
			r.lost = true
			return err
		}
	}
	if err != nil {
		r.leaveAll("it was broken off")
	}
	return errors.Join(err, r.tidy())
}

// prepare makes the copies.
func (r *round) prepare(ctx context.Context) (err error) {
	if err := r.stage(); err != nil || len(r.pieces) == 0 {
		return err
	}
	if r.solo, err = r.session.MapSolo(len(r.pieces)); err != nil {
		return err
	}
	if err := r.session.GiveBack(); err != nil {
		return err
	}
	if err := r.copy(); err != nil {
		return err
	}
	return ctx.Err()
}

// callsMade are those that a round makes in the process.
var callsMade = []tracee.Call{
	{Number: syscall.SYS_MMAP}, {Number: syscall.SYS_MPROTECT}, {Number: syscall.SYS_MREMAP}, {Number: syscall.SYS_MUNMAP},
	{Number: syscall.SYS_MADVISE}, {Number: syscall.SYS_PRCTL},
}

// check leaves the areas that are not as they were, and finds the pages of the others.
func (r *round) check() (err error) {
	if r.maps, err = r.Process.Maps(); err != nil {
		return err
	}
	status, err := r.Process.Status()
	if err != nil {
		return err
	}
	if other, err := sharer(r.Process, status.PPID); err != nil {
		return err
	} else if other != 0 {
		return shared(r.Process.PID(), other)
	}
	for _, q := range r.pieces {
		switch {
		case status.Locked != r.locked:
			q.left = "memory was locked or unlocked meanwhile"
		case !r.holds(q):
			q.left = "it has changed meanwhile"
		}
		if q.left != "" {
			continue
		}
		if err := r.scan(q); err != nil {
			return err
		}
	}
	r.drop()
	return nil
}

// drop leaves out the pieces of areas that are left.
func (r *round) drop() {
	r.pieces = slices.DeleteFunc(r.pieces, func(q *piece) bool { return q.left != "" })
}

// holds reports whether a piece lies in mappings of the kind that it was of.
func (r *round) holds(q *piece) bool {
	i, found := slices.BinarySearchFunc(r.maps, q.start, func(m procfs.Mapping, at uint64) int {
		switch {
		case m.End <= at:
			return -1
		case m.Start > at:
			return 1
		}
		return 0
	})
	for at := q.start; found && at < q.end; i++ {
		if i == len(r.maps) || r.maps[i].Start > at || !q.alike(&r.maps[i]) {
			return false
		}
		at = r.maps[i].End
	}
	return found
}

// scan finds the pages of a piece that have something in them, and its guard pages.
func (r *round) scan(q *piece) (err error) {
	if q.runs, err = r.pagemap.TouchedPages(nil, q.start, q.end); err != nil {
		return err
	}
	q.guards, err = r.pagemap.GuardPages(nil, q.start, q.end)
	return err
}

// stage maps the copies of areas that have none yet, by the borrowed thread. What can't
// be mapped is left.
func (r *round) stage() error {
	gaps := newGaps(r.maps)
	var fresh []*piece
	var calls []tracee.Call
	for _, q := range r.pieces {
		if q.staged != 0 {
			continue
		}
		at, ok := gaps.take(q.Size(), q.Start%hugePage)
		if !ok {
			q.left = "no gap in the address space for a copy"
			continue
		}
		fresh = append(fresh, q)
		calls = append(calls, call(syscall.SYS_MMAP, at, q.Size(), uint64(q.Perms&7), q.flags|mapFixedNoReplace, ^uint64(0), 0))
	}
	results, err := r.session.Run(calls)
	for i, result := range results {
		if failed := calls[i].Err(result); failed != nil {
			fresh[i].left = fmt.Sprintf("no room for a copy: %v", failed)
			continue
		}
		fresh[i].staged = result
	}
	if err != nil {
		return err
	}
	r.drop()
	return r.liken(fresh)
}

// liken makes copies what they are copies of.
func (r *round) liken(fresh []*piece) error {
	var calls []tracee.Call
	for _, q := range fresh {
		if q.staged == 0 {
			continue
		}
		for _, advice := range q.advice {
			calls = append(calls, call(syscall.SYS_MADVISE, q.staged, q.Size(), advice))
		}
		if name, named := strings.CutPrefix(q.Path, "[anon:"); named {
			// The session has room for one name at a time.
			at, err := r.session.Data(append([]byte(strings.TrimSuffix(name, "]")), 0))
			if err != nil {
				return err
			}
			if _, err := r.session.Call(syscall.SYS_PRCTL, prctlSetVMA, prctlVMAName, q.staged, q.Size(), at); err != nil {
				return err
			}
		}
	}
	for _, q := range r.pieces {
		for _, g := range q.guards {
			calls = append(calls, call(syscall.SYS_MADVISE, q.copyAt()+(g.Start-q.start), g.End-g.Start, adviseGuard))
		}
	}
	results, err := r.session.Run(calls)
	for i, result := range results {
		err = errors.Join(err, calls[i].Err(result))
	}
	return err
}

func call(number uint64, args ...uint64) tracee.Call {
	c := tracee.Call{Number: number}
	copy(c.Args[:], args)
	return c
}

// swap puts all copies in place.
func (r *round) swap() error {
	calls := make([]tracee.SoloCall, len(r.pieces))
	for i, q := range r.pieces {
		size := q.end - q.start
		calls[i] = tracee.SoloCall{Call: call(syscall.SYS_MREMAP, q.copyAt(), size, size, remapFixed, q.start), Target: q.start}
	}
	results, err := r.session.RunAlone(r.solo, calls)
	if err != nil {
		return err
	}
	for i, q := range r.pieces {
		if failed := calls[i].Err(results[i]); failed != nil {
			q.left = failed.Error()
			continue
		}
		q.done = q.end
	}
	return nil
}

// leaveAll leaves all that is not done.
func (r *round) leaveAll(why string) {
	for _, a := range r.areas {
		if a.left == "" && a.done < a.End {
			a.left = why
		}
	}
}

// tidy gives back what was mapped and is not needed, by a borrowed thread.
func (r *round) tidy() error {
	if err := r.session.Borrow(); err != nil {
		return err
	}
	var errs []error
	if r.solo != nil {
		errs = append(errs, r.session.UnmapSolo(r.solo))
	}
	for _, a := range r.areas {
		if a.left != "" && a.staged != 0 {
			at := a.done - a.Start
			_, err := r.session.Call(syscall.SYS_MUNMAP, a.staged+at, a.Size()-at)
			errs = append(errs, err)
			a.staged = 0
		}
	}
	return errors.Join(errs...)
}
