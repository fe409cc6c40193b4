package dump

import (
	"math/rand/v2"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

// runsOf makes runs of pages, each with its place; 0 is none.
func runsOf(places []uint64) (runs []image.Run) {
	for i, p := range places {
		if p != 0 {
			runs = appendRun(runs, image.Run{Start: uint64(i) * image.PageSize, Count: 1, Place: image.Place{Offset: p * image.PageSize}})
		}
	}
	return runs
}

func placesOf(t *testing.T, runs []image.Run, pages int) []uint64 {
	t.Helper()
	places, end := make([]uint64, pages), uint64(0)
	for _, r := range runs {
		if r.Start < end || r.Count == 0 {
			t.Fatalf("runs %v are not in order", runs)
		}
		end = endOf(r)
		for i := range r.Count {
			places[r.Start/image.PageSize+i] = r.Place.Offset/image.PageSize + i
		}
	}
	return places
}

// TestRuns compares what is done to runs with what that means page by page.
func TestRuns(t *testing.T) {
	const pages = 24
	random := rand.New(rand.NewPCG(1, 2))
	some := func() []uint64 {
		places := make([]uint64, pages)
		for i := range places {
			switch random.IntN(5) {
			case 0:
			case 1:
				places[i] = 1 + random.Uint64N(100)
			default: // behind the one before
				if i > 0 && places[i-1] != 0 {
					places[i] = places[i-1] + 1
				}
			}
		}
		return places
	}
	for range 20000 {
		under, over := some(), some()
		joined := placesOf(t, overlay(runsOf(under), runsOf(over)), pages)
		left := &tracker{copied: runsOf(under)}
		left.forget(runsOf(over))
		kept := placesOf(t, left.copied, pages)
		for i := range pages {
			want := under[i]
			if over[i] != 0 {
				want = over[i]
			}
			if joined[i] != want {
				t.Fatalf("%v over %v is %v", over, under, joined)
			}
			if want = under[i]; over[i] != 0 {
				want = 0
			}
			if kept[i] != want {
				t.Fatalf("%v without %v is %v", under, over, kept)
			}
		}
		start := random.IntN(pages)
		end := start + 1 + random.IntN(pages-start)
		have, lack := (&tracker{copied: runsOf(under)}).split(uint64(start)*image.PageSize, uint64(end)*image.PageSize)
		has, lacks := placesOf(t, have, pages), placesOf(t, lack, pages)
		for i := range pages {
			within := i >= start && i < end
			if within && has[i] != under[i] || !within && (has[i] != 0 || lacks[i] != 0) {
				t.Fatalf("of %v from %d to %d there is %v", under, start, end, has)
			}
		}
		if n := int(pagesOf(have) + pagesOf(lack)); n != end-start {
			t.Fatalf("of %v from %d to %d there are %d pages", under, start, end, n)
		}
	}
}
