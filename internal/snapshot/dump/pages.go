package dump

import (
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

// workers is how many goroutines copy memory.
const workers = 2

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
	force  bool // not readable by the program: read as a debugger does
	place  image.Place
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

// dump copies the pages that scan has found to an image, and notes where they are. The
// process is held still.
func (m *memory) dump(p *procfs.Process, memory *procfs.Memory, w *image.Writer, progress func(done uint64)) error {
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
	var group sync.WaitGroup
	for range min(workers, len(all)) {
		group.Go(func() {
			buffer := buffers.Get().(*[chunk]byte)
			defer buffers.Put(buffer)
			for j := take(); j != nil; j = take() {
				err := j.copy(p.PID(), memory, w, buffer[:j.pages*image.PageSize])
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				done += j.pages * image.PageSize
				progress(done)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i := range m.mappings {
		m.mappings[i].Pages = m.mappings[i].Pages[:0]
	}
	for i := range all {
		place := all[i].place
		for _, piece := range all[i].pieces {
			to := &m.mappings[piece.mapping]
			to.Pages = appendRun(to.Pages, image.Run{Start: piece.start, Count: piece.count, Place: place})
			place.Offset += piece.count * image.PageSize
		}
	}
	return nil
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

func (j *job) copy(pid int, memory *procfs.Memory, w *image.Writer, b []byte) (err error) {
	if j.force {
		at := 0
		for _, piece := range j.pieces {
			size := int(piece.count * image.PageSize)
			if _, err := memory.ReadAt(b[at:at+size], int64(piece.start)); err != nil {
				return err
			}
			at += size
		}
	} else {
		ranges := make([]kernel.RemoteRange, len(j.pieces))
		for i, piece := range j.pieces {
			ranges[i] = kernel.RemoteRange{Address: piece.start, Length: piece.count * image.PageSize}
		}
		if err := kernel.ReadMemory(pid, b, ranges); err != nil {
			return fmt.Errorf("keep memory: %w", err)
		}
	}
	j.place, err = w.Append(b)
	return err
}
