package menu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A Result is how carrying out a plan went.
type Result struct {
	Bars    int          // menu bars that the program has
	Changed int          // of these, in which the item was added or removed
	Times   tracee.Times // the longest of its sessions
	Total   time.Duration

	// Mapped is what the program has for the menu: "0x7f0000000000-0x7f0000002000",
	// "" where that is nothing.
	Mapped   string
	Residual []string // what stays in the program after a removal, and why
}

// A target is a process of which it is noted how long sessions held it up.
type target struct {
	*module.Process
	worst tracee.Times
}

// Session runs f with a session of the process.
func (t *target) Session(ctx context.Context, f func(*tracee.Session) error) error {
	times, err := t.Process.Session(ctx, f)
	t.worst.Pause, t.worst.Borrow = max(t.worst.Pause, times.Pause), max(t.worst.Borrow, times.Borrow)
	return err
}

const (
	// patience is how long that is tried again which takes back, or out.
	patience = time.Second
	pause    = 5 * time.Millisecond
)

// insist runs f as Session does, and again where that is refused: a thread may just
// be where it can't be stopped.
func (t *target) insist(ctx context.Context, f func(*tracee.Session) error) (err error) {
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		if err = t.Session(ctx, f); len(api.Refusals(err)) == 0 || time.Now().After(end) {
			return err
		}
	}
}

// Commit carries out a plan without refusals. The process is to be held against
// other vos (procfs.Process.Lock) from before the plan was made.
func (a *Plan) Commit(ctx context.Context, process *module.Process) (done Result, err error) {
	begin, p := time.Now(), &target{Process: process}
	defer func() { done.Total, done.Times = time.Since(begin), p.worst }()
	if a.Empty() {
		return done, nil
	}
	if a.Remove {
		return a.remove(ctx, p)
	}
	return a.attach(ctx, p)
}

func (a *Plan) attach(ctx context.Context, p *target) (done Result, err error) {
	// A toolkit that the program opened must not be closed any more.
	for soname := range wanted {
		if library, err := findLibrary(p.Process, soname); err != nil {
			return done, err
		} else if library != nil {
			if err := p.Pin(ctx, library); err != nil {
				return done, err
			}
		}
	}
	m := a.present
	if m != nil && !a.current() {
		out, err := takeOut(ctx, p, m, a.functions)
		if err != nil {
			return done, err
		}
		if len(out.Residual) > 0 {
			return done, unknown(p.Process, fmt.Errorf("another menu can't be taken out: %s", out.Residual[0]))
		}
		m = nil
	}
	if m == nil {
		if err := a.stage(ctx, p); err != nil {
			return done, err
		}
		if m, _, err = find(p.Process); err != nil {
			return done, err
		}
		if m == nil {
			return done, fmt.Errorf("find the menu of process %d: %w", p.PID(), procfs.ErrUnmapped)
		}
	}
	s, err := m.request(ctx, p, a.functions, requestAdd, "")
	if err == nil && s.word(stateBars) == 0 {
		err = noMenuBar(p.PID())
	}
	if err != nil {
		if !errors.Is(err, procfs.ErrGone) {
			err = errors.Join(err, m.dropUnused(context.WithoutCancel(ctx), p))
		}
		return done, err
	}
	done.Bars, done.Changed, done.Mapped = int(s.word(stateBars)), int(s.word(stateChanged)), m.span()
	return done, nil
}

func (m *mapped) span() string { return fmt.Sprintf("0x%x-0x%x", m.base, m.base+m.size) }

// dropUnused unmaps the menu if nothing leads to it.
func (m *mapped) dropUnused(ctx context.Context, p *target) error {
	_, err := m.unmap(ctx, p)
	return err
}

func (a *Plan) remove(ctx context.Context, p *target) (done Result, err error) {
	if a.present != nil {
		if done, err = takeOut(ctx, p, a.present, a.functions); err != nil {
			return done, err
		}
	}
	undo, err := clearing(p, a.leftover)
	if err != nil || len(undo) == 0 {
		return done, err
	}
	return done, p.insist(ctx, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		_, err := s.Run(undo)
		return err
	})
}

// takeOut lets the main loop destroy the items, and unmaps the menu.
func takeOut(ctx context.Context, p *target, m *mapped, functions map[string]uint64) (done Result, err error) {
	s, err := m.request(ctx, p, functions, requestRemove, "")
	if err != nil {
		return done, err
	}
	done.Bars, done.Changed = int(s.word(stateBars)), int(s.word(stateChanged))
	why, err := m.unmap(ctx, p)
	if err == nil && why != "" {
		done.Mapped = m.span()
		done.Residual = append(done.Residual, fmt.Sprintf("%s %s, %d bytes: %s", m.span(), memfd, m.size, why))
	}
	return done, err
}

// unmap unmaps the menu where nothing leads to it, and says why not otherwise: a
// refusal is one reason of several, as the items are gone by now.
func (m *mapped) unmap(ctx context.Context, p *target) (why string, err error) {
	maps, err := p.Maps()
	if err != nil {
		return "", err
	}
	code := func(r tracee.Range) tracee.Range { return tracee.Range{Start: m.base + r.Start, End: m.base + r.End} }
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		err = p.Session(ctx, func(s *tracee.Session) error {
			if err := s.StopAll(); err != nil {
				return err
			}
			now, err := m.readState(s.Memory())
			if err != nil {
				return err
			}
			switch {
			case !now.settled():
				why = "its main loop may still call it"
				return nil
			case now.held() != 0:
				why = fmt.Sprintf("the program still holds %d of its entries", now.held())
				return nil
			}
			if _, _, occupied, err := s.Occupied([]tracee.Range{code(m.tail), code(m.gone)}, tracee.Range{}, maps); err != nil || occupied {
				why = "a thread is within it"
				return err
			}
			if err := s.Borrow(); err != nil {
				return err
			}
			why = ""
			_, err = s.Call(syscall.SYS_MUNMAP, m.base, m.size)
			return err
		})
		if refusals := api.Refusals(err); len(refusals) > 0 {
			why, err = refusals[0].Subject+": "+refusals[0].Detail, nil
		}
		if err != nil || why == "" || time.Now().After(end) {
			return why, err
		}
	}
}

// Show shows lines in a dialog of the program, by the menu that it has. One that
// has none is a refusal. What is not UTF-8, or not to be printed, is replaced; what
// does not fit into a page is left out.
func Show(ctx context.Context, process *module.Process, lines []string) error {
	p := &target{Process: process}
	m, _, err := find(p.Process)
	if err != nil {
		return err
	}
	absent := api.Refusal{Code: codeNoMenu, Subject: fmt.Sprintf("process %d", p.PID()),
		Detail: "none of its windows has the item " + title, Remedy: "vos attach --menu adds it"}
	if m == nil {
		return absent
	}
	functions, err := findFunctions(p.Process)
	if err != nil {
		return err
	}
	s, err := m.request(ctx, p, functions, requestShow, printable(lines))
	if err == nil && s.word(stateChanged) == 0 {
		return absent
	}
	return err
}

// printable makes a text of lines as GTK can show it, in maxTextBytes.
func printable(lines []string) string {
	clean := make([]string, len(lines))
	for i, line := range lines {
		clean[i] = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return utf8.RuneError
			}
			return r
		}, strings.ToValidUTF8(line, string(utf8.RuneError)))
	}
	text := strings.Join(clean, "\n")
	if len(text) <= maxTextBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxTextBytes-len("…")], "") + "…"
}
