package intercept

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
)

// Counted is what a stub has counted: sums of all processors.
type Counted struct {
	Calls     uint64
	Allocated uint64 // bytes, as the allocator rounds them up
	Freed     uint64 // likewise
}

// A Sample is a block that was sampled and has not been freed yet.
type Sample struct {
	Block    uint64
	Size     uint64  // bytes, as the allocator rounds them up
	Weight   float64 // bytes in all that it stands for
	Stub     uint64  // that got it, of this interceptor or one that uses its table
	CallSite uint64  // where its caller went on
}

// Counts are what an interceptor has counted.
type Counts struct {
	Functions []Counted // as Functions has them
	Samples   []Sample  // by the address of the block; none where another one's table is used
	Lost      uint64    // samples that had no room
}

// Counts reads what was counted, while the program runs: no two numbers are of the
// same moment. Any number may be there. Addresses are offsets of r. Errors wrap
// that of r.
func (i *Interceptor) Counts(r io.ReaderAt) (Counts, error) {
	c := Counts{Functions: make([]Counted, len(i.functions))}
	l := &i.layout
	for processor := range i.config.Processors {
		words, err := readAt(r, i.config.Base+l.words+uint64(processor)*l.stride, l.stride)
		if err != nil {
			return Counts{}, fmt.Errorf("read counters: %w", err)
		}
		word := func(n int) uint64 { return le.Uint64(words[n*wordSize:]) }
		c.Lost += word(lostWord)
		for n := range c.Functions {
			f, at := &c.Functions[n], l.word[n]
			f.Calls += word(at + callsWord)
			switch kind := i.functions[n].Kind; {
			case kind == Release:
				f.Freed += word(at + bytesWord)
			case kind.Memory():
				f.Allocated += word(at + bytesWord)
				f.Freed += word(at + freedWord)
			}
		}
		if i.config.Rseq == nil {
			break // all use the words of the first
		}
	}
	if i.config.Interval == 0 || i.config.Samples != 0 {
		return c, nil
	}
	table, err := readAt(r, i.SamplesAddress(), samplesEnd)
	if err != nil {
		return Counts{}, fmt.Errorf("read samples: %w", err)
	}
	for n := range buckets * ways {
		s, ok := i.sample(table, n)
		if ok {
			c.Samples = append(c.Samples, s)
		}
	}
	slices.SortFunc(c.Samples, func(a, b Sample) int { return cmp.Compare(a.Block, b.Block) })
	return c, nil
}

// sample takes one sample from the table; ok is false where none is.
func (i *Interceptor) sample(table []byte, n int) (s Sample, ok bool) {
	const taken = 1 // being written
	s.Block = le.Uint64(table[filterSize+n*keySize:])
	b := table[filterSize+keysSize+n*sampleSize:]
	s.Size, s.Stub, s.CallSite = le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	if s.Block <= taken || s.Block >= addressEnd || s.Size == 0 || s.Size >= addressEnd {
		return Sample{}, false
	}
	// The chance that a way of exponential length ends within the block.
	s.Weight = float64(s.Size) / -math.Expm1(-float64(s.Size)/float64(i.config.Interval))
	return s, true
}
