package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// writeTable writes all pairs as Markdown, with a summary before the table.
func writeTable(w io.Writer, rows []row) error {
	var b strings.Builder
	b.WriteString("# Updates of libraries, matched\n\n")
	b.WriteString("Each line compares one library of two successive versions of a Debian package, on the files alone, without debug files. *Plan*: the new build can take over in a running program, as far as files tell. Made by `make corpus`; which versions there are changes with the mirror.\n\n")
	plans, same, failed := 0, 0, 0
	codes := map[string]int{}
	for _, r := range rows {
		switch {
		case r.err != nil:
			failed++
		case r.report.Same:
			same++
		case len(r.codes) == 0:
			plans++
		}
		for _, c := range r.codes {
			codes[c]++
		}
	}
	fmt.Fprintf(&b, "%d pairs: %d plans, %d refused, %d of the same build, %d unreadable.\n\n", len(rows), plans, len(rows)-plans-same-failed, same, failed)
	if len(codes) > 0 {
		b.WriteString("| refusal | pairs |\n|---|---|\n")
		for _, c := range slices.SortedFunc(maps.Keys(codes), func(x, y string) int {
			return cmp.Or(cmp.Compare(codes[y], codes[x]), cmp.Compare(x, y))
		}) {
			fmt.Fprintf(&b, "| %s | %d |\n", c, codes[c])
		}
		b.WriteString("\n")
	}
	b.WriteString("Functions: of the old build. Changed: their text differs; refs: equal text, other references or constants. Objects: addresses of writable data that the new code uses, by proof. Time is on one core.\n\n")
	b.WriteString("| package | versions | library | functions | changed | refs | new | gone | entries | objects | verdict | ms |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s → %s | %s ", r.name, r.old, r.new, r.library)
		if r.err != nil {
			fmt.Fprintf(&b, "| | | | | | | | %v | |\n", r.err)
			continue
		}
		f := r.report.Functions
		verdict := "plan"
		switch {
		case r.report.Same:
			verdict = "same build"
		case len(r.codes) > 0:
			verdict = strings.Join(r.codes, ", ")
		case f.Changed+f.Referring == 0:
			verdict = "plan (no code changed)"
		}
		fmt.Fprintf(&b, "| %d | %d | %d | %d | %d | %d | %s | %s | %d |\n", f.Old, f.Changed, f.Referring, f.Added, f.Gone, len(r.report.Entries), objects(r.report.Objects), verdict, r.elapsed.Milliseconds())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func objects(counts map[string]int) string {
	var parts []string
	for _, p := range []string{"symbol", "reference", "pointer", "sandwich", "added", "unproved"} {
		if counts[p] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[p], p))
		}
	}
	return strings.Join(parts, ", ")
}
