package match

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestReport: the same files give the same report, with keys that scripts know.
func TestReport(t *testing.T) {
	report := func() string {
		r := compare(t, []string{"strip"}, []string{"strip", "-DSTEP=3", "-DEXTRA_LOOP", "-DGONE"}).Report()
		r.TotalUS = 0
		var out bytes.Buffer
		if err := r.JSON(&out); err != nil {
			t.Fatal(err)
		}
		if err := r.Text(&out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	first := report()
	for range 5 {
		if again := report(); again != first {
			t.Fatalf("two reports of the same files differ:\n%s\n%s", first, again)
		}
	}
	var object map[string]any
	if err := json.NewDecoder(strings.NewReader(first)).Decode(&object); err != nil {
		t.Fatal(err)
	}
	want := []string{"added", "changed", "drift", "entries", "from", "functions", "gone", "initial", "intervals", "module", "objects", "refusals", "residual", "same", "startup", "to", "total_us", "writes"}
	if got := slices.Sorted(maps.Keys(object)); !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
	for _, part := range []string{"small_count", "export_gone", "small_old", "identical"} {
		if !strings.Contains(first, part) {
			t.Errorf("%q is not in the report:\n%s", part, first)
		}
	}
}

// TestCodes: each code has a remedy, and is written as scripts expect it.
func TestCodes(t *testing.T) {
	for code, remedy := range Codes() {
		if remedy == "" || strings.ToLower(string(code)) != string(code) || strings.ContainsAny(string(code), " -") {
			t.Errorf("code %q, remedy %q", code, remedy)
		}
	}
}
