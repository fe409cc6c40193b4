package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// chunk is how many bytes of memory are read and written at a time, by each worker.
const chunk = 1 << 20

// workers is how many goroutines copy memory; while the program is held, the tracing
// thread does fewJobs by itself.
const (
	workers = 2
	fewJobs = 8
)

// A piece is a part of a mapping's pages, in a job.
type piece struct {
	mapping int
	start   uint64
	count   uint64 // pages
}

// A job is what one read and one write take: up to chunk bytes.
type job struct {
	pieces []piece
	pages  uint64
	force  bool          // not readable by the program: read as a debugger does
	runs   [][]image.Run // of each piece: where its pages are, those of zeroes left out
	lost   bool          // it could not be read
}

// jobs cuts the pages that are to be kept into parts.
func (m *memory) jobs() []job {
	var all []job
	for i := range m.mappings {
		to := &m.mappings[i]
		force := to.Protection&syscall.PROT_READ == 0
		for _, r := range to.Pages {
			for left := r.Count; left > 0; {
				n := len(all) - 1
				if n < 0 || all[n].force != force || all[n].pages == chunk/image.PageSize || len(all[n].pieces) == kernel.MaxRemoteRanges {
					all = append(all, job{force: force})
					n++
				}
				j := &all[n]
				count := min(left, chunk/image.PageSize-j.pages)
				j.pieces = append(j.pieces, piece{mapping: i, start: r.Start + (r.Count-left)*image.PageSize, count: count})
				j.pages += count
				left -= count
			}
		}
	}
	return all
}

// dump copies the pages that scan has found to an image, and notes where they are. Of a
// running process it returns those that could not be read, as they are gone.
func (c *copier) dump(ctx context.Context, m *memory, progress func(done uint64)) (lost []image.Run, err error) {
	all := m.jobs()
	var (
		mu   sync.Mutex
		next int
		done uint64
		errs []error
	)
	take := func() *job {
		mu.Lock()
		defer mu.Unlock()
		if next == len(all) || len(errs) > 0 {
			return nil
		}
		next++
		return &all[next-1]
	}
	work := func() {
		buffer := buffers.Get().(*[chunk]byte)
		defer buffers.Put(buffer)
		for j := take(); j != nil; j = take() {
			err := ctx.Err()
			if err == nil {
				err = c.copy(j, buffer[:j.pages*image.PageSize])
			}
			mu.Lock()
			if err != nil {
				errs = append(errs, err)
			}
			done += j.pages * image.PageSize
			progress(done)
			mu.Unlock()
		}
	}
	var group sync.WaitGroup
	if !c.running && len(all) <= fewJobs {
		// This thread runs before all others of a busy machine.
		work()
	} else {
		for range min(workers, len(all)) {
			group.Go(work)
		}
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i := range m.mappings {
		m.mappings[i].Pages = m.mappings[i].Pages[:0]
	}
	for i := range all {
		for n, piece := range all[i].pieces {
			if all[i].lost {
				lost = append(lost, image.Run{Start: piece.start, Count: piece.count})
				continue
			}
			to := &m.mappings[piece.mapping]
			for _, r := range all[i].runs[n] {
				to.Pages = appendRun(to.Pages, r)
			}
		}
	}
	return lost, nil
}

var buffers = sync.Pool{New: func() any { return new([chunk]byte) }}

// appendRun appends a run, to the last one where both are one.
func appendRun(runs []image.Run, r image.Run) []image.Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		size := last.Count * image.PageSize
		if last.Start+size == r.Start && last.Place.Up == r.Place.Up && last.Place.Offset+size == r.Place.Offset {
			last.Count += r.Count
			return runs
		}
	}
	return append(runs, r)
}

// A copier copies pages to an image, but for those that need not be there.
type copier struct {
	pid      int
	memory   *procfs.Memory
	writer   *image.Writer
	before   *earlier // nil without a parent image
	mappings []image.Mapping
	running  bool // the process runs: what can't be read is gone
}

func (c *copier) read(j *job, b []byte) error {
	if j.force {
		at := 0
		for _, piece := range j.pieces {
			size := int(piece.count * image.PageSize)
			if _, err := c.memory.ReadAt(b[at:at+size], int64(piece.start)); err != nil {
				return err
			}
			at += size
		}
		return nil
	}
	ranges := make([]kernel.RemoteRange, len(j.pieces))
	for i, piece := range j.pieces {
		ranges[i] = kernel.RemoteRange{Address: piece.start, Length: piece.count * image.PageSize}
	}
	if err := kernel.ReadMemory(c.pid, b, ranges); err != nil {
		return fmt.Errorf("keep memory: %w", err)
	}
	return nil
}

// copy reads the pages of a job to b, and keeps them.
func (c *copier) copy(j *job, b []byte) error {
	if err := c.read(j, b); err != nil {
		if c.running && errors.Is(err, syscall.EFAULT) {
			j.lost = true
			return nil
		}
		return err
	}
	return c.keep(j, b)
}

// keep writes those pages of a job, which were read to b, that are neither zeroes of
// anonymous memory nor in a parent of the image.
func (c *copier) keep(j *job, b []byte) error {
	j.runs = make([][]image.Run, len(j.pieces))
	at, end := 0, 0 // in b: the page looked at, and the end of those that are to be written
	for n, piece := range j.pieces {
		zeroed := c.mappings[piece.mapping].Kind == image.Anonymous
		for i := range piece.count {
			page, address := b[at:at+image.PageSize], piece.start+i*image.PageSize
			at += image.PageSize
			if zeroed && bytes.Equal(page, zeroes[:image.PageSize]) {
				continue
			}
			r := image.Run{Start: address, Count: 1}
			same, place, err := c.before.has(address, page)
			switch {
			case err != nil:
				return err
			case same:
				r.Place = place
			default:
				// Its place in the image is known when all are written.
				r.Place = image.Place{Up: unwritten, Offset: uint64(end)}
				if end != at-image.PageSize {
					copy(b[end:], page)
				}
				end += image.PageSize
			}
			j.runs[n] = appendRun(j.runs[n], r)
		}
	}
	if end == 0 {
		return nil
	}
	place, err := c.writer.Append(b[:end])
	if err != nil {
		return err
	}
	for _, runs := range j.runs {
		for i := range runs {
			if r := &runs[i]; r.Place.Up == unwritten {
				r.Place = image.Place{Offset: place.Offset + r.Place.Offset}
			}
		}
	}
	return nil
}

// unwritten marks a place as one in what is about to be written.
const unwritten = -1
