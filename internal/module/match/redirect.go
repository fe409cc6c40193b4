package match

import (
	"cmp"
	"slices"
)

// An EntryKind is how calls reach the new code.
type EntryKind uint8

// The kinds. A function that its own module calls directly may be called by a
// private convention (GCC's -fipa-ra): its first bytes stay, and only calls of
// other modules, which pass a GOT, are redirected.
const (
	Veneer  EntryKind = iota // its first bytes become a jump
	GOTOnly                  // the slots that hold its address
)

func (k EntryKind) String() string { return [...]string{"veneer", "got"}[k] }

// An Entry is an old function whose calls are to reach the new one.
type Entry struct {
	Pair int // in Match.Pairs
	Kind EntryKind
	Name string

	// Bytes are those of the instructions that a jump at the entry overwrites;
	// 0 with GOTOnly. No thread may be at one behind the first byte.
	Bytes uint64
}

// A Residual is what of the old build stays in use, and why that is safe or
// what it means.
type Residual struct {
	Function string
	Reason   string
}

// redirection is the fifth step: the smallest set of entries by which no call
// reaches old code that differs.
type redirection struct {
	p         *pairing
	entries   []Entry
	residual  []Residual
	refused   []Residual // changed functions that nothing safe leads to
	redirect  []bool     // old functions whose new selves are to run
	needed    []bool     // new functions that may run
	startup   []Residual // changed constructors and destructors
	keptCount int
}

func redirect(p *pairing) *redirection {
	r := &redirection{p: p, redirect: make([]bool, len(p.old.Functions)), needed: make([]bool, len(p.new.Functions))}
	r.spread()
	r.choose()
	r.reach()
	return r
}

// changed tells whether an old function does something else than the one that
// takes its place.
func (r *redirection) changed(old int) bool {
	k := r.p.ofOld[old]
	return k >= 0 && r.p.pairs[k].State != Identical
}

// spread marks what must be redirected: changed functions, and all that call
// such a one directly, as their calls can't be redirected one by one.
func (r *redirection) spread() {
	old := r.p.old
	callers := make([][]int32, len(old.Functions))
	for i := range old.Functions {
		for _, ref := range old.referencesOf(&old.Functions[i]) {
			if ref.Region == Text && ref.To >= 0 && int(ref.To) != i && (ref.Mode == Call || ref.Mode == Jump) {
				callers[ref.To] = append(callers[ref.To], int32(i))
			}
		}
	}
	var todo []int32
	for i := range old.Functions {
		f := &old.Functions[i]
		if !r.changed(i) {
			continue
		}
		if f.Startup {
			r.startup = append(r.startup, Residual{old.Name(i), "runs when the loader starts or ends the module only; the new one is not run"})
			continue
		}
		r.redirect[i] = true
		todo = append(todo, int32(i))
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, c := range callers[i] {
			if f := &old.Functions[c]; !r.redirect[c] && !f.Startup {
				r.redirect[c] = true
				todo = append(todo, c)
			}
		}
	}
}

// choose says how each function of the set is redirected.
func (r *redirection) choose() {
	for i, yes := range r.redirect {
		f := &r.p.old.Functions[i]
		if !yes {
			if !f.Startup {
				r.keptCount++
			}
			continue
		}
		k := r.p.ofOld[i]
		if k < 0 {
			if f.Exported || f.AddressTaken {
				r.residual = append(r.residual, Residual{r.p.old.Name(i), "calls changed functions and has no counterpart: who has its address runs the old code on the shared data"})
			}
			continue
		}
		q := &r.p.pairs[k]
		unsafe := ""
		switch {
		case f.Opaque:
			unsafe = "its code can't be decoded"
		case f.Size < entryBytes || f.first5 > f.Size:
			unsafe = "it is shorter than a jump"
		case f.EntryBranch:
			unsafe = "it jumps into its own first bytes"
		case f.DirectCalled:
			unsafe = "its module calls it directly, perhaps by a private convention"
		case f.Kind == FromFlow && !f.Exported:
			unsafe = "it has no unwind table"
		}
		e := Entry{Pair: int(k), Name: r.p.old.Name(i), Kind: Veneer, Bytes: f.first5}
		switch {
		case f.Exported && unsafe != "":
			e.Kind, e.Bytes = GOTOnly, 0
			r.entries = append(r.entries, e)
			r.residual = append(r.residual, Residual{e.Name, "redirected by GOT only, as " + unsafe + ": pointers to it that the program took lead to the old code"})
		case f.Exported:
			r.entries = append(r.entries, e)
		case !f.AddressTaken:
			// Reached by its callers, which are redirected themselves.
		case unsafe != "":
			r.residual = append(r.residual, Residual{e.Name, "not redirected, as " + unsafe + ": pointers to it lead to the old code"})
		case q.Trust < Likely:
			r.refused = append(r.refused, Residual{e.Name, "paired by " + q.By.String() + " only"})
		default:
			r.entries = append(r.entries, e)
		}
	}
	slices.SortFunc(r.entries, func(a, b Entry) int {
		return cmp.Compare(r.p.pairs[a.Pair].Old, r.p.pairs[b.Pair].Old)
	})
}

// reach marks the new functions that may run: from the entries, along calls,
// and what has no old counterpart wherever its address is taken. Addresses of
// paired functions are the old ones' for all who see them.
func (r *redirection) reach() {
	new := r.p.new
	var todo []int32
	mark := func(i int) {
		if !r.needed[i] {
			r.needed[i] = true
			todo = append(todo, int32(i))
		}
	}
	for _, e := range r.entries {
		mark(r.p.pairs[e.Pair].New)
	}
	for i := range new.Functions {
		f := &new.Functions[i]
		if r.p.trust(i) < Likely && (f.Exported || f.AddressTaken) && !f.Startup && len(r.entries) > 0 {
			mark(i)
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if f := &new.Functions[i]; f.Opaque {
			// Any four bytes may be the distance of a call.
			raw := new.raw(f)
			for k := 0; k+4 <= len(raw); k++ {
				to := f.Addr + uint64(k) + 4 + uint64(int64(int32(le.Uint32(raw[k:]))))
				if g := new.FunctionAt(to); g >= 0 {
					mark(g)
				}
			}
		}
		for _, ref := range new.referencesOf(&new.Functions[i]) {
			if ref.Region == Const && ref.Mode == Address {
				for _, g := range new.tableTargets(ref.Target) {
					mark(g)
				}
			}
			if ref.Region != Text || ref.To < 0 {
				continue
			}
			if ref.Mode == Call || ref.Mode == Jump || r.p.trust(int(ref.To)) < Likely || ref.Target != new.Functions[ref.To].Addr {
				mark(int(ref.To))
			}
		}
	}
}

// tableTargets returns the functions that a table at an address leads to, if it
// is one of distances from its begin: a switch may jump into a cold part by it.
func (b *Build) tableTargets(addr uint64) []int {
	raw := b.im.at(addr)
	if addr%4 != 0 {
		return nil
	}
	var all []int
	for n := 0; n < longestSwitch && len(raw) >= 4; n, raw = n+1, raw[4:] {
		g := b.FunctionAt(addr + uint64(int64(int32(le.Uint32(raw)))))
		if g < 0 {
			break
		}
		if len(all) == 0 || all[len(all)-1] != g {
			all = append(all, g)
		}
	}
	return all
}

// longestSwitch is the most entries of one jump table that are followed.
const longestSwitch = 4096

// trust returns how far the pair of a new function is trusted.
func (p *pairing) trust(new int) Trust {
	if k := p.ofNew[new]; k >= 0 {
		return p.pairs[k].Trust
	}
	return Unpaired
}
