package descriptor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Options are how descriptors are kept.
type Options struct {
	// Inherit are the numbers of descriptors that the image does not hold: whoever
	// restores gives them. It holds for all processes.
	Inherit []int

	// GoesOn tells that the program goes on behind Dump, and its connections with it.
	// Otherwise they are the image's, and Kept.Leaving is needed to end it.
	GoesOn bool
}

// A Found is what Look found out. It is used by one goroutine at a time.
type Found struct {
	looking
	model image.Model
}

// looking is what the kinds need to judge a handle.
type looking struct {
	processes []*procfs.Process
	program   map[int]bool // the process ids
	inherit   map[int]bool
	known     map[place]handle.Handle // that were judged
	watches   map[watch]string        // paths of what is watched
	masters   map[int]bool            // of pseudo terminals, that the program has
	networks  map[int]bool            // whether processes are in vos's network namespace
	ends      bool                    // the program, behind Dump
	unable    *error                  // why connections can't be kept, where that is known
}

// A place is a descriptor of a process.
type place struct{ pid, fd int }

// Look looks at the descriptors of the processes of a program, which run meanwhile,
// and returns what speaks against keeping them: nothing is taken over, and nothing
// stopped. The processes stay the caller's, and are needed as long as what is
// returned.
func Look(ctx context.Context, processes []*procfs.Process, o Options) (*Found, []api.Refusal, error) {
	f := &Found{looking: looking{processes: processes, program: map[int]bool{}, inherit: map[int]bool{}, known: map[place]handle.Handle{}, watches: map[watch]string{}, ends: !o.GoesOn}}
	for _, p := range processes {
		f.program[p.PID()] = true
	}
	for _, fd := range o.Inherit {
		f.inherit[fd] = true
	}
	handles, refusals, err := f.list()
	if err != nil {
		return nil, nil, err
	}
	more, err := f.judge(ctx, handles)
	if err != nil {
		return nil, nil, err
	}
	f.model = modelOf(handles)
	return f, append(append(refusals, more...), f.nameless()...), nil
}

// Model returns how much of the program's surroundings its descriptors need.
func (f *Found) Model() image.Model { return f.model }

// Notes say what making the descriptors again takes beside the image.
func (f *Found) Notes() []string {
	seen, n := map[uint64]bool{}, 0
	for _, h := range f.known {
		if s := h.Socket; s != nil && s.Protocol == "tcp" && s.Remote.IsValid() && !seen[h.Inode] && !f.inherited(&h) {
			seen[h.Inode] = true
			n++
		}
	}
	if n == 0 || !f.ends {
		return nil
	}
	return []string{fmt.Sprintf("it has %d connections, which go on where it is restored on this machine within %v of a checkpoint that ends it; until then nf_tables drops their packets, and their peers wait", n, HeldFor)}
}

func modelOf(handles []handle.Handle) image.Model {
	model := image.Minimal
	for _, h := range handles {
		switch h.Kind {
		case handle.KindTerminal:
			return image.Full
		case handle.KindFile, handle.KindDirectory, handle.KindPath, handle.KindFIFO, handle.KindSocket, handle.KindInotify, handle.KindFanotify:
			model = image.Enhanced
		}
	}
	return model
}

// list reads all descriptors of all processes, in order.
func (l *looking) list() (handles []handle.Handle, refusals []api.Refusal, err error) {
	for _, p := range l.processes {
		apart, err := handle.Apart(p)
		if err != nil {
			return nil, nil, err
		}
		if len(apart) > 0 {
			refusals = append(refusals, api.Refusal{Code: codeTables, Subject: fmt.Sprintf("thread %d of process %d", apart[0], p.PID()),
				Detail: "it has descriptors of its own, apart from those of the process", Remedy: "none is known"})
		}
		own, restless, err := handle.List(p)
		if err != nil {
			return nil, nil, err
		}
		for _, fd := range restless {
			refusals = append(refusals, api.Refusal{Code: codeMoving, Subject: subject(p.PID(), fd),
				Detail: "it is opened and closed too often to be looked at", Remedy: TryAgain})
		}
		for i := range own {
			own[i].Path = pathHere(&own[i])
		}
		handles = append(handles, own...)
	}
	l.masters = map[int]bool{}
	for i := range handles {
		if h := &handles[i]; isMaster(h) && !l.inherit[h.FD] {
			l.masters[h.Terminal] = true
		}
	}
	return handles, refusals, nil
}

// pathHere returns the path of a handle as vOS sees it, whatever root directory the program
// has: so are all paths of an image.
func pathHere(h *handle.Handle) string {
	switch {
	case h.Path == "":
		return ""
	case h.Deleted:
		return strings.TrimSuffix(h.Link, " (deleted)")
	}
	return h.Link
}

// judge returns what speaks against keeping handles, and remembers what it knows
// of them.
func (l *looking) judge(ctx context.Context, handles []handle.Handle) (refusals []api.Refusal, err error) {
	survey := handle.NewSurvey()
	defer survey.Close()
	for _, p := range l.processes {
		var own []handle.Handle
		for _, h := range handles {
			if h.PID == p.PID() {
				own = append(own, h)
			}
		}
		if slices.ContainsFunc(own, func(h handle.Handle) bool { return len(l.inherit) > 0 || !mayShare(&h) || needsOpeners(&h) }) {
			if err := survey.Complete(ctx, p, own); err != nil {
				return nil, err
			}
		}
		for i := range own {
			h := &own[i]
			if needsOpeners(h) {
				h.Peers = survey.Openers(h)
			}
			refusals = append(refusals, l.judgeOne(h)...)
			l.known[place{h.PID, h.FD}] = *h
		}
	}
	return refusals, nil
}

// needsOpeners reports whether it matters who else has what a handle leads to open, by
// whatever description.
func needsOpeners(h *handle.Handle) bool {
	return h.Kind == handle.KindMemfd || isSlave(h) || h.Kind == handle.KindFile && h.Deleted
}

// inherited reports whether whoever restores gives what a handle leads to: its number
// was named, or another that leads to the same description.
func (l *looking) inherited(h *handle.Handle) bool {
	return l.inherit[h.FD] || slices.ContainsFunc(h.Sharers, func(o handle.Holder) bool { return l.program[o.PID] && l.inherit[o.FD] })
}

// judgeOne returns what speaks against keeping what one handle leads to.
func (l *looking) judgeOne(h *handle.Handle) (refusals []api.Refusal) {
	if l.inherited(h) {
		return nil
	}
	k, ok := kinds[h.Kind]
	if !ok {
		remedy := "close it, or end what needs it, and try again"
		if h.Kind == handle.KindTerminal || h.FD <= 2 {
			remedy = inheritRemedy(h.FD)
		}
		return []api.Refusal{refusal(codeKind, h, leadsTo(h)+", which is not kept", remedy)}
	}
	refusals = k.look(l, h)
	if mayShare(h) || len(refusals) > 0 {
		return refusals
	}
	if others := l.outside(h.Sharers); len(others) > 0 {
		refusals = append(refusals, refusal(codeShared, h, leadsTo(h)+", which "+holdersText(others)+" has by the same open file", inheritRemedy(h.FD)))
	}
	return refusals
}

// mayShare reports whether it does not matter who else has what a handle leads to.
func mayShare(h *handle.Handle) bool {
	s, ok := kinds[h.Kind].(shareable)
	return ok && s.mayShare(h)
}

// outside returns those holders that are no processes of the program.
func (l *looking) outside(holders []handle.Holder) []handle.Holder {
	return slices.DeleteFunc(slices.Clone(holders), func(o handle.Holder) bool { return l.program[o.PID] })
}
