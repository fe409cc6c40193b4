package match

import (
	"debug/dwarf"
	"fmt"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
)

// Options are what the files don't tell.
type Options struct {
	OldDebug *dso.Object // debug file of the old build, or nil
	NewDebug *dso.Object

	// OldTypes and NewTypes are what ReadTypes returns of the object or its debug
	// file. With both, they decide whether structures have another layout.
	OldTypes, NewTypes *dwarf.Data

	// CLibrary allows libc.so.6, the loader and what is coupled to them by
	// GLIBC_PRIVATE.
	CLibrary bool
}

// A Match is two builds compared. It is a value: nothing in it changes, and it
// depends on the files alone.
type Match struct {
	Old, New *Build

	// Same tells that both are one build, by build-id: there is nothing to do,
	// and the rest is empty.
	Same bool

	Pairs   []Pair  // by Old
	Gone    []int   // old functions without a pair
	Added   []int   // new functions without a pair
	Data    DataMap // writable and RELRO'd data, new → old
	Entries []Entry // by old address

	// Needed are the new functions that may run, by address: what they and
	// Constants refer to is to be retargeted.
	Needed []int

	// Displacements and Words are the places of the new build that must lead to
	// the old one's data and entries, by address.
	Displacements []Displacement
	Words         []WordTarget

	// Initial are the mapped ranges whose initial values differ.
	Initial []InitialChange

	Residual []Residual // what of the old build stays in use
	Startup  []Residual // changed constructors and destructors, which don't run
	Objects  []Export   // exported data of the new build: executables may have copies
	Unique   []string   // GNU_UNIQUE symbols of the new build
	Imports  []string   // what the new build imports and the old one doesn't
	Drift    Drift

	Figures  Figures
	Refusals []api.Refusal // empty where the new build can take over

	unproved []unproved
}

// Figures count what was found.
type Figures struct {
	OldFunctions, NewFunctions   int
	Paired                       map[string]int // by PairedBy
	Trusted                      map[string]int // by Trust
	Identical, Referring         int
	Changed, Gone, Added, Opaque int
	Objects                      map[string]int // addresses that the new code needs, by Proof
	Entries                      map[string]int // by EntryKind
	Kept                         int            // old functions that stay in use
	Elapsed                      time.Duration
}

// Compare takes two builds apart and matches them. Both must have been opened
// from files. An error says that a file can't be read; what speaks against a
// replacement are Match.Refusals.
func Compare(old, new *dso.Object, opt Options) (*Match, error) {
	begin := time.Now()
	if old.BuildID != "" && old.BuildID == new.BuildID {
		return &Match{Same: true, Figures: Figures{Elapsed: time.Since(begin)}}, nil
	}
	o, err := Read(old, opt.OldDebug)
	if err != nil {
		return nil, fmt.Errorf("old build: %w", err)
	}
	n, err := Read(new, opt.NewDebug)
	if err != nil {
		return nil, fmt.Errorf("new build: %w", err)
	}
	m := CompareBuilds(o, n, opt)
	m.Figures.Elapsed = time.Since(begin)
	return m, nil
}

// CompareBuilds is Compare for builds that were read before.
func CompareBuilds(old, new *Build, opt Options) *Match {
	begin := time.Now()
	p := pairFunctions(old, new)
	data, mapper := mapData(p)
	judge(p, data)
	r := redirect(p)
	m := &Match{
		Old: old, New: new,
		Data:     *data,
		Entries:  r.entries,
		Residual: r.residual,
		Startup:  r.startup,
	}
	m.takePairs(p, r)
	m.inform()
	m.retarget(p, r)
	m.compareInitial(p)
	m.Drift = detectDrift(p)
	if opt.OldTypes != nil && opt.NewTypes != nil {
		m.Drift.judgeTypes(opt.OldTypes, opt.NewTypes)
	}
	m.refuse(p, mapper, r, opt)
	m.count(p, r)
	m.Figures.Elapsed = time.Since(begin)
	return m
}

// takePairs sorts the pairs; entries refer to them by place.
func (m *Match) takePairs(p *pairing, r *redirection) {
	m.Pairs = p.sorted()
	at := make(map[int]int, len(m.Pairs))
	for i, q := range m.Pairs {
		at[q.Old] = i
	}
	for i := range m.Entries {
		m.Entries[i].Pair = at[p.pairs[m.Entries[i].Pair].Old]
	}
	for i := range m.Old.Functions {
		if p.ofOld[i] < 0 {
			m.Gone = append(m.Gone, i)
		}
	}
	for i := range m.New.Functions {
		if p.ofNew[i] < 0 {
			m.Added = append(m.Added, i)
		}
		if r.needed[i] {
			m.Needed = append(m.Needed, i)
		}
	}
}

// inform collects what a plan has to look at in the process.
func (m *Match) inform() {
	for _, e := range m.New.Exports {
		if e.Function < 0 && !e.IsTLS() && e.Size > 0 {
			m.Objects = append(m.Objects, e)
		}
		if e.IsUnique() {
			m.Unique = append(m.Unique, e.Key)
		}
	}
	had := map[string]bool{}
	for i := range m.Old.words {
		had[m.Old.words[i].name] = true
	}
	for i := range m.New.words {
		if w := &m.New.words[i]; w.name != "" && !had[w.name] {
			had[w.name] = true
			m.Imports = append(m.Imports, w.name)
		}
	}
}

func (m *Match) count(p *pairing, r *redirection) {
	f := &m.Figures
	f.OldFunctions, f.NewFunctions = len(m.Old.Functions), len(m.New.Functions)
	f.Paired, f.Trusted, f.Entries = map[string]int{}, map[string]int{}, map[string]int{}
	for _, q := range m.Pairs {
		f.Paired[q.By.String()]++
		f.Trusted[q.Trust.String()]++
		switch q.State {
		case Identical:
			f.Identical++
		case Referring:
			f.Referring++
		default:
			f.Changed++
		}
	}
	f.Gone, f.Added, f.Kept = len(m.Gone), len(m.Added), r.keptCount
	for i := range m.New.Functions {
		if m.New.Functions[i].Opaque {
			f.Opaque++
		}
	}
	for _, e := range m.Entries {
		f.Entries[e.Kind.String()]++
	}
}
