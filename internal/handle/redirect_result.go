package handle

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
)

const async = syscall.O_ASYNC

func isBadDescriptor(err error) bool { return errors.Is(err, syscall.EBADF) }

// results tell of all members what was done, or would be.
func (w *redirecting) results(outcome api.Outcome, x *exchange) []api.Redirection {
	var all []api.Redirection
	for i, m := range w.members {
		o := w.result(m, outcome)
		if x != nil {
			at := x.places[m]
			o.PauseUS = at.times.Pause.Microseconds()
			if !w.Back {
				o.Kept = at.in.kept
			}
		}
		if outcome == api.Planned || w.Steps {
			o.Steps = w.steps(m)
		}
		o.Residual = slices.Concat(o.Residual, m.remarks)
		if i == 0 {
			o.Residual = slices.Concat(o.Residual, w.settled, w.remarks, w.unread())
		}
		all = append(all, o)
	}
	return all
}

// unread remarks on what a connection has received and nobody has read.
func (w *redirecting) unread() []string {
	if w.old.class != classConnection {
		return nil
	}
	if n, err := kernel.Unread(w.old.file); err == nil && n > 0 {
		return []string{fmt.Sprintf("%d bytes that the program has not read stay in the connection before", n)}
	}
	return nil
}

func (w *redirecting) result(m *member, outcome api.Outcome) api.Redirection {
	o := api.Redirection{PID: m.pid, Program: m.name, FD: w.FD, From: w.from, To: w.toText(), Outcome: outcome,
		Descriptors: []int{}, Registrations: len(m.registered), Kept: -1,
		TotalUS: time.Since(w.begin).Microseconds(), Residual: []string{}, Refusals: []api.Refusal{}}
	for _, b := range m.bound {
		o.Descriptors = append(o.Descriptors, b.fd)
	}
	return o
}

// refused tells that nothing was done, and why: err, and what was found in each
// process.
func (w *redirecting) refused(err error) []api.Redirection {
	members := w.members
	if len(members) == 0 {
		members = w.all[:1]
	}
	var all []api.Redirection
	first := -1
	for i, m := range members {
		if len(m.refusals) > 0 && first < 0 {
			first = i
		}
	}
	for i, m := range members {
		o := w.result(m, api.Refused)
		o.Refusals = append(o.Refusals, m.refusals...)
		if i == 0 {
			for _, r := range api.Refusals(err) {
				if !slices.Contains(o.Refusals, r) {
					o.Refusals = append(o.Refusals, r)
				}
			}
		}
		if len(o.Refusals) == 0 {
			o.Refusals = append(o.Refusals, api.Refusal{Code: codeOther, Subject: fmt.Sprintf("process %d", members[max(first, 0)].pid),
				Detail: "it can't be done there, and all processes are done or none", Remedy: "see to that process"})
		}
		all = append(all, o)
	}
	return all
}

// steps are the plan in words.
func (w *redirecting) steps(m *member) []string {
	var numbers []string
	for _, b := range m.bound {
		n := strconv.Itoa(b.fd)
		if b.cloexec {
			n += " (close-on-exec)"
		}
		numbers = append(numbers, n)
	}
	var steps []string
	if m == w.members[0] && !w.Back {
		steps = append(steps, w.openStep())
	}
	steps = append(steps, fmt.Sprintf("bind %s to %s instead of %s", strings.Join(numbers, ", "), w.toText(), w.from))
	for _, r := range m.registered {
		events := Registration{FD: r.fd, Events: r.events}
		steps = append(steps, fmt.Sprintf("carry over its registration with epoll %d as %d: %s", r.epoll, r.fd, strings.Join(events.EventNames(), " ")))
	}
	switch {
	case w.Back:
		steps = append(steps, "keep nothing of it")
	case m.standing != nil:
		steps = append(steps, fmt.Sprintf("keep descriptor %d, by which it leads back to %s", m.standing.Kept, m.standing.From))
	default:
		steps = append(steps, "keep "+w.from+" as a descriptor of vOS's own, for the way back")
	}
	return steps
}

func (w *redirecting) openStep() string {
	switch w.to.kind {
	case toFile, toAppend:
		s := "open " + w.to.path
		if w.to.kind == toFile && w.old.regular() && w.old.flags&syscall.O_APPEND == 0 {
			return s + ", at the offset of the file before"
		}
		return s
	case toFD:
		return fmt.Sprintf("share descriptor %d of process %d", w.to.fd, w.to.pid)
	}
	return "connect to " + strings.TrimPrefix(w.To, w.to.kind+":") + " from the program's network"
}
