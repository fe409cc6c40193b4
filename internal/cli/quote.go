package cli

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// quoted returns a name that came from a program or file as it may be shown:
// unchanged where every rune is printable, otherwise in Go's quoted form. So
// neither an escape sequence nor a newline nor a change of writing direction
// reaches the terminal, and a quoted name can't be mistaken for a plain one.
func quoted(name string) string {
	if name == "" {
		return name
	}
	if strings.TrimSpace(name) != name || name[0] == '"' || harmful(name) {
		return strconv.Quote(name)
	}
	return name
}

// escaped returns running text with only its harmful runes escaped: for error
// texts, whose words should stay readable.
func escaped(text string) string {
	if !harmful(text) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if harmfulRune(r, size) {
			q := strconv.Quote(text[i : i+size])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteString(text[i : i+size])
		}
		i += size
	}
	return b.String()
}

func harmful(text string) bool {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if harmfulRune(r, size) {
			return true
		}
		i += size
	}
	return false
}

// harmfulRune reports whether a terminal might act on the rune instead of
// showing it: C0 and C1 controls, direction marks, and bytes that are no UTF-8.
func harmfulRune(r rune, size int) bool {
	return r == utf8.RuneError && size <= 1 || !unicode.IsPrint(r)
}

// columns is the number of terminal columns that text takes: two for East Asian
// wide characters and emoji, none for combining marks. Text must have passed
// through quoted or escaped.
func columns(text string) int {
	n := 0
	for _, r := range text {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	}
	for _, w := range wide {
		if r >= w[0] && r <= w[1] {
			return 2
		}
	}
	return 1
}

// wide lists the blocks of Unicode's East Asian Width property W and F,
// coarsely: a mistake costs alignment, nothing else.
var wide = [][2]rune{
	{0x1100, 0x115f}, {0x2e80, 0x303e}, {0x3041, 0xa4cf}, {0xac00, 0xd7a3},
	{0xf900, 0xfaff}, {0xfe30, 0xfe6f}, {0xff00, 0xff60}, {0xffe0, 0xffe6},
	{0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd},
}

// shortened cuts text to a width in columns, ending in an ellipsis where
// something was cut.
func shortened(text string, width int) string {
	if columns(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	n := 0
	for i, r := range text {
		if n+runeColumns(r) > width-1 {
			return text[:i] + "…"
		}
		n += runeColumns(r)
	}
	return text
}
