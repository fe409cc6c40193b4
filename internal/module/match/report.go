package match

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
)

// A Report is a Match for readers and scripts: names and figures instead of
// indices. Keys are stable; lists are in the order of addresses; addresses are
// object addresses, "0x…".
type Report struct {
	Module    string           `json:"module"` // DT_SONAME
	From      string           `json:"from"`   // build-id
	To        string           `json:"to"`
	Same      bool             `json:"same"`
	Functions ReportFunctions  `json:"functions"`
	Objects   map[string]int   `json:"objects"`   // addresses that new code uses, by proof
	Intervals []ReportInterval `json:"intervals"` // the map of data
	Changed   []ReportPair     `json:"changed"`   // functions that differ
	Added     []string         `json:"added"`
	Gone      []string         `json:"gone"`
	Entries   []ReportEntry    `json:"entries"`
	Initial   []ReportInitial  `json:"initial"` // initial values that differ
	Residual  []ReportResidual `json:"residual"`
	Startup   []ReportResidual `json:"startup"`
	Drift     ReportDrift      `json:"drift"`
	Writes    int              `json:"writes"` // displacements and words of the new build to be retargeted
	TotalUS   int64            `json:"total_us"`
	Refusals  []api.Refusal    `json:"refusals"`
}

// ReportFunctions counts functions.
type ReportFunctions struct {
	Old       int            `json:"old"`
	New       int            `json:"new"`
	PairedBy  map[string]int `json:"paired_by"`
	Trust     map[string]int `json:"trust"`
	Identical int            `json:"identical"`
	Referring int            `json:"referring"` // same text, other references or constants
	Changed   int            `json:"changed"`
	Added     int            `json:"added"`
	Gone      int            `json:"gone"`
	Opaque    int            `json:"opaque"`
	Kept      int            `json:"kept"` // old functions that stay in use
	Needed    int            `json:"needed"`
}

// ReportInterval is an Interval.
type ReportInterval struct {
	New   string `json:"new"`
	Old   string `json:"old"`
	Size  uint64 `json:"size"`
	Proof string `json:"proof"`
	Relro bool   `json:"relro,omitempty"`
	Name  string `json:"name,omitempty"`
}

// ReportPair is a pair that differs.
type ReportPair struct {
	Function string `json:"function"`
	Old      string `json:"old"`
	New      string `json:"new"`
	By       string `json:"by"`
	Trust    string `json:"trust"`
	State    string `json:"state"`
}

// ReportEntry is an Entry.
type ReportEntry struct {
	Function string `json:"function"`
	Kind     string `json:"kind"`
	Old      string `json:"old"`
	New      string `json:"new"`
}

// ReportInitial is an InitialChange.
type ReportInitial struct {
	New     string `json:"new"`
	Old     string `json:"old"`
	Size    uint64 `json:"size"`
	Pointer bool   `json:"pointer,omitempty"`
	Name    string `json:"name,omitempty"`
}

// ReportResidual is a Residual.
type ReportResidual struct {
	Function string `json:"function"`
	Reason   string `json:"reason"`
}

// ReportDrift is a Drift in figures.
type ReportDrift struct {
	Accesses  int  `json:"accesses"`
	Moved     int  `json:"moved"`
	Moves     int  `json:"moves"` // seen in two functions or more
	Resized   int  `json:"resized"`
	Layouts   int  `json:"layouts"`
	Unaligned int  `json:"unaligned"`
	DWARF     bool `json:"dwarf"`
}

// Report makes the report.
func (m *Match) Report() Report {
	r := Report{
		Same: m.Same, TotalUS: m.Figures.Elapsed.Microseconds(), Objects: m.Figures.Objects,
		Refusals:  append([]api.Refusal{}, m.Refusals...),
		Intervals: []ReportInterval{}, Changed: []ReportPair{}, Added: []string{}, Gone: []string{},
		Entries: []ReportEntry{}, Initial: []ReportInitial{}, Residual: []ReportResidual{}, Startup: []ReportResidual{},
	}
	if m.Same {
		return r
	}
	f := m.Figures
	r.Module, r.From, r.To = m.New.Object.Soname, m.Old.Object.BuildID, m.New.Object.BuildID
	r.Functions = ReportFunctions{
		Old: f.OldFunctions, New: f.NewFunctions, PairedBy: f.Paired, Trust: f.Trusted,
		Identical: f.Identical, Referring: f.Referring, Changed: f.Changed,
		Added: f.Added, Gone: f.Gone, Opaque: f.Opaque, Kept: f.Kept, Needed: len(m.Needed),
	}
	for _, v := range m.Data.Intervals {
		r.Intervals = append(r.Intervals, ReportInterval{hex(v.New), hex(v.Old), v.Size, v.Proof.String(), v.Relro, v.Name})
	}
	for _, q := range m.Pairs {
		if q.State != Identical {
			r.Changed = append(r.Changed, ReportPair{m.Old.Name(q.Old), hex(m.Old.Functions[q.Old].Addr), hex(m.New.Functions[q.New].Addr), q.By.String(), q.Trust.String(), q.State.String()})
		}
	}
	for _, i := range m.Added {
		r.Added = append(r.Added, m.New.Name(i))
	}
	for _, i := range m.Gone {
		r.Gone = append(r.Gone, m.Old.Name(i))
	}
	for _, e := range m.Entries {
		q := m.Pairs[e.Pair]
		r.Entries = append(r.Entries, ReportEntry{e.Name, e.Kind.String(), hex(m.Old.Functions[q.Old].Addr), hex(m.New.Functions[q.New].Addr)})
	}
	for _, c := range m.Initial {
		r.Initial = append(r.Initial, ReportInitial{hex(c.New), hex(c.Old), c.Size, c.Pointer, c.Name})
	}
	for _, s := range m.Residual {
		r.Residual = append(r.Residual, ReportResidual(s))
	}
	for _, s := range m.Startup {
		r.Startup = append(r.Startup, ReportResidual(s))
	}
	d := m.Drift
	r.Drift = ReportDrift{d.Accesses, d.Moved, len(d.Moves), len(d.Resized), len(d.Layouts), d.Unaligned, d.DWARF}
	r.Writes = len(m.Displacements) + len(m.Words)
	return r
}

func hex(a uint64) string { return fmt.Sprintf("%#x", a) }

// JSON writes the report as one object.
func (r Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// Text writes the report for readers: figures, then what differs.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	if r.Same {
		_, err := io.WriteString(w, "the same build\n")
		return err
	}
	f := r.Functions
	fmt.Fprintf(&b, "%s %s → %s\n", r.Module, short(r.From), short(r.To))
	fmt.Fprintf(&b, "functions  %d old, %d new: %d identical, %d with other references, %d changed, %d new, %d gone\n", f.Old, f.New, f.Identical, f.Referring, f.Changed, f.Added, f.Gone)
	fmt.Fprintf(&b, "paired by  %s\n", tally(f.PairedBy))
	fmt.Fprintf(&b, "objects    %s\n", tally(r.Objects))
	fmt.Fprintf(&b, "entries    %d, %d places to retarget, %d initial values to merge\n", len(r.Entries), r.Writes, len(r.Initial))
	fmt.Fprintf(&b, "layout     %d of %d accesses differ, %d moves, %d allocations\n", r.Drift.Moved, r.Drift.Accesses, r.Drift.Moves, r.Drift.Resized)
	for _, c := range r.Changed {
		fmt.Fprintf(&b, "  %-9s %s (%s, %s)\n", c.State, c.Function, c.By, c.Trust)
	}
	for _, s := range r.Residual {
		fmt.Fprintf(&b, "  stays     %s: %s\n", s.Function, s.Reason)
	}
	for _, s := range r.Refusals {
		fmt.Fprintf(&b, "  refused   %s: %s: %s; %s\n", s.Code, s.Subject, s.Detail, s.Remedy)
	}
	if len(r.Refusals) == 0 {
		b.WriteString("can take over\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// short is a build-id as it is shown.
func short(id string) string { return id[:min(len(id), 12)] }

// tally lists counts by name, the largest first.
func tally(counts map[string]int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%d %s", counts[n], n)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
