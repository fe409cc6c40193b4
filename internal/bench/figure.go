// Package bench measures what vOS claims, on real programs, and prints each
// figure with its spread. Where a floor or another tool can run, it runs in the
// same loop, one measurement after the other, and the ratio is of the two
// medians: machines are noisy, and what is compared must have met the same
// noise.
package bench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// A Figure is a series of measurements of one thing.
type Figure struct {
	Name    string
	Samples []time.Duration
	Floor   []time.Duration // of the least that the kernel takes for the same, if measured
	Against string          // what Floor is
	Aim     string          // what was promised, "" for nothing
	Bytes   bool            // what is measured are bytes
}

// quantile returns the q-th quantile of samples, which it sorts.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return samples[min(len(samples)-1, int(q*float64(len(samples))))]
}

// Median returns the median of the samples.
func (f *Figure) Median() time.Duration { return quantile(f.Samples, .5) }

// Ratio returns median by median of the floor, 0 without one.
func (f *Figure) Ratio() float64 {
	floor := quantile(f.Floor, .5)
	if floor == 0 {
		return 0
	}
	return float64(f.Median()) / float64(floor)
}

// Print writes figures as a table.
func Print(w io.Writer, title string, figures []Figure) error {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  what\truns\tleast\tmedian\t90 %\tmost\tfloor\tratio\taim")
	for i := range figures {
		f := &figures[i]
		show := show
		if f.Bytes {
			show = func(d time.Duration) string { return fmt.Sprintf("%.4g MiB", float64(d)/(1<<20)) }
		}
		floor, ratio := "-", "-"
		if len(f.Floor) > 0 {
			floor, ratio = show(quantile(f.Floor, .5)), fmt.Sprintf("%.2f", f.Ratio())
		}
		fmt.Fprintf(t, "  %s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, len(f.Samples),
			show(quantile(f.Samples, 0)), show(f.Median()), show(quantile(f.Samples, .9)), show(quantile(f.Samples, 1)), floor, ratio, f.Aim)
	}
	return t.Flush()
}

// show prints a duration to three digits.
func show(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
