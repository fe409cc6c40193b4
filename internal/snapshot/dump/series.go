package dump

import (
	"errors"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Series is checkpoints of one program that follow one another while it runs. Between
// two of them writes to its memory stay noted, so that the next one reads, beside what
// can't be tracked, only what was written since, and does not compare the rest with its
// parent. The zero Series is one that begins; it is used by one goroutine at a time.
type Series struct {
	trackers map[int]*tracker // by process
	last     string           // the image in which the trackers' pages are
}

// Close lets the program's memory be as if it had never been tracked. So does the end of
// vOS.
func (s *Series) Close() error {
	var errs []error
	for _, t := range s.trackers {
		errs = append(errs, t.close())
	}
	s.trackers = nil
	return errors.Join(errs...)
}

// tracker returns the one of a process, which stays the series's; nil is none.
func (s *Series) tracker(pid int) *tracker {
	if s == nil {
		return nil
	}
	return s.trackers[pid]
}

// take gives the tracker of a process away. What it knows is of use where the new image
// has that as its parent in which the pages are.
func (s *Series) take(pid int, parent *image.Reader) *tracker {
	t := s.tracker(pid)
	if t == nil {
		return nil
	}
	delete(s.trackers, pid)
	if parent == nil || parent.Image().ID != s.last {
		t.copied = nil
	}
	for i := range t.copied {
		if place := &t.copied[i].Place; place.Up != zeroed {
			place.Up++
		}
	}
	return t
}

// keep takes the trackers of a checkpoint that is written, and ends those of processes
// that it had no part for.
func (s *Series) keep(parts []*commit, id string) error {
	err := s.Close()
	s.trackers, s.last = make(map[int]*tracker, len(parts)), id
	for _, c := range parts {
		if c.tracker != nil {
			s.trackers[c.Process.PID()], c.tracker = c.tracker, nil
		}
	}
	return err
}

// renew goes on with a tracker: mappings that came since are tracked from now on. It
// reports whether there is anything to track.
//
// A mapping that was moved, or made at the place of another one, is not tracked any more,
// so what is known of the addresses is forgotten before they are tracked again: kernels
// before 6.14 leave marks in the pages of moved ones.
func (t *tracker) renew(m *memory) bool {
	var same []image.Run
	t.ranges = nil
	for i := range m.mappings {
		to := &m.mappings[i]
		s := image.Span{Start: to.Start, End: to.End}
		switch {
		case slices.Contains(m.tracked, s):
			have, _ := t.split(s.Start, s.End)
			same = append(same, have...)
		case !trackable(to) || t.add(s) != nil:
			continue
		}
		t.ranges = append(t.ranges, s)
	}
	t.copied = same
	return len(t.ranges) > 0
}

// protect begins to note writes anew, while the process is held: what was written until
// now counts as not copied.
func (t *tracker) protect(c *commit) error {
	q := writtenPages
	q.Flags = kernel.ScanProtectMatching
	written, err := t.scan(c, q)
	if err != nil {
		return err
	}
	t.forget(written)
	return nil
}

// settle notes where the image has each page that is tracked: m has been copied, lacked
// are the pages that were, of each mapping, and m.had those that the image had before.
func (t *tracker) settle(m *memory, lacked [][]image.Run) {
	t.copied = nil
	for i := range m.mappings {
		to := &m.mappings[i]
		if to.Kind != image.Anonymous || !t.covers(to.Start, to.End) {
			continue
		}
		for j := range lacked[i] { // of which those of zeroes are in no image
			lacked[i][j].Place = image.Place{Up: zeroed, Offset: lacked[i][j].Start}
		}
		t.copied = append(t.copied, overlay(m.had[i], overlay(lacked[i], to.Pages))...)
	}
}
