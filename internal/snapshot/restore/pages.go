package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A piece is pages that lie one after the other in the image, within one of its blocks
// if these are full, and where they go.
type piece struct {
	place  image.Place
	bytes  uint64
	ranges []kernel.RemoteRange
}

const pieceBytes = 256 << 10 // of a block of an image

// pieces cuts the pages of mappings, but for those that the kernel has.
func pieces(mappings []image.Mapping) (list []piece, total uint64) {
	for i := range mappings {
		if mappings[i].Kind == image.VDSO {
			continue
		}
		for _, run := range mappings[i].Pages {
			total += run.Count * pageSize
			list = appendPieces(list, run)
		}
	}
	return list, total
}

func appendPieces(list []piece, run image.Run) []piece {
	start, place := run.Start, run.Place
	for left := run.Count * pageSize; left > 0; {
		n := len(list)
		if n == 0 || !list[n-1].precedes(place) {
			list = append(list, piece{place: place})
			n++
		}
		p := &list[n-1]
		length := min(left, pieceBytes-place.Offset%pieceBytes)
		p.ranges = append(p.ranges, kernel.RemoteRange{Address: start, Length: length})
		p.bytes += length
		start, left = start+length, left-length
		place.Offset += length
	}
	return list
}

// precedes reports whether a page at a place can be the next of the piece.
func (p *piece) precedes(place image.Place) bool {
	return p.place.Up == place.Up && p.place.Offset+p.bytes == place.Offset &&
		place.Offset%pieceBytes != 0 && len(p.ranges) < kernel.MaxRemoteRanges
}

// fill writes the pages of the mappings, and returns how many bytes they are. Pages are
// written while the process makes the ones that follow.
func (p *process) fill(source Source, mappings []image.Mapping) (total uint64, err error) {
	list, total := pieces(mappings)
	patience := p.patience
	defer func() { p.patience = patience }()
	p.patience += time.Duration(total / slowestBytes * uint64(time.Second))

	made := newFrontier()
	written := make(chan error, 1)
	go func() {
		written <- transfer(p.ctx, list, func(piece *piece, buffer []byte) error {
			if err := source.ReadPages(piece.place, buffer); err != nil {
				return fmt.Errorf("read pages of the image: %w", err)
			}
			last := piece.ranges[len(piece.ranges)-1]
			if err := made.await(last.Address + last.Length); err != nil {
				return err
			}
			return kernel.WriteMemory(p.pid, buffer, piece.ranges)
		})
	}()
	err = errUnmade // should populate panic
	defer func() {
		made.end(err)
		err = cmp.Or(err, <-written)
	}()
	err = p.populate(mappings, made)
	return total, err
}

var errUnmade = errors.New("its pages were not made")

// populate lets the process itself make the pages of large runs, some at once: written
// to from outside each of them would cost several times as much.
func (p *process) populate(mappings []image.Mapping, made *frontier) error {
	b := p.batch()
	asked := uint64(0)
	for i := range mappings {
		for _, run := range mappings[i].Pages {
			if run.Count < populateAtLeast || mappings[i].Kind == image.VDSO {
				continue
			}
			for start, left := run.Start, run.Count*pageSize; left > 0; {
				n := min(left, populatedAtOnce-asked)
				b.try(syscall.SYS_MADVISE, start, n, advisePopulateWrite)
				start, left, asked = start+n, left-n, asked+n
				if asked < populatedAtOnce {
					continue
				}
				if _, err := b.run(); err != nil {
					return err
				}
				made.advance(start)
				asked = 0
			}
		}
	}
	_, err := b.run()
	return err
}

const populatedAtOnce = 16 << 20 // bytes

// A frontier is up to which address pages are made.
type frontier struct {
	mu    sync.Mutex
	moved *sync.Cond
	at    uint64
	err   error
}

func newFrontier() *frontier {
	f := &frontier{}
	f.moved = sync.NewCond(&f.mu)
	return f
}

// advance moves it.
func (f *frontier) advance(to uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = to
	f.moved.Broadcast()
}

// end moves it behind all, or tells all who wait of an error.
func (f *frontier) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	f.advance(addressLimit)
}

// await waits until it has reached an address.
func (f *frontier) await(address uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.at < address {
		f.moved.Wait()
	}
	return f.err
}

// slowestBytes a second is what a machine populates that swaps.
const slowestBytes = 16 << 20

// transfer hands pieces to work, with a buffer of their size, two at a time where there
// are many. The first error ends it.
func transfer(ctx context.Context, list []piece, work func(piece *piece, buffer []byte) error) error {
	workers := min(2, runtime.GOMAXPROCS(0), 1+len(list)/4)
	var wait sync.WaitGroup
	var mu sync.Mutex
	var failed error
	next := 0
	take := func() *piece {
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = ctx.Err()
		}
		if failed != nil || next == len(list) {
			return nil
		}
		next++
		return &list[next-1]
	}
	loop := func() {
		var buffer []byte
		for piece := take(); piece != nil; piece = take() {
			buffer = slices.Grow(buffer[:0], int(piece.bytes))[:piece.bytes]
			if err := work(piece, buffer); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		}
	}
	for range workers - 1 {
		wait.Go(loop)
	}
	loop()
	wait.Wait()
	return failed
}
