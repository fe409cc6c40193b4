package dump

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/virtualizing-os/vos/internal/image"
)

// earlier is the memory of a process as a parent image has it: what did not change
// since is not written again. It may be used by several goroutines.
type earlier struct {
	reader *image.Reader
	runs   []image.Run // by ascending address

	buffers *sync.Pool // of window bytes
}

func newWindows() *sync.Pool { return &sync.Pool{New: func() any { return new(seen) }} }

// window is how much of the parent is read at a time.
const window = 64 << 10

// earlierOf returns the memory of a process in an image, or nil if there is none.
func earlierOf(r *image.Reader, pid int) *earlier {
	if r == nil {
		return nil
	}
	processes := r.Image().Processes
	n := slices.IndexFunc(processes, func(p image.Process) bool { return p.PID == pid })
	if n < 0 {
		return nil
	}
	e := &earlier{reader: r, buffers: newWindows()}
	for i := range processes[n].Mappings {
		e.runs = append(e.runs, processes[n].Mappings[i].Pages...)
	}
	return e
}

// earlierObject returns what a parent image has of shared memory, if anything: what is
// called like that, and comes after as many of the same name. Only what is found to be the
// same is taken from there, so another one does no harm.
func earlierObject(r *image.Reader, o *image.Object, seen map[string]int) *earlier {
	if r == nil {
		return nil
	}
	name := func(o *image.Object) string { return fmt.Sprint(o.Kind, o.ID, o.Name) }
	skip := seen[name(o)]
	seen[name(o)]++
	for _, other := range r.Image().Objects {
		if name(&other) != name(o) {
			continue
		}
		if skip == 0 {
			return &earlier{reader: r, runs: other.Pages, buffers: newWindows()}
		}
		skip--
	}
	return nil
}

// seen is pages of the parent that were read.
type seen struct {
	start, end uint64 // addresses
	place      image.Place
	data       [window]byte
}

// has reports whether a page stands in the parent as it is now, and where.
func (e *earlier) has(address uint64, page []byte) (bool, image.Place, error) {
	if e == nil {
		return false, image.Place{}, nil
	}
	s := e.buffers.Get().(*seen)
	defer e.buffers.Put(s)
	if address < s.start || address >= s.end {
		n, found := slices.BinarySearchFunc(e.runs, address, func(r image.Run, address uint64) int {
			switch {
			case r.Start+r.Count*image.PageSize <= address:
				return -1
			case r.Start > address:
				return 1
			}
			return 0
		})
		if !found {
			return false, image.Place{}, nil
		}
		r := e.runs[n]
		s.start, s.end = address, min(address+window, r.Start+r.Count*image.PageSize)
		s.place = r.Place
		s.place.Offset += address - r.Start
		if err := e.reader.ReadPages(s.place, s.data[:s.end-s.start]); err != nil {
			s.start, s.end = 0, 0
			return false, image.Place{}, err
		}
	}
	at := address - s.start
	place := s.place
	place.Up++
	place.Offset += at
	return bytes.Equal(page, s.data[at:at+image.PageSize]), place, nil
}
