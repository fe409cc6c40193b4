package cli

import (
	"bytes"
	"strings"
	"testing"
)

// printed is what a table prints on an output of a width, with colours or not.
func printed(tab *table, width int, colour bool) string {
	var b bytes.Buffer
	o := newOutput(&b)
	o.width, o.colour = width, colour
	tab.print(o)
	o.Flush()
	return b.String()
}

func sample() *table {
	tab := newTable(
		column{title: "PID", right: true},
		column{title: "NAME", elastic: true},
		column{title: "BASE", spare: 1},
		column{title: "KIND", spare: 2},
		column{title: "STATE"})
	tab.add(text("1"), text("a-very-long-name-of-a-module.so.1"), text("0x7f"), text("library"), cell{"bad", bad})
	tab.note("because")
	tab.add(text("4711"), text("軟件"), text("0x55"), text("exe"))
	return tab
}

func TestTable(t *testing.T) {
	for name, c := range map[string]struct {
		width  int
		colour bool
		want   string
	}{
		"without a limit nothing is cut": {0, false, "" +
			" PID  NAME                               BASE  KIND     STATE\n" +
			"   1  a-very-long-name-of-a-module.so.1  0x7f  library  bad\n" +
			"    because\n" +
			"4711  軟件                               0x55  exe\n"},
		"elastic columns are cut first": {50, false, "" +
			" PID  NAME                    BASE  KIND     STATE\n" +
			"   1  a-very-long-name-of-a…  0x7f  library  bad\n" +
			"    because\n" +
			"4711  軟件                    0x55  exe\n"},
		"then spare ones go": {30, false, "" +
			" PID  NAME               STATE\n" +
			"   1  a-very-long-name…  bad\n" +
			"    because\n" +
			"4711  軟件\n"},
		"too narrow for anything": {5, false, "" +
			" PID  NAME      STATE\n" +
			"   1  a-very-…  bad\n" +
			"    because\n" +
			"4711  軟件\n"},
		"colours do not count as width": {30, true, "" +
			" \x1b[1mPID\x1b[0m  \x1b[1mNAME\x1b[0m               \x1b[1mSTATE\x1b[0m\n" +
			"   1  a-very-long-name…  \x1b[31mbad\x1b[0m\n" +
			"    because\n" +
			"4711  軟件\n"},
	} {
		if got := printed(sample(), c.width, c.colour); got != c.want {
			t.Errorf("%s:\ngot\n%s\nwant\n%s", name, got, c.want)
		}
	}
	rare := newTable(column{title: "PID"}, column{title: "GEN", rare: true}, column{title: "FILE"})
	rare.add(text("1"), text(""), text("same"))
	if got, want := printed(rare, 0, false), "PID  FILE\n1    same\n"; got != want {
		t.Errorf("a rare column without text: got %q, want %q", got, want)
	}
	rare.add(text("2"), text("0→1"), text("same"))
	if got, want := printed(rare, 0, false), "PID  GEN  FILE\n1         same\n2    0→1  same\n"; got != want {
		t.Errorf("a rare column with text: got %q, want %q", got, want)
	}
	if got := printed(newTable(column{title: "PID"}), 80, false); got != "" {
		t.Errorf("a table without rows printed %q", got)
	}
}

func TestTableFits(t *testing.T) {
	for width := 22; width < 80; width++ {
		for line := range strings.Lines(printed(sample(), width, false)) {
			if n := columns(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("width %d: a line of %d columns: %q", width, n, line)
			}
		}
	}
}
