package match

import (
	"cmp"
	"slices"

	"github.com/virtualizing-os/vos/internal/x86"
)

// leastSimilar is from which similarity on two functions may be one.
const leastSimilar = 0.5

// shape is what of an instruction stays when registers, displacements and
// immediates change.
func shape(i *x86.Inst) uint32 {
	s := uint32(i.Opcode) | uint32(i.Map)<<8 | uint32(i.Encoding)<<12 | uint32(i.Prefixes&(x86.PrefixOpSize|x86.PrefixRep|x86.PrefixRepne))<<14
	if i.HasModRM {
		s |= 1 << 30
		if i.HasMem {
			s |= 1 << 31
		}
	}
	return s
}

// shapes returns the neighbouring pairs of shapes of a function, sorted.
func (b *Build) shapes(index int) []uint64 {
	f := &b.Functions[index]
	raw := b.raw(f)
	all := make([]uint64, 0, f.count)
	before := uint32(0)
	for at := 0; at < len(raw); {
		i, err := x86.Decode(raw[at:])
		if err != nil {
			break
		}
		s := shape(&i)
		all = append(all, uint64(before)<<32|uint64(s))
		before = s
		at += i.Len
	}
	slices.Sort(all)
	return all
}

// similarity is the Dice coefficient of the shapes: 1 for the same ones in the
// same order, 0 for nothing in common.
func (p *pairing) similarity(old, new int) float64 {
	f, g := &p.old.Functions[old], &p.new.Functions[new]
	if f.Opaque || g.Opaque || f.count > 4*g.count+16 || g.count > 4*f.count+16 {
		return 0
	}
	return dice(p.old.shapes(old), p.new.shapes(new))
}

func dice(a, b []uint64) float64 {
	if len(a)+len(b) == 0 {
		return 0
	}
	common := 0
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			common++
			i++
			j++
		case a[i] < b[j]:
			i++
		default:
			j++
		}
	}
	return 2 * float64(common) / float64(len(a)+len(b))
}

// byPlace pairs similar functions between two pairs, in their order, of which
// it is at least that sure.
func (p *pairing) byPlace(least Trust) {
	i, j := 0, 0 // the first behind the last anchor
	for k := 0; k <= len(p.ofOld); k++ {
		l := len(p.ofNew)
		if k < len(p.ofOld) {
			if p.ofOld[k] < 0 || p.pairs[p.ofOld[k]].Trust < Strong {
				continue
			}
			l = p.newOf(k)
		}
		if l >= j {
			p.pairBetween(i, k, j, l, least)
		}
		i, j = k+1, l+1
	}
}

// mostBetween bounds the comparisons between two pairs.
const mostBetween = 64

func (p *pairing) pairBetween(i, k, j, l int, least Trust) {
	var old, new []int
	for a := i; a < k; a++ {
		if p.ofOld[a] < 0 {
			old = append(old, a)
		}
	}
	for b := j; b < l; b++ {
		if p.ofNew[b] < 0 {
			new = append(new, b)
		}
	}
	if len(old) == 0 || len(new) == 0 || len(old) > mostBetween || len(new) > mostBetween {
		return
	}
	type candidate struct {
		old, new int
		like     float64
	}
	var all []candidate
	of := make([][]uint64, len(new))
	for b := range new {
		of[b] = p.new.shapes(new[b])
	}
	for a := range old {
		f := &p.old.Functions[old[a]]
		s := p.old.shapes(old[a])
		for b := range new {
			if g := &p.new.Functions[new[b]]; f.Opaque || g.Opaque || f.count > 4*g.count+16 || g.count > 4*f.count+16 {
				continue
			}
			if like := dice(s, of[b]); like >= leastSimilar {
				all = append(all, candidate{a, b, like})
			}
		}
	}
	// As many on both sides, each like its counterpart: nothing came or went.
	straight := 0
	for _, c := range all {
		if c.old == c.new {
			straight++
		}
	}
	if len(old) == len(new) && straight == len(old) {
		for a := range old {
			p.set(old[a], new[a], ByPlace, Likely)
		}
		return
	}
	slices.SortStableFunc(all, func(x, y candidate) int { return cmp.Compare(y.like, x.like) })
	var taken []candidate
	for _, c := range all {
		if slices.ContainsFunc(taken, func(t candidate) bool { return t.old == c.old || t.new == c.new || (t.old < c.old) != (t.new < c.new) }) {
			continue
		}
		// A second one that is about as similar makes it a guess.
		rival := slices.ContainsFunc(all, func(t candidate) bool {
			return (t.old == c.old) != (t.new == c.new) && t.like > c.like-0.1
		})
		trust := Likely
		if rival || c.like < 0.6 {
			trust = Guess
		}
		if trust >= least && p.set(old[c.old], new[c.new], ByPlace, trust) {
			taken = append(taken, c)
		}
	}
}
