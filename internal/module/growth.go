package module

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/intercept"
)

// A Growth is how what a module owns has changed between two readings.
type Growth struct {
	Bytes float64
	Error float64 // standard error of Bytes, by the sampling

	// Steady: it grew in each quarter of the time, and by more than three standard
	// errors in all. So a module that fills a cache once, or returns what it took,
	// is not named; one that leaks less than a few MiB in that time is not either.
	Steady bool
}

// quarters is in how many parts of the time a module has to grow.
const quarters = 4

// GrowthOf returns how what a module owns has changed over a series of readings of one
// Meter, in the order of time.
func GrowthOf(series []*UsageReading, module int) Growth {
	if len(series) < 2 {
		return Growth{}
	}
	first, last := &series[0].Modules[module], &series[len(series)-1].Modules[module]
	g := Growth{Bytes: last.OwnedBytes() - first.OwnedBytes()}
	g.Error = math.Sqrt(variance(first.Owned, last.Owned) + variance(last.Owned, first.Owned))
	if len(series) <= quarters {
		return g
	}
	g.Steady = g.Bytes > 3*g.Error
	begin, all := series[0].Time, series[len(series)-1].Time.Sub(series[0].Time)
	from := first
	for q := range quarters {
		to := &nearest(series, begin.Add(all*time.Duration(q+1)/quarters)).Modules[module]
		g.Steady = g.Steady && to.OwnedBytes() > from.OwnedBytes()
		from = to
	}
	return g
}

// nearest returns the reading that was made nearest to a time.
func nearest(series []*UsageReading, t time.Time) *UsageReading {
	return slices.MinFunc(series, func(a, b *UsageReading) int {
		return cmp.Compare(a.Time.Sub(t).Abs(), b.Time.Sub(t).Abs())
	})
}

// variance returns that of the estimate of what those blocks stand for that are in one
// reading and not in the other: a block is sampled or not, each for itself.
func variance(of, without []OwnedBlock) (sum float64) {
	known := make(map[intercept.Sample]bool, len(without))
	for _, b := range without {
		known[b.Sample] = true
	}
	for _, b := range of {
		if !known[b.Sample] {
			chance := float64(b.Size) / b.Weight
			sum += b.Weight * b.Weight * (1 - chance)
		}
	}
	return sum
}
