package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
)

// A messages is standard error: errors, refusals, notes, summaries and the line
// of progress, from the command and from the goroutine of an interrupt.
//
// Lock order: mu is the only lock and is held while writing.
type messages struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	colour   bool
	quiet    bool
	progress progress
}

func newMessages(w io.Writer) *messages {
	m := &messages{w: w}
	m.progress.width, m.terminal = terminalOf(w)
	m.progress.now = time.Now
	m.colour = m.terminal && colourWanted()
	return m
}

// Write lets the command library print to standard error.
func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	return m.w.Write(p)
}

// write sends text on. That standard error can't be written to has nowhere to
// be said, so the failure is dropped.
func (m *messages) write(text string) { _, _ = io.WriteString(m.w, text) }

// line writes one line above the progress. What is harmful in it is escaped.
func (m *messages) line(s style, prefix, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	if m.colour {
		prefix = s.paint(prefix)
	}
	m.write(prefix + escaped(text) + "\n")
}

// notef writes a note or a summary, which -q leaves out.
func (m *messages) notef(format string, args ...any) {
	if !m.quiet {
		m.line(plain, "", fmt.Sprintf(format, args...))
	}
}

// errorf writes an error.
func (m *messages) errorf(format string, args ...any) {
	m.line(bad, "vos: ", fmt.Sprintf(format, args...))
}

// remedy writes what the user can do about the line before.
func (m *messages) remedy(text string) {
	if text != "" {
		m.line(plain, "  remedy: ", text)
	}
}

// refusal writes a refusal: what was refused, why, and the remedy. Where says
// which process and module it is about and may be empty.
func (m *messages) refusal(where string, r api.Refusal) {
	var parts []string
	if where != "" {
		parts = append(parts, where)
	}
	// "libz.so.1 in 812: libz.so.1: …" would say it twice.
	if r.Subject != "" && !strings.HasPrefix(where, quoted(r.Subject)) {
		parts = append(parts, quoted(r.Subject))
	}
	if r.Detail != "" {
		parts = append(parts, r.Detail)
	}
	m.line(warn, "refused: ", strings.Join(parts, ": ")+" ("+string(r.Code)+")")
	m.remedy(r.Remedy)
}

// unchecked says what was not looked at of something that was, and why. It is no
// failure; yet a user who hears nothing of it takes all for checked.
func (m *messages) unchecked(where string, r api.Refusal) {
	m.line(warn, "not checked: ", where+": "+r.Detail+" ("+string(r.Code)+")")
	m.remedy(r.Remedy)
}

// place names a module of a process in a message.
func place(module string, pid int) string {
	return fmt.Sprintf("%s in %d", quoted(module), pid)
}
