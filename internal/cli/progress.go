package cli

import (
	"time"
)

// Progress appears only when a command takes long enough to make one wonder,
// and then changes no faster than one can read.
const (
	progressAfter = 300 * time.Millisecond
	progressEvery = 100 * time.Millisecond
)

// A progress is a single line on the terminal that says how far a long command
// has come. It is drawn by those who report, never by a goroutine of its own.
type progress struct {
	enabled bool
	width   int
	begun   time.Time
	drawn   time.Time // zero while the line is not on the screen
	now     func() time.Time
}

// startProgress begins the progress of a long command, on a terminal and without
// -q. A terminal that also receives JSON lines shows none: the two would mix.
func (a *app) startProgress() {
	if a.json && a.stdout.terminal {
		return
	}
	a.stderr.startProgress()
}

func (m *messages) startProgress() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.enabled = m.terminal && !m.quiet
	m.progress.begun = m.progress.now()
}

// report shows a line of progress if the time for one has come.
func (m *messages) report(line func() string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.progress
	if !p.enabled {
		return
	}
	now := p.now()
	if now.Sub(p.begun) < progressAfter || now.Sub(p.drawn) < progressEvery {
		return
	}
	s := escaped(line())
	if p.width > 0 {
		s = shortened(s, p.width-1)
	}
	m.write("\r" + s + clearToEnd)
	p.drawn = now
}

// endProgress takes the line off the screen; nothing is drawn after it.
func (m *messages) endProgress() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	m.progress.enabled = false
}

// clear takes the line off the screen. Precondition: m.mu is held.
func (m *messages) clear() {
	if !m.progress.drawn.IsZero() {
		m.write("\r" + clearToEnd)
		m.progress.drawn = time.Time{}
	}
}

// clearToEnd erases from the cursor to the end of the line (ECMA-48 EL).
const clearToEnd = "\x1b[K"
