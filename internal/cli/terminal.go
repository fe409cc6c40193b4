package cli

import (
	"io"
	"os"

	"golang.org/x/term"
)

// terminalOf reports whether w is a terminal, and its width in columns, 0 where
// the terminal does not tell.
func terminalOf(w io.Writer) (width int, ok bool) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0, true
	}
	return width, true
}

// colourWanted reports whether the user's environment allows colours on a
// terminal: https://no-color.org, and terminals that know none.
func colourWanted() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// A style is how a cell of a table is shown on a terminal with colours.
type style string

// The styles: SGR parameters of ECMA-48.
const (
	plain style = ""
	bold  style = "1"
	good  style = "32"
	warn  style = "33"
	bad   style = "31"
	faint style = "2"
)

func (s style) paint(text string) string {
	if s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}
