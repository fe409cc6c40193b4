package dump

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// precopyLeast is from how many bytes of memory on it is copied while the program runs:
// what is less is copied while it is held in some milliseconds.
var precopyLeast uint64 = 16 << 20

// precopyEnough is how many bytes may be left for the last round.
const precopyEnough = 1 << 20

// precopy copies memory while the program runs, and again what it has written meanwhile,
// as long as that becomes less. What it can't do, or what fails, is left for the time in
// which the program is held.
//
// Each round is: pages are write-protected; all threads are stopped for a moment; the
// pages are copied. A page that is written after its protection is noted. What may be
// written past the protection is what the kernel had found the page of before: a read of
// a file without cache (O_DIRECT). No thread is within one when it is stopped, so by then
// such a write is done, and what is copied afterwards has it.
func (c *commit) precopy(ctx context.Context) error {
	if c.tracker != nil && !c.tracker.renew(c.memory) {
		err := c.tracker.close()
		if c.tracker = nil; err != nil {
			return err
		}
	}
	if c.tracker == nil {
		if c.memory.bytes() < precopyLeast {
			return nil
		}
		var err error
		if c.tracker, err = c.track(ctx); c.tracker == nil {
			return err
		}
	}
	if len(c.tracker.copied) == 0 {
		if ok, err := c.round(ctx, kernel.PageQuery{}); !ok {
			return err
		}
	}
	for before := ^uint64(0); ; {
		pages, err := c.tracker.scan(c, writtenPages) // is it worth it?
		if err != nil {
			return given(ctx, err)
		}
		now := pagesOf(pages) * image.PageSize
		if now <= precopyEnough && c.copiedBefore == 0 {
			return nil // a later checkpoint of a series: nothing has to be copied before
		}
		if now <= precopyEnough || now > before/4*3 {
			break
		}
		before = now
		if ok, err := c.round(ctx, writtenPages); !ok {
			return err
		}
	}
	if err := c.writer.Flush(); err != nil {
		return err
	}
	// What is new since is looked at now, rather than while the program is held.
	refusals, err := c.whole.lookAtDescriptors(ctx)
	if err != nil {
		return err
	}
	if len(refusals) > 0 {
		return joined(refusals)
	}
	if err := c.lookAgain(); err != nil {
		return err
	}
	_, err = c.round(ctx, writtenPages) // that has taken a while
	return err
}

// writtenPages matches what was written since it was protected.
var writtenPages = kernel.PageQuery{All: kernel.PageWritten}

// round copies the pages that match; ok is false where no other round is of use.
func (c *commit) round(ctx context.Context, q kernel.PageQuery) (ok bool, err error) {
	q.Flags = kernel.ScanProtectMatching
	pages, err := c.tracker.scan(c, q)
	if err != nil {
		c.tracker.copied = nil // some may be protected that were written
		return false, given(ctx, err)
	}
	// From here on the pages count as not written: what is not copied now is copied
	// while the program is held.
	c.tracker.forget(pages)
	if err := c.stopped(ctx, func(*tracee.Session) error { return nil }); err != nil {
		return false, given(ctx, err)
	}
	if err := c.copyRunning(ctx, pages); err != nil {
		return false, err
	}
	return true, nil
}

// stopped stops all threads, and lets f use them; the time is noted.
func (c *commit) stopped(ctx context.Context, f func(s *tracee.Session) error) error {
	times, err := tracee.Do(ctx, c.Process, tracee.Options{}, func(s *tracee.Session) error {
		if err := s.Prepare(); err != nil {
			return err
		}
		if err := s.StopAll(); err != nil {
			return err
		}
		return f(s)
	})
	c.paused += times.Pause
	return err
}

// given returns what of an error ends the checkpoint: another one only ends the copying
// while the program runs.
func given(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, procfs.ErrGone) {
		return err
	}
	return nil
}

// forget takes out pages of those that were copied.
func (t *tracker) forget(pages []image.Run) {
	var gone []image.Run
	for _, r := range pages {
		gone = append(gone, image.Run{Start: r.Start, Count: r.Count, Place: image.Place{Up: unwritten, Offset: r.Start}})
	}
	t.copied = slices.DeleteFunc(overlay(t.copied, gone), func(r image.Run) bool { return r.Place.Up == unwritten })
}

// copyRunning copies pages of the running program.
func (c *commit) copyRunning(ctx context.Context, pages []image.Run) error {
	m := &memory{mappings: []image.Mapping{{Kind: image.Anonymous, Protection: syscall.PROT_READ, Pages: slices.Clone(pages)}}}
	total := m.bytes()
	copier := c.copier(nil, m)
	copier.running = true
	lost, err := copier.dump(ctx, m, func(done uint64) { c.progress(done, total) })
	if err != nil {
		return err
	}
	c.copiedBefore += total
	for i := range pages {
		pages[i].Place = image.Place{Up: zeroed, Offset: pages[i].Start}
	}
	c.tracker.copied = overlay(c.tracker.copied, overlay(pages, m.mappings[0].Pages))
	c.tracker.forget(lost)
	return nil
}

// progress tells of bytes that are copied now, of how many.
func (c *commit) progress(done, of uint64) {
	if c.options.Progress != nil {
		c.options.Progress(c.copiedBefore+done, c.copiedBefore+of)
	}
}

// copier returns what copies the memory of m.
func (c *commit) copier(memory *procfs.Memory, m *memory) *copier {
	return &copier{pid: c.Process.PID(), memory: memory, writer: c.writer, before: c.before, mappings: m.mappings}
}
