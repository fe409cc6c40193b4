package match

import (
	"bytes"
	"maps"
	"slices"
)

// Trust says what may be built on a pair of functions.
type Trust uint8

// The levels. Data is mapped by Certain and Strong pairs of equal text only;
// an entry is redirected from Likely on. A Guess serves the report.
const (
	Unpaired Trust = iota
	Guess
	Likely
	Strong
	Certain
)

var trustNames = [...]string{"unpaired", "guess", "likely", "strong", "certain"}

func (t Trust) String() string { return trustNames[t] }

// A PairedBy is how two functions came to be a pair.
type PairedBy uint8

// The ways, in the order in which they are tried.
const (
	ByName      PairedBy = iota // exported under the same name and version
	BySymbol                    // the same name in .symtab
	ByHash                      // the only ones of this content
	ByReference                 // referred to at the same place of paired functions
	ByTable                     // at the same place of a relocated table
	ByRun                       // equal content beside paired functions
	ByPlace                     // similar, between paired functions
)

var pairedByNames = [...]string{"name", "symbol", "hash", "reference", "table", "run", "place"}

func (p PairedBy) String() string { return pairedByNames[p] }

// A State is how the functions of a pair differ.
type State uint8

// The states.
const (
	Identical State = iota // equal text, and what it refers to is the same
	Referring              // equal text, but a reference or a constant differs
	Changed                // text differs
)

var stateNames = [...]string{"identical", "referring", "changed"}

func (s State) String() string { return stateNames[s] }

// A Pair is an old and a new function that are the same one of the source.
type Pair struct {
	Old, New int // indices in Build.Functions
	By       PairedBy
	Trust    Trust
	State    State
	equal    bool // normalised text and positions of references
}

// A pairing is the pairs as they are found.
type pairing struct {
	old, new *Build
	pairs    []Pair
	ofOld    []int32 // index in pairs, -1 for none
	ofNew    []int32

	// An old function whose names two new ones have, or the other way round.
	split []Pair

	oldHash, newHash map[uint64]int32 // how many functions have a hash
	oldRich, newRich map[uint64]int32
	oldFree, newFree map[uint64]int32 // of functions without a pair

	oldBounds, newBounds []uint64 // what something refers to

	// Relocated words at the same places of tables, new → old.
	aligned map[uint64]uint64
}

func newPairing(old, new *Build) *pairing {
	p := &pairing{old: old, new: new, ofOld: none(len(old.Functions)), ofNew: none(len(new.Functions))}
	p.oldHash, p.oldRich = countHashes(old)
	p.newHash, p.newRich = countHashes(new)
	p.oldFree, p.newFree = maps.Clone(p.oldHash), maps.Clone(p.newHash)
	p.oldBounds, p.newBounds = old.boundaries(), new.boundaries()
	return p
}

func none(n int) []int32 {
	all := make([]int32, n)
	for i := range all {
		all[i] = -1
	}
	return all
}

func countHashes(b *Build) (text, rich map[uint64]int32) {
	text, rich = make(map[uint64]int32, len(b.Functions)), make(map[uint64]int32, len(b.Functions))
	for i := range b.Functions {
		text[b.Functions[i].hash]++
		rich[b.Functions[i].rich]++
	}
	return text, rich
}

// set makes a pair of two functions that have none.
func (p *pairing) set(old, new int, by PairedBy, trust Trust) bool {
	if p.ofOld[old] >= 0 || p.ofNew[new] >= 0 {
		return false
	}
	p.oldFree[p.old.Functions[old].hash]--
	p.newFree[p.new.Functions[new].hash]--
	p.ofOld[old], p.ofNew[new] = int32(len(p.pairs)), int32(len(p.pairs))
	p.pairs = append(p.pairs, Pair{Old: old, New: new, By: by, Trust: trust, State: Changed, equal: p.equalText(old, new)})
	return true
}

// newOf returns the new function paired with an old one, or -1.
func (p *pairing) newOf(old int) int {
	if i := p.ofOld[old]; i >= 0 {
		return p.pairs[i].New
	}
	return -1
}

// oldOf returns the old function paired with a new one, or -1.
func (p *pairing) oldOf(new int) int {
	if i := p.ofNew[new]; i >= 0 {
		return p.pairs[i].Old
	}
	return -1
}

// equalText compares what the hash stands for.
func (p *pairing) equalText(old, new int) bool {
	f, g := &p.old.Functions[old], &p.new.Functions[new]
	if f.hash != g.hash || f.Opaque != g.Opaque || f.Size != g.Size || f.last-f.first != g.last-g.first {
		return false
	}
	if !bytes.Equal(p.old.normalised(f), p.new.normalised(g)) {
		return false
	}
	rf, rg := p.old.referencesOf(f), p.new.referencesOf(g)
	for i := range rf {
		if rf[i].In != rg[i].In || rf[i].Field != rg[i].Field {
			return false
		}
	}
	return true
}

// pairFunctions runs all steps: each finds pairs that let the earlier ones find
// more, until nothing is found.
func pairFunctions(old, new *Build) *pairing {
	p := newPairing(old, new)
	p.byName()
	p.bySymbol()
	p.byHash(true)
	for before := -1; before != len(p.pairs); {
		before = len(p.pairs)
		p.byReference(Likely)
		p.byTable(Likely)
		p.byRun(Strong)
		p.byHash(true)
	}
	p.byRun(Likely)
	for before := -1; before != len(p.pairs); {
		before = len(p.pairs)
		p.byPlace(Likely)
		p.byReference(Likely)
		p.byTable(Likely)
		p.byRun(Likely)
	}
	p.byReference(Guess)
	p.byTable(Guess)
	p.byHash(false)
	p.byPlace(Guess)
	p.byRun(Guess)
	p.byTable(Likely)
	p.confirm()
	return p
}

// byName pairs what is exported under one name and version. That is certain:
// it is how every other object knows a function.
func (p *pairing) byName() {
	at := make(map[string]int, len(p.new.Exports))
	for i := range p.new.Exports {
		if e := &p.new.Exports[i]; e.Function >= 0 {
			at[e.Key] = e.Function
		}
	}
	for i := range p.old.Exports {
		e := &p.old.Exports[i]
		g, ok := at[e.Key]
		if !ok || e.Function < 0 {
			continue
		}
		if !p.set(e.Function, g, ByName, Certain) && p.newOf(e.Function) != g {
			p.split = append(p.split, Pair{Old: e.Function, New: g, By: ByName, Trust: Certain, equal: p.equalText(e.Function, g)})
		}
	}
}

// bySymbol pairs what has one name in .symtab; of a local function the source
// file must be the same, too.
func (p *pairing) bySymbol() {
	for i := range p.old.Functions {
		if p.ofOld[i] >= 0 {
			continue
		}
		for _, l := range p.old.labels.at(p.old.Functions[i].Addr) {
			if k, ok := p.old.labels.byKey[l.key]; !ok || k < 0 || !l.code {
				continue
			}
			k, ok := p.new.labels.byKey[l.key]
			if !ok || k < 0 || !p.new.labels.byAddr[k].code {
				continue
			}
			addr := p.new.labels.byAddr[k].addr
			if g := p.new.FunctionAt(addr); g >= 0 && p.new.Functions[g].Addr == addr {
				p.set(i, g, BySymbol, Certain)
			}
		}
	}
}

// tellingSize is how many instructions make a content that is found once the
// content of one function: shorter ones may stand for another by chance.
const tellingSize = 12

// byHash pairs functions whose content is found once in each build; where
// everywhere is false, once among those that have no pair yet.
func (p *pairing) byHash(everywhere bool) {
	for _, rich := range []bool{true, false} {
		hash := func(f *Function) uint64 {
			if rich {
				return f.rich
			}
			return f.hash
		}
		old, new := p.unpairedByHash(p.old, p.ofOld, hash), p.unpairedByHash(p.new, p.ofNew, hash)
		for i := range p.old.Functions {
			f := &p.old.Functions[i]
			h := hash(f)
			if p.ofOld[i] >= 0 || old[h] != int32(i) {
				continue
			}
			g, ok := new[h]
			if !ok || g < 0 {
				continue
			}
			alone := p.oldHash[f.hash] == 1 && p.newHash[f.hash] == 1
			if rich {
				alone = p.oldRich[h] == 1 && p.newRich[h] == 1
			}
			if everywhere && !alone {
				continue
			}
			trust := Guess
			switch {
			case alone && f.count >= tellingSize:
				trust = Strong
			case alone:
				trust = Likely
			}
			p.set(i, int(g), ByHash, trust)
		}
	}
}

// unpairedByHash returns the only function of each hash; -1 where there are
// several.
func (p *pairing) unpairedByHash(b *Build, paired []int32, hash func(*Function) uint64) map[uint64]int32 {
	only := map[uint64]int32{}
	for i := range b.Functions {
		if paired[i] >= 0 {
			continue
		}
		h := hash(&b.Functions[i])
		if _, twice := only[h]; twice {
			only[h] = -1
		} else {
			only[h] = int32(i)
		}
	}
	return only
}

// confirm raises pairs of equal text whose neighbours on both sides are pairs,
// too: a linker places functions in the order of the source.
func (p *pairing) confirm() {
	beside := func(q *Pair, step int) bool {
		i, j := q.Old+step, q.New+step
		return i >= 0 && j >= 0 && i < len(p.ofOld) && j < len(p.ofNew) && p.newOf(i) == j && p.pairs[p.ofOld[i]].Trust >= Likely
	}
	for k := range p.pairs {
		q := &p.pairs[k]
		if q.Trust != Likely && q.Trust != Guess || !q.equal || q.By == ByPlace {
			continue
		}
		f := &p.old.Functions[q.Old]
		twin := p.oldRich[f.rich] > 1 || p.newRich[f.rich] > 1
		if !beside(q, -1) || !beside(q, 1) {
			continue
		}
		if twin || q.Trust == Guess {
			q.Trust = Likely
		} else {
			q.Trust = Strong
		}
	}
}

// sorted returns the pairs by old address.
func (p *pairing) sorted() []Pair {
	all := slices.Clone(p.pairs)
	slices.SortFunc(all, func(a, b Pair) int { return a.Old - b.Old })
	return all
}
