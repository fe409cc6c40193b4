package cli

import (
	"bufio"
	"io"
	"sync/atomic"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
)

// An app is one run of the command line: its flags and where it writes.
type app struct {
	executive func() (api.Executive, error)
	stdout    *output
	stderr    *messages

	json    bool
	quiet   bool
	verbose bool
	timeout time.Duration

	timedOut bool // --timeout ended the command

	subject  api.Target  // what the command is about, for messages
	started  atomic.Bool // a command has begun; read by the interrupt's goroutine
	watches  atomic.Bool // likewise: an interrupt is how the command is meant to end
	launched atomic.Bool // interrupts are those of the program that vos run has started
}

// An output is standard output: buffered, and aware of the terminal behind it.
type output struct {
	*bufio.Writer
	terminal bool
	width    int // columns; 0 where there is no terminal to fit
	colour   bool
}

func newOutput(w io.Writer) *output {
	o := &output{Writer: bufio.NewWriter(w)}
	o.width, o.terminal = terminalOf(w)
	o.colour = o.terminal && colourWanted()
	return o
}
