package match

import "slices"

// A ballot collects which new function each old one should be paired with.
// Two opinions on one function make none.
type ballot struct {
	forOld map[int32]int32
	forNew map[int32]int32
}

const disputed = -2

func newBallot() *ballot { return &ballot{map[int32]int32{}, map[int32]int32{}} }

func (v *ballot) cast(old, new int32) {
	if got, ok := v.forOld[old]; ok && got != new {
		v.forOld[old] = disputed
	} else {
		v.forOld[old] = new
	}
	if got, ok := v.forNew[new]; ok && got != old {
		v.forNew[new] = disputed
	} else {
		v.forNew[new] = old
	}
}

// agreed returns the opinions that nothing speaks against, by old function.
func (v *ballot) agreed() [][2]int32 {
	var all [][2]int32
	for old, new := range v.forOld {
		if new >= 0 && v.forNew[new] == old {
			all = append(all, [2]int32{old, new})
		}
	}
	slices.SortFunc(all, func(a, b [2]int32) int { return int(a[0] - b[0]) })
	return all
}

// byReference pairs what trusted pairs of equal text refer to at the same
// place. Which function is called there may be what a change was about, so
// functions of other content pair only if neither content exists elsewhere.
// Opinions below the least trust wait: more pairs may decide them.
func (p *pairing) byReference(least Trust) {
	for {
		votes := newBallot()
		for k := range p.pairs {
			q := &p.pairs[k]
			if !q.equal || q.Trust < Strong {
				continue
			}
			rf, rg := p.old.referencesOf(&p.old.Functions[q.Old]), p.new.referencesOf(&p.new.Functions[q.New])
			for i := range rf {
				p.vote(votes, &rf[i], &rg[i])
			}
		}
		found := false
		for _, v := range votes.agreed() {
			if trust := p.trustOf(v); trust >= least {
				found = p.set(int(v[0]), int(v[1]), ByReference, trust) || found
			}
		}
		if !found {
			return
		}
	}
}

func (p *pairing) vote(votes *ballot, r, s *Reference) {
	if r.To < 0 || s.To < 0 || r.Region != Text || s.Region != Text || p.ofOld[r.To] >= 0 || p.ofNew[s.To] >= 0 {
		return
	}
	if r.Target-p.old.Functions[r.To].Addr == s.Target-p.new.Functions[s.To].Addr {
		votes.cast(r.To, s.To)
	}
}

// trustOf says how far two functions at the same place of trusted ones may be
// trusted to be one.
func (p *pairing) trustOf(v [2]int32) Trust {
	f, g := &p.old.Functions[v[0]], &p.new.Functions[v[1]]
	switch {
	case f.hash == g.hash:
		return Strong
	case p.newFree[f.hash] > 0 || p.oldFree[g.hash] > 0:
		return Guess // one of them may belong to a function that is yet to be found
	case p.similarity(int(v[0]), int(v[1])) < leastSimilar:
		return Guess
	}
	return Strong
}

// byTable pairs the functions at the same places of relocated tables that
// trusted pairs or exported objects lead to: vtables, arrays of function
// pointers, and the tables that those point at.
func (p *pairing) byTable(least Trust) {
	w := tableWalk{p: p, votes: newBallot(), done: map[[2]uint64]bool{}}
	for k := range p.pairs {
		q := &p.pairs[k]
		if !q.equal || q.Trust < Strong {
			continue
		}
		rf, rg := p.old.referencesOf(&p.old.Functions[q.Old]), p.new.referencesOf(&p.new.Functions[q.New])
		for i := range rf {
			if r, s := &rf[i], &rg[i]; r.To < 0 && s.To < 0 && r.Region == s.Region {
				w.add(r.Region, r.Target, s.Target)
			}
		}
	}
	for i := range p.old.Exports {
		e := &p.old.Exports[i]
		n := p.new.Export(e.Key)
		if n != nil && e.Function < 0 && n.Function < 0 && e.Size == n.Size && !e.IsTLS() {
			w.add(p.old.im.region(p.old.Object, e.Value), e.Value, n.Value)
		}
	}
	p.aligned = map[uint64]uint64{}
	for len(w.todo) > 0 {
		t := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.table(t[0], t[1])
	}
	for _, v := range w.votes.agreed() {
		trust := p.trustOf(v)
		f, g := &p.old.Functions[v[0]], &p.new.Functions[v[1]]
		if p.newFree[f.hash] == 0 && p.oldFree[g.hash] == 0 {
			trust = Likely // whatever they are like: the place in the table is what callers go by
		}
		if trust = min(trust, Likely); trust >= least {
			p.set(int(v[0]), int(v[1]), ByTable, trust)
		}
	}
}

// A tableWalk follows pairs of tables.
type tableWalk struct {
	p     *pairing
	votes *ballot
	done  map[[2]uint64]bool
	todo  [][2]uint64
}

func (w *tableWalk) add(region Region, old, new uint64) {
	if region != Relro && region != Data {
		return
	}
	if key := [2]uint64{old, new}; !w.done[key] {
		w.done[key] = true
		w.todo = append(w.todo, key)
	}
}

// table walks two tables while both have the same kind of word at the same
// distance, up to the next thing that something refers to.
func (w *tableWalk) table(old, new uint64) {
	const longest = 4096
	p := w.p
	oldEnd, newEnd := min(next(p.oldBounds, old+1), old+longest), min(next(p.newBounds, new+1), new+longest)
	a, b := p.old.wordsIn(old, oldEnd), p.new.wordsIn(new, newEnd)
	for i := range min(len(a), len(b)) {
		if a[i].at-old != b[i].at-new || a[i].kind != b[i].kind || a[i].name != b[i].name {
			return
		}
		p.aligned[b[i].at] = a[i].at
		x, y := a[i].target, b[i].target
		f, g := p.old.FunctionAt(x), p.new.FunctionAt(y)
		if (f < 0) != (g < 0) {
			return
		}
		if f < 0 {
			if r := p.old.im.region(p.old.Object, x); r == p.new.im.region(p.new.Object, y) {
				w.add(r, x, y)
			}
			continue
		}
		if p.old.Functions[f].Addr != x || p.new.Functions[g].Addr != y {
			continue
		}
		if p.ofOld[f] >= 0 || p.ofNew[g] >= 0 {
			if p.newOf(f) != g {
				return // the tables differ from here on
			}
			if q := &p.pairs[p.ofOld[f]]; q.Trust == Guess {
				q.Trust = Likely // two ways lead to it
			}
			continue
		}
		w.votes.cast(int32(f), int32(g))
	}
}

// byRun pairs functions of equal content that follow or precede a pair of the
// least trust, where it is at least that sure. Between two pairs with nothing
// left over they are as good as those.
func (p *pairing) byRun(least Trust) {
	for i := range p.ofOld {
		if p.ofOld[i] < 0 || p.pairs[p.ofOld[i]].Trust < least {
			continue
		}
		p.run(i, 1, least)
		p.run(i, -1, least)
	}
}

// run pairs along one direction.
func (p *pairing) run(from, step int, least Trust) {
	i, j := from, p.newOf(from)
	n := 1
	seen := map[uint64]int{}
	for p.free(i+n*step, j+n*step) && p.old.Functions[i+n*step].hash == p.new.Functions[j+n*step].hash {
		seen[p.old.Functions[i+n*step].hash]++
		n++
	}
	if n == 1 {
		return
	}
	ends := Unpaired
	if x, y := i+n*step, j+n*step; x >= 0 && y >= 0 && x < len(p.ofOld) && y < len(p.ofNew) && p.newOf(x) == y {
		ends = min(p.pairs[p.ofOld[from]].Trust, p.pairs[p.ofOld[x]].Trust)
	}
	for k := 1; k < n; k++ {
		h := p.old.Functions[i+k*step].hash
		trust := Guess // a twin may be the next one's
		switch {
		case ends >= Strong && seen[h] == 1:
			trust = Strong
		case ends >= Likely, p.oldHash[h] == 1 && p.newHash[h] == 1:
			trust = Likely
		}
		if trust < min(least, Likely) {
			return
		}
		p.set(i+k*step, j+k*step, ByRun, trust)
	}
}

// free tells that two functions exist and have no pair.
func (p *pairing) free(old, new int) bool {
	return old >= 0 && new >= 0 && old < len(p.ofOld) && new < len(p.ofNew) && p.ofOld[old] < 0 && p.ofNew[new] < 0
}
