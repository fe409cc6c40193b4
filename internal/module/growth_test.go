package module

import (
	"slices"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/intercept"
)

// owning is a reading of one module that owns blocks of a size, numbered so that those
// of two readings are the same.
func owning(size uint64, blocks ...int) *UsageReading {
	const interval = 512 << 10
	weight := float64(max(size, interval))
	u := ModuleUsage{}
	for _, n := range blocks {
		u.Owned = append(u.Owned, OwnedBlock{Sample: intercept.Sample{Block: uint64(n+1) << 20, Size: size, Weight: weight}})
	}
	return &UsageReading{Modules: []ModuleUsage{u}}
}

func upTo(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

func TestGrowthOf(t *testing.T) {
	series := func(size uint64, lengths ...int) (all []*UsageReading) {
		for _, n := range lengths {
			all = append(all, owning(size, upTo(n)...))
		}
		return all
	}
	others := []*UsageReading{owning(100, upTo(20)...)} // blocks come and go
	for q := 1; q <= 4; q++ {
		reading := owning(100)
		for n := range 20 + q {
			reading.Modules[0].Owned = append(reading.Modules[0].Owned, owning(100, 1000*q+n).Modules[0].Owned[0])
		}
		others = append(others, reading)
	}
	tests := []struct {
		name   string
		series []*UsageReading
		blocks float64 // that it grew by
		steady bool
	}{
		{"all the time", series(100, 5, 10, 15, 20, 25), 20, true},
		{"longer", series(100, 0, 1, 4, 5, 8, 9, 12, 13, 16), 16, true},
		{"a cache that is filled at once", series(100, 5, 25, 25, 25, 25), 20, false},
		{"given back for a while", series(100, 5, 15, 12, 20, 25), 20, false},
		{"too little to tell", series(100, 0, 1, 2, 3, 4), 4, false},
		{"few large blocks, all of which are sampled", series(1<<30, 0, 1, 2, 3, 4), 4 * 2048, true},
		{"as much as before, but other blocks", others, 4, false},
		{"too few readings", series(100, 0, 10, 20, 30), 30, false},
		{"one reading", series(100, 9), 0, false},
		{"none", nil, 0, false},
	}
	begin := time.Now()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for n, r := range test.series {
				r.Time = begin.Add(time.Duration(n) * time.Second)
			}
			g := GrowthOf(test.series, 0)
			if want := test.blocks * (512 << 10); g.Bytes != want || g.Steady != test.steady {
				t.Errorf("%+v, want %v and %v", g, want, test.steady)
			}
		})
	}
}

// Readings that are not spread evenly: quarters are of the time, not of the readings.
func TestGrowthOfQuartersOfTime(t *testing.T) {
	begin := time.Now()
	var series []*UsageReading
	for second, blocks := range map[int]int{0: 0, 1: 10, 2: 20, 3: 30, 4: 40, 16: 50} {
		r := owning(100, upTo(blocks)...)
		r.Time = begin.Add(time.Duration(second) * time.Second)
		series = append(series, r)
	}
	slices.SortFunc(series, func(a, b *UsageReading) int { return a.Time.Compare(b.Time) })
	if g := GrowthOf(series, 0); g.Steady {
		t.Errorf("it may have grown at the end alone: %+v", g)
	}
}
