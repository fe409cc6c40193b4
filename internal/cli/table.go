package cli

import "strings"

// A table gathers rows and prints them aligned. On a terminal it is made to fit:
// elastic columns are cut, the widest first, then spare columns are left out.
// Elsewhere nothing is cut, so that grep and awk see every byte.
type table struct {
	columns []column
	rows    []row
}

// A column of a table.
type column struct {
	title   string
	right   bool // numbers
	elastic bool // may be cut, down to minElastic columns
	spare   int  // left out when the terminal is too narrow, the largest first; 0 never
	rare    bool // left out where all of its cells are empty
}

// A cell of a row. Its text has passed through quoted or is made by vOS.
type cell struct {
	text  string
	style style
}

type row struct {
	cells []cell
	notes []string // whole lines, indented below the row
}

// minElastic is how narrow an elastic column may become.
const minElastic = 8

// easyElastic is how far elastic columns are cut before spare columns go: most
// module names are readable then.
const easyElastic = 20

const columnGap = 2

func newTable(columns ...column) *table { return &table{columns: columns} }

// add appends a row. A missing cell at the end is empty.
func (t *table) add(cells ...cell) { t.rows = append(t.rows, row{cells: cells}) }

// note appends a line below the last row.
func (t *table) note(line string) {
	last := &t.rows[len(t.rows)-1]
	last.notes = append(last.notes, line)
}

// text is an unstyled cell.
func text(s string) cell { return cell{text: s} }

// print writes the table. A table without rows prints nothing.
func (t *table) print(o *output) {
	if len(t.rows) == 0 {
		return
	}
	widths, shown := t.fit(o.width)
	t.printRow(o, widths, shown, t.header())
	for _, r := range t.rows {
		t.printRow(o, widths, shown, r.cells)
		for _, n := range r.notes {
			o.WriteString("    " + n + "\n")
		}
	}
}

func (t *table) header() []cell {
	cells := make([]cell, len(t.columns))
	for i, c := range t.columns {
		cells[i] = cell{c.title, bold}
	}
	return cells
}

// fit returns the width of every column and which columns are shown, for a
// terminal of the given width; 0 means that there is no limit.
func (t *table) fit(limit int) (widths []int, shown []bool) {
	widths = make([]int, len(t.columns))
	shown = make([]bool, len(t.columns))
	for i, c := range t.columns {
		widths[i], shown[i] = columns(c.title), !c.rare
		for _, r := range t.rows {
			if i < len(r.cells) && r.cells[i].text != "" {
				widths[i], shown[i] = max(widths[i], columns(r.cells[i].text)), true
			}
		}
	}
	if limit <= 0 {
		return widths, shown
	}
	for {
		over := t.width(widths, shown) - limit
		if over <= 0 {
			return widths, shown
		}
		if i := t.widestElastic(widths, shown, easyElastic); i >= 0 {
			widths[i]--
			continue
		}
		if i := t.mostSpare(shown); i >= 0 {
			shown[i] = false
			continue
		}
		if i := t.widestElastic(widths, shown, minElastic); i >= 0 {
			widths[i]--
			continue
		}
		return widths, shown
	}
}

func (t *table) width(widths []int, shown []bool) int {
	total := -columnGap
	for i, w := range widths {
		if shown[i] {
			total += w + columnGap
		}
	}
	return total
}

// widestElastic returns the column to cut next, none below least, or -1.
func (t *table) widestElastic(widths []int, shown []bool, least int) int {
	best := -1
	for i, c := range t.columns {
		if c.elastic && shown[i] && widths[i] > max(least, columns(c.title)) &&
			(best < 0 || widths[i] > widths[best]) {
			best = i
		}
	}
	return best
}

// mostSpare returns the column to leave out next, or -1.
func (t *table) mostSpare(shown []bool) int {
	best := -1
	for i, c := range t.columns {
		if c.spare > 0 && shown[i] && (best < 0 || c.spare > t.columns[best].spare) {
			best = i
		}
	}
	return best
}

func (t *table) printRow(o *output, widths []int, shown []bool, cells []cell) {
	var line strings.Builder
	for i := range t.columns {
		if !shown[i] {
			continue
		}
		if line.Len() > 0 {
			line.WriteString(strings.Repeat(" ", columnGap))
		}
		var c cell
		if i < len(cells) {
			c = cells[i]
		}
		s := shortened(c.text, widths[i])
		padding := strings.Repeat(" ", widths[i]-columns(s))
		if o.colour {
			s = c.style.paint(s)
		}
		if t.columns[i].right {
			line.WriteString(padding + s)
		} else {
			line.WriteString(s + padding)
		}
	}
	o.WriteString(strings.TrimRight(line.String(), " ") + "\n")
}
