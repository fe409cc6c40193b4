package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// handles is `vos handles`.
func (a *app) handles() *cobra.Command {
	var r api.HandlesRequest
	var functions, ids bool
	cmd := &cobra.Command{
		Use:   "handles TARGET",
		Short: "List what a program's descriptors lead to, and who shares them",
		Long: `List the handles of every process of a program. Nothing is stopped or changed,
and no descriptor is taken over.

A row is a descriptor: what it has open (a file, the addresses of a socket, what
an epoll instance waits for …), how it was opened, the offset, PEER: who holds
the other end of a pipe or of a connection on this machine, and SHARED: who else
has the same open file description, by dup, fork or a unix socket, and so the
same offset. In FLAGS r, w and rw are the access mode. * after KIND marks what
vos itself has there, "was" what vos redirect has bound anew, ? a number that is
registered in an epoll instance but has another file by now. --verbose adds
locks, queues and what epoll and inotify instances wait for.

OPENED BY is there where calls are counted (vos attach, vos run): the modules
that have called a function which opens such a descriptor, those with most calls
first. If it was opened since calls are counted, one of these did it; who opened
what was there before, or was inherited, is not known.

A program opens and closes descriptors meanwhile. Each row is of one open file
as it was at one time; descriptors that are closed before that are not listed.
Processes that you may not look at are missing in PEER and SHARED.

--functions lists the other handles of a program, those of functions: of each
module its import slots, how many of them lead to a vIN, and which generation of
the module calls reach; --verbose adds the slots. --ids lists the numbers of
processes and threads, in each pid namespace from this one inwards.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitInterrupted),
		Example: `  vos handles nginx
  vos handles redis-server --kind socket,epoll --verbose
  vos handles 1234 --fd 1,2 --json | jq -r .path
  vos handles nginx:libz.so.1 --functions --verbose`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("handles needs a target: a program's pid or name")
			}
			return atMostOneTarget(cmd, args)
		},
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(args[0])
			if err != nil {
				return err
			}
			r.Target = t
			filtered := len(r.Kinds) > 0 || len(r.FDs) > 0
			switch {
			case functions && (ids || filtered), ids && filtered:
				return usagef("--functions and --ids stand alone: --kind and --fd choose descriptors")
			case t.Module != "" && !functions:
				return usagef("descriptors belong to a process, not to module %s; leave it out, or use --functions", t.Module)
			}
			for _, kind := range r.Kinds {
				if !slices.Contains(api.HandleKinds, kind) {
					return usagef("there is no kind %q; kinds are %s", kind, strings.Join(api.HandleKinds, ", "))
				}
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				switch {
				case functions:
					return a.listFunctions(ctx, x, api.FunctionsRequest{Target: t})
				case ids:
					return a.listIDs(ctx, x, api.HandlesRequest{Target: t, IDsOnly: true})
				}
				return a.listHandles(ctx, x, r)
			})
		},
	}
	cmd.Flags().StringSliceVar(&r.Kinds, "kind", nil, "descriptors of these `kinds` only: file, socket, epoll …")
	cmd.Flags().IntSliceVar(&r.FDs, "fd", nil, "these `descriptors` only")
	cmd.Flags().BoolVar(&functions, "functions", false, "import slots instead of descriptors")
	cmd.Flags().BoolVar(&ids, "ids", false, "process, thread and namespaced ids instead of descriptors")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(api.HandleKinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) listHandles(ctx context.Context, x api.Executive, r api.HandlesRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 2},
		column{title: "FD", right: true},
		column{title: "KIND"},
		column{title: "OPEN", elastic: true},
		column{title: "FLAGS", elastic: true},
		column{title: "OFFSET", right: true, spare: 3},
		column{title: "PEER", elastic: true, rare: true},
		column{title: "SHARED", elastic: true, rare: true, spare: 1},
		column{title: "OPENED BY", elastic: true, rare: true, spare: 4})
	var done tally
	unseen, listed := 0, 0
	err := x.Handles(ctx, r, func(h api.Holdings) error {
		done.good++
		listed += len(h.Handles)
		unseen = max(unseen, h.Unseen)
		for _, fd := range h.Restless {
			a.stderr.notef("descriptor %d of %s changes too fast to be looked at", fd, place(h.Program, h.PID))
		}
		for _, u := range h.Unread {
			a.stderr.notef("%s: not listed: %s", place(h.Program, h.PID), u)
		}
		a.explainOpeners(h)
		for _, d := range h.Handles {
			if !a.json {
				a.addHandle(t, d)
				continue
			}
			d.Flags, d.OpenedBy, d.Peers, d.Shared = list(d.Flags), list(d.OpenedBy), list(d.Peers), list(d.Shared)
			if err := a.printJSON(d); err != nil {
				return err
			}
		}
		return nil
	})
	t.print(a.stdout)
	err = a.settle(done, err)
	if unseen > 0 && listed > 0 {
		a.stderr.notef("%s may not be looked at: their part in pipes, sockets and shared files is not shown", count(unseen, "process"))
	}
	return err
}

func (a *app) addHandle(t *table, h api.Handle) {
	kind := cell{h.Kind, plain}
	if h.Mine {
		kind = cell{h.Kind + "*", warn}
	}
	offset := ""
	if h.Size != nil || h.Offset != 0 {
		offset = strconv.FormatInt(h.Offset, 10)
	}
	t.add(
		text(strconv.Itoa(h.PID)),
		text(quoted(h.Program)),
		text(strconv.Itoa(h.FD)),
		kind,
		text(a.openText(h)+was(h)),
		text(flagsText(h)),
		text(offset),
		text(a.references(h.Peers, h.PID)),
		text(a.references(h.Shared, h.PID)),
		text(openedBy(h)),
	)
	if a.verbose {
		for _, n := range handleNotes(h) {
			t.note(n)
		}
	}
}

// openText says in a line what a descriptor has open.
func (a *app) openText(h api.Handle) string {
	switch {
	case h.Socket != nil:
		return socketText(h.Socket)
	case h.Kind == "epoll":
		return count(len(h.Epoll), "file") + " registered" + a.registered(h)
	case h.Eventfd != nil && h.Eventfd.Semaphore:
		return fmt.Sprintf("semaphore %d", h.Eventfd.Count)
	case h.Eventfd != nil:
		return fmt.Sprintf("count %d", h.Eventfd.Count)
	case h.Timerfd != nil:
		return timerText(h.Timerfd)
	case h.Kind == "signalfd":
		return "signals " + numbers(h.Signals)
	case h.Pidfd != nil && h.Pidfd.PID < 0:
		return "a process that has ended"
	case h.Pidfd != nil && h.Pidfd.PID == 0:
		return "a process of another pid namespace"
	case h.Pidfd != nil:
		return fmt.Sprintf("process %d", h.Pidfd.PID)
	case h.Kind == "inotify":
		if len(h.Watches) == 1 {
			return "1 watch"
		}
		return fmt.Sprintf("%d watches", len(h.Watches))
	case h.Ring != nil:
		return fmt.Sprintf("queues of %d and %d entries", h.Ring.SubmissionEntries, h.Ring.CompletionEntries)
	case h.Path != "":
		s := quoted(h.Path)
		if h.Pty != nil && !strings.HasSuffix(h.Path, "/"+strconv.Itoa(*h.Pty)) {
			s += fmt.Sprintf(" of pts/%d", *h.Pty)
		}
		if h.Deleted {
			s += " (deleted)"
		}
		return s
	}
	return quoted(strings.TrimSuffix(h.Name, " (deleted)"))
}

// explainOpeners says who may have opened descriptors, too, as calls are not counted.
func (a *app) explainOpeners(h api.Holdings) {
	for _, u := range h.Uncounted {
		a.stderr.notef("%s: %s may have opened some, too: calls of %s are not counted, as %s",
			place(h.Program, h.PID), quoted(u.Module), quotedList(u.Functions), u.Why)
	}
}

// openedBy lists the modules that may have opened a descriptor.
func openedBy(h api.Handle) string {
	var names []string
	for _, name := range h.OpenedBy {
		names = append(names, quoted(name))
	}
	return strings.Join(names, " ")
}

// was tells what a redirected descriptor led to before.
func was(h api.Handle) string {
	if h.RedirectedFrom == "" {
		return ""
	}
	return " (was " + quoted(h.RedirectedFrom) + ")"
}

// registered lists the descriptors of an epoll instance: in a table a few.
func (a *app) registered(h api.Handle) string {
	const shown = 4
	var fds []string
	for i, r := range h.Epoll {
		if i == shown && len(h.Epoll) > shown+1 {
			fds = append(fds, "…")
			break
		}
		fd := strconv.Itoa(r.FD)
		if !r.Open {
			fd += "?"
		}
		fds = append(fds, fd)
	}
	if len(fds) == 0 {
		return ""
	}
	return ": " + strings.Join(fds, " ")
}

func socketText(s *api.Socket) string {
	kind := s.Protocol
	switch {
	case s.Family == "inet6" && kind != "":
		kind += "6"
	case s.Family == "netlink" && kind != "":
		kind = "netlink " + kind
	case s.Family == "unix" && s.Type != "":
		kind = "unix " + s.Type
	case kind == "" || s.Family == "packet":
		kind = s.Family
	}
	parts := []string{quoted(kind)}
	if s.Local != "" {
		parts = append(parts, quoted(s.Local))
	}
	if s.Remote != "" {
		parts = append(parts, "→", quoted(s.Remote))
	}
	if s.State != "" {
		parts = append(parts, quoted(s.State))
	}
	return strings.Join(parts, " ")
}

func timerText(t *api.Timerfd) string {
	if t.RemainingNS == 0 {
		return "not set"
	}
	s := "fires in " + pause(t.RemainingNS/1000)
	if t.IntervalNS > 0 {
		s += ", every " + pause(t.IntervalNS/1000)
	}
	return s
}

// flagsText is the access mode and the flags as short as they can be read.
func flagsText(h api.Handle) string {
	parts := []string{map[string]string{"read": "r", "write": "w", "read_write": "rw", "none": "-"}[h.Access]}
	for _, f := range h.Flags {
		parts = append(parts, strings.ToLower(strings.TrimPrefix(f, "O_")))
	}
	return strings.Join(parts, " ")
}

// references lists descriptors of processes; those of the own process as numbers.
func (a *app) references(refs []api.HandleRef, own int) string {
	const shown = 3
	var parts []string
	for i, r := range refs {
		if i == shown && len(refs) > shown+1 && !a.verbose {
			parts = append(parts, fmt.Sprintf("+%d", len(refs)-shown))
			break
		}
		if r.PID == own {
			parts = append(parts, strconv.Itoa(r.FD))
		} else {
			parts = append(parts, fmt.Sprintf("%s[%d]:%d", quoted(r.Program), r.PID, r.FD))
		}
	}
	return strings.Join(parts, " ")
}

// handleNotes are the lines below a row, with --verbose.
func handleNotes(h api.Handle) []string {
	notes := []string{fmt.Sprintf("device %s, inode %d", h.Device, h.Inode)}
	switch h.Own {
	case "record":
		notes = append(notes, "the record of a redirection, which vos redirect needs for the way back")
	case "kept":
		notes = append(notes, "what was there before a redirection, kept for the way back")
	case "left":
		notes = append(notes, "left behind by a vos that was killed; the next vos replace or vos redirect closes it")
	}
	if s := h.Socket; s != nil && s.State != "" {
		if s.State == "listen" {
			notes = append(notes, fmt.Sprintf("%d waiting to be accepted, of at most %d", s.ReceiveQueue, s.SendQueue))
		} else {
			notes = append(notes, fmt.Sprintf("%d bytes to receive, %d to send", s.ReceiveQueue, s.SendQueue))
		}
	}
	for _, r := range h.Epoll {
		what := "no longer this file"
		if r.Open {
			what = r.Kind
		}
		words := append([]string{strconv.Itoa(r.FD) + ":", what}, r.Events...)
		notes = append(notes, strings.Join(words, " ")+", data "+r.Data)
	}
	if t := h.Timerfd; t != nil {
		notes = append(notes, fmt.Sprintf("%s, %d ticks not read", t.Clock, t.Ticks))
	}
	for _, w := range h.Watches {
		notes = append(notes, fmt.Sprintf("watch %d: device %s inode %d %s", w.Number, w.Device, w.Inode, strings.Join(w.Events, " ")))
	}
	for _, l := range h.Locks {
		end := "the end"
		if l.End >= 0 {
			end = strconv.FormatInt(l.End, 10)
		}
		by := fmt.Sprintf(" by process %d", l.PID)
		if l.PID < 0 { // it belongs to the description
			by = ""
		}
		notes = append(notes, fmt.Sprintf("locked: %s %s%s, bytes %d to %s", quoted(l.Type), quoted(l.Mode), by, l.Start, end))
	}
	return notes
}

func numbers(all []int) string {
	var parts []string
	for _, n := range all {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, " ")
}

// listIDs is `vos handles --ids`.
func (a *app) listIDs(ctx context.Context, x api.Executive, r api.HandlesRequest) error {
	t := newTable(column{title: "PID", right: true}, column{title: "PROGRAM"}, column{title: "PPID", right: true},
		column{title: "PGID", right: true}, column{title: "SID", right: true}, column{title: "NSPID"}, column{title: "THREADS", elastic: true})
	var done tally
	err := x.Handles(ctx, r, func(h api.Holdings) error {
		done.good++
		if a.json {
			h.NSPIDs, h.Threads = list(h.NSPIDs), list(h.Threads)
			return a.printJSON(h.IDs)
		}
		var threads []string
		for _, thread := range h.Threads {
			threads = append(threads, strings.ReplaceAll(numbers(thread.NSTIDs), " ", "→"))
		}
		t.add(text(strconv.Itoa(h.PID)), text(quoted(h.Program)), text(strconv.Itoa(h.PPID)), text(strconv.Itoa(h.PGID)),
			text(strconv.Itoa(h.SID)), text(strings.ReplaceAll(numbers(h.NSPIDs), " ", "→")), text(strings.Join(threads, " ")))
		return nil
	})
	t.print(a.stdout)
	return a.settle(done, err)
}

// listFunctions is `vos handles --functions`.
func (a *app) listFunctions(ctx context.Context, x api.Executive, r api.FunctionsRequest) error {
	t := newTable(column{title: "PID", right: true}, column{title: "PROGRAM", spare: 1}, column{title: "MODULE", elastic: true},
		column{title: "SLOTS", right: true}, column{title: "LAZY", right: true}, column{title: "LED", right: true}, column{title: "GEN", right: true})
	var done tally
	err := x.Functions(ctx, r, func(f api.FunctionHandles) error {
		done.good++
		if a.json {
			f.Imports = list(f.Imports)
			return a.printJSON(f)
		}
		t.add(text(strconv.Itoa(f.PID)), text(quoted(f.Program)), text(quoted(f.Module)), text(strconv.Itoa(f.Slots)),
			text(strconv.Itoa(f.Lazy)), text(strconv.Itoa(f.Led)), text(strconv.Itoa(f.Generation)))
		for _, s := range f.Imports {
			if a.verbose {
				t.note(slotText(s))
			}
		}
		return nil
	})
	t.print(a.stdout)
	return a.settle(done, err)
}

func slotText(s api.FunctionSlot) string {
	text := s.Address + " " + quoted(s.Symbol) + " → "
	switch {
	case s.Lazy:
		return text + "not called yet"
	case s.Led:
		return fmt.Sprintf("%s%s, generation %d, by the vIN", text, quoted(s.Module), s.Generation)
	case s.Module != "":
		return text + quoted(s.Module)
	}
	return text + s.Target
}
