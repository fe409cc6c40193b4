package module

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

func TestAddRuns(t *testing.T) {
	page := bytes.Repeat([]byte{0x90}, procfs.PageSize)
	change := func(at ...int) []byte {
		b := bytes.Clone(page)
		for _, i := range at {
			b[i] = 0xcc
		}
		return b
	}
	tests := []struct {
		name  string
		found []byte
		want  [][2]uint64 // address and length
	}{
		{"nothing", page, nil},
		{"one byte", change(7), [][2]uint64{{0x1007, 1}}},
		{"first and last", change(0, 4095), [][2]uint64{{0x1000, 1}, {0x1fff, 1}}},
		{"within the gap: one run", change(10, 14), [][2]uint64{{0x100a, 5}}},
		{"beyond the gap: two", change(10, 15), [][2]uint64{{0x100a, 1}, {0x100f, 1}}},
		{"all", bytes.Repeat([]byte{0}, 4096), [][2]uint64{{0x1000, 4096}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var c Comparison
			c.addRuns(0x1000, test.found, page)
			var got [][2]uint64
			for _, r := range c.Runs {
				got = append(got, [2]uint64{r.Address, uint64(len(r.Found))})
				if len(r.Found) != len(r.Expected) || r.End() != r.Address+uint64(len(r.Found)) {
					t.Errorf("run %+v", r)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlanText(t *testing.T) {
	run := func(address uint64, n int, kind string) Run {
		return Run{Address: address, Found: bytes.Repeat([]byte{1}, n), Expected: bytes.Repeat([]byte{2}, n), Kind: kind}
	}
	tests := []struct {
		name     string
		runs     []Run
		drop     []procfs.PageRange
		writes   [][2]uint64
		residual int
	}{
		{"one page", []Run{run(0x1010, 4, api.KindCorruption), run(0x1800, 1, api.KindCorruption)},
			[]procfs.PageRange{{Start: 0x1000, End: 0x2000}}, nil, 0},
		{"neighbours are one range, others their own", []Run{run(0x1010, 4, api.KindCorruption), run(0x2010, 1, api.KindCorruption), run(0x5000, 1, api.KindCorruption)},
			[]procfs.PageRange{{Start: 0x1000, End: 0x3000}, {Start: 0x5000, End: 0x6000}}, nil, 0},
		{"across a border", []Run{run(0x1fff, 2, api.KindCorruption)},
			[]procfs.PageRange{{Start: 0x1000, End: 0x3000}}, nil, 0},
		{"a breakpoint alone stays", []Run{run(0x1010, 1, api.KindBreakpoint)}, nil, nil, 1},
		{"beside a breakpoint it is written", []Run{run(0x1010, 1, api.KindBreakpoint), run(0x1100, 3, api.KindCorruption), run(0x2000, 1, api.KindCorruption)},
			[]procfs.PageRange{{Start: 0x2000, End: 0x3000}}, [][2]uint64{{0x1100, 3}}, 1},
		{"half of a run lies beside a breakpoint", []Run{run(0x1010, 1, api.KindBreakpoint), run(0x1ffe, 4, api.KindCorruption)},
			[]procfs.PageRange{{Start: 0x2000, End: 0x3000}}, [][2]uint64{{0x1ffe, 2}}, 1},
		{"relocated text is nobody's fault", []Run{run(0x1010, 8, api.KindTextrel)}, nil, nil, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			plan := &Plan{Module: &Module{}}
			plan.planText(&Comparison{Runs: test.runs}, map[uint64]bool{})
			if diff := cmp.Diff(test.drop, plan.Drop); diff != "" {
				t.Error("dropped:", diff)
			}
			var writes [][2]uint64
			for _, w := range plan.Writes {
				writes = append(writes, [2]uint64{w.Address, uint64(len(w.Bytes))})
			}
			if diff := cmp.Diff(test.writes, writes); diff != "" {
				t.Error("written:", diff)
			}
			if len(plan.Residual) != test.residual {
				t.Errorf("residual: %v", plan.Residual)
			}
			if len(plan.Steps()) != len(plan.Drop)+len(plan.Writes) {
				t.Errorf("steps: %v", plan.Steps())
			}
		})
	}
}

func TestPlanWords(t *testing.T) {
	plan := &Plan{Module: &Module{}}
	plan.planWords(&Comparison{Bad: []Word{
		{Address: 0x5000, Found: 1, Expected: 0x7f0011223344, Known: true},
		{Address: 0x5008, Found: 2, Symbol: "memcpy@GLIBC_2.14", Reason: "it is chosen at run time"},
	}})
	want := []Write{{Address: 0x5000, Found: []byte{1, 0, 0, 0, 0, 0, 0, 0}, Bytes: []byte{0x44, 0x33, 0x22, 0x11, 0, 0x7f, 0, 0}, Word: true}}
	if diff := cmp.Diff(want, plan.Writes); diff != "" {
		t.Error(diff)
	}
	if len(plan.Residual) != 1 || plan.Words() != 1 || plan.Pages() != 0 {
		t.Errorf("residual %v, %d words, %d pages", plan.Residual, plan.Words(), plan.Pages())
	}
}
