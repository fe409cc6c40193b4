package dump

import (
	"context"
	"errors"
	"os"
	"slices"
	"sort"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A tracker notes which pages of a process are written, and knows where the image has
// those that were copied and have not been written since.
//
// The kernel does it by a userfaultfd that a thread of the process has made for vOS, and
// closed: write protection that ends with the first write, which waits for nobody. vOS
// has the only descriptor, so all of that goes away with vOS.
//
// Only private anonymous memory is tracked, in mappings that had pages of their own at
// the begin. What is moved (mremap), or mapped anew at the same place, is tracked no
// more: the kernel says so, and it is copied as if there were no tracker. So are pages
// that are swapped out.
//
// One vOS tracks a process at a time, or each would take what the other has protected for
// its own: it has a lock on the process's pagemap.
type tracker struct {
	lock      *os.File
	userfault kernel.Raw
	ranges    []image.Span
	copied    []image.Run // ascending; of pages of zeroes with the place zeroed
}

// zeroed marks pages as zeroes, which are in no image. The offset is their address.
const zeroed = -2

// leastTracked is how many pages a mapping must have to be tracked.
const leastTracked = 16

// track begins to note writes. Where that can't be done it returns nil.
func (c *commit) track(ctx context.Context) (*tracker, error) {
	lock, err := openPagemap(c.Process)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil, lock.Close() // another one does
	}
	t := &tracker{lock: lock, userfault: -1}
	err = c.stopped(ctx, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		var err error
		t.userfault, err = s.Take(call(kernel.SysUserfault, kernel.UserfaultFlags))
		return err
	})
	if err == nil {
		err = kernel.TrackWrites(t.userfault)
	}
	if err != nil {
		return nil, errors.Join(given(ctx, err), t.close())
	}
	for i := range c.memory.mappings {
		m := &c.memory.mappings[i]
		s := image.Span{Start: m.Start, End: m.End}
		if trackable(m) && t.add(s) == nil {
			t.ranges = append(t.ranges, s)
		}
	}
	return t, nil
}

// trackable reports whether writes to a mapping, of which the pages were found, are noted.
func trackable(m *image.Mapping) bool {
	return m.Kind == image.Anonymous && !slices.Contains(m.VMFlags, image.HugePages) && m.Protection&syscall.PROT_READ != 0 && pagesOf(m.Pages) >= leastTracked
}

// add begins to note writes to a mapping, which may be gone.
func (t *tracker) add(s image.Span) error { return kernel.TrackRange(t.userfault, s.Start, s.End) }

// close ends the tracking, step by step, so that the program is not held up; of nil it
// does nothing.
func (t *tracker) close() error {
	if t == nil {
		return nil
	}
	const step = 16 << 20
	for _, s := range t.ranges {
		for at := s.Start; at < s.End; at += step {
			if kernel.Untrack(t.userfault, at, min(at+step, s.End)) != nil {
				break // it is gone: the close does the rest
			}
		}
	}
	userfault := t.userfault
	t.userfault, t.ranges = -1, nil
	return errors.Join(userfault.Close(), t.unlock())
}

// unlock lets another vOS track the process, when this one does no more.
func (t *tracker) unlock() error {
	if t.lock == nil {
		return nil
	}
	lock := t.lock
	t.lock = nil
	return lock.Close()
}

// covers reports whether vOS tracks a mapping.
func (t *tracker) covers(start, end uint64) bool {
	return t != nil && slices.ContainsFunc(t.ranges, func(s image.Span) bool { return s.Start < end && start < s.End })
}

// known reports, of a region that was scanned, whether its pages are as they were when
// they were copied, if they were.
func (t *tracker) known(of kernel.PageCategories) bool {
	return t != nil && of&(kernel.PageWPAllowed|kernel.PageWritten|kernel.PageSwapped) == kernel.PageWPAllowed
}

// split returns which pages of a region the image has already, and which it has not.
func (t *tracker) split(start, end uint64) (have, lack []image.Run) {
	n := sort.Search(len(t.copied), func(i int) bool { return endOf(t.copied[i]) > start })
	for _, r := range t.copied[n:] {
		if r.Start >= end {
			break
		}
		r = cut(r, max(start, r.Start), min(end, endOf(r)))
		if r.Start > start {
			lack = append(lack, image.Run{Start: start, Count: (r.Start - start) / image.PageSize})
		}
		have = appendRun(have, r)
		start = endOf(r)
	}
	if start < end {
		lack = append(lack, image.Run{Start: start, Count: (end - start) / image.PageSize})
	}
	return have, lack
}

// scan returns the pages that match, and write-protects them if the query says so.
func (t *tracker) scan(c *commit, q kernel.PageQuery) (runs []image.Run, err error) {
	q.All |= kernel.PageWPAllowed
	q.Any |= kernel.PagePresent
	var regions []kernel.PageRegion
	for _, s := range t.ranges {
		if regions, err = kernel.AppendPages(regions[:0], c.pagemap, s.Start, s.End, &q); err != nil {
			return nil, err
		}
		for _, r := range regions {
			runs = append(runs, image.Run{Start: r.Start, Count: (r.End - r.Start) / image.PageSize})
		}
	}
	return runs, nil
}

func endOf(r image.Run) uint64 { return r.Start + r.Count*image.PageSize }

func pagesOf(runs []image.Run) (pages uint64) {
	for _, r := range runs {
		pages += r.Count
	}
	return pages
}

// cut returns the part of a run from start to end, which are in it.
func cut(r image.Run, start, end uint64) image.Run {
	r.Place.Offset += start - r.Start
	r.Start, r.Count = start, (end-start)/image.PageSize
	return r
}

// overlay joins two ascending lists of runs. Where both have a page, over's is taken.
func overlay(under, over []image.Run) []image.Run {
	all := make([]image.Run, 0, len(under)+len(over))
	rest := slices.Clone(under)
	for _, o := range over {
		for len(rest) > 0 && rest[0].Start < o.Start {
			r := rest[0]
			if endOf(r) <= o.Start {
				rest = rest[1:]
			} else {
				rest[0] = cut(r, o.Start, endOf(r))
				r = cut(r, r.Start, o.Start)
			}
			all = appendRun(all, r)
		}
		for len(rest) > 0 && rest[0].Start < endOf(o) {
			if endOf(rest[0]) > endOf(o) {
				rest[0] = cut(rest[0], endOf(o), endOf(rest[0]))
				break
			}
			rest = rest[1:]
		}
		all = appendRun(all, o)
	}
	for _, r := range rest {
		all = appendRun(all, r)
	}
	return all
}
