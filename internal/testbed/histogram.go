package testbed

import (
	"math/bits"
	"time"
)

// A histogram counts durations in buckets that are 1/32 of a power of two wide
// (so 3 % exact), from 1 µs to some hours, without allocating.
type histogram struct {
	buckets [32 * 32]int64
	count   int64
	max     time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
	h.max = max(h.max, o.max)
}

// quantile returns the upper bound of the bucket that holds the share q of all
// durations, at most the greatest one seen; 0 where there is none.
func (h *histogram) quantile(q float64) time.Duration {
	rank := int64(q * float64(h.count))
	for i, n := range h.buckets {
		if n > 0 && rank < n {
			return min(bucketEnd(i), h.max)
		}
		rank -= n
	}
	return h.max
}

// bucketOf: below 32 µs a bucket a microsecond; above, five bits after the
// leading one.
func bucketOf(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 32 {
		return int(us)
	}
	shift := bits.Len64(us) - 6
	return min((shift+1)*32+int(us>>shift)-32, 32*32-1)
}

func bucketEnd(i int) time.Duration {
	if i < 32 {
		return time.Duration(i+1) * time.Microsecond
	}
	shift := i/32 - 1
	return time.Duration(uint64(i%32+33)<<shift) * time.Microsecond
}
