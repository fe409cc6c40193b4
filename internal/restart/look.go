package restart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Options say how a program is restarted. The zero value is usable.
type Options struct {
	// Round is how many bytes are copied while the program is stopped; 0 is
	// DefaultRound.
	Round uint64
	// Progress is told how many bytes are done, of how many; it may be nil.
	Progress func(done, total uint64)
}

// DefaultRound stops a program for some milliseconds.
const DefaultRound = 8 << 20

// A Plan is a program that was looked at. Nothing is done yet.
type Plan struct {
	Process  *procfs.Process
	Program  string
	Refusals []api.Refusal
	Bytes    uint64 // of memory that would be copied
	Left     []Left // what stays as it is

	options Options
	areas   []*area
	parent  int
	locked  uint64 // VmLck
}

// A Left is memory that stays as it is, for one reason.
type Left struct {
	Reason   string
	Mappings int
	Bytes    uint64 // of address space
}

// An area is a mapping that is to be made anew, or several that become one: those that
// touch and are alike, which the kernel keeps apart for their history.
type area struct {
	procfs.Mapping
	advice []uint64           // of madvise
	flags  uint64             // of mmap
	pages  []procfs.PageRange // that it had when it was looked at
	staged uint64             // where the copy of its start is, or was; 0 is nowhere
	cut    uint64             // the part up to here is in a round
	done   uint64             // the part up to here is in place
	left   string             // why the rest stays as it is; "" is that it does not
}

// simple are the flags of smaps of a mapping that can be made anew as it was. What
// others mean a fresh one would not have.
var simple = map[string]bool{
	"rd": true, "wr": true, "ex": true, "mr": true, "mw": true, "me": true, "ac": true, "sd": true,
	"nr": true, "hg": true, "nh": true,
}

// reasons tell why mappings with a flag are left.
var reasons = []struct{ flag, reason string }{
	{"lo", "locked (mlock)"},
	{"gd", "grows downwards"},
	{"um", "watched (userfaultfd)"}, {"uw", "watched (userfaultfd)"}, {"ui", "watched (userfaultfd)"},
	{"dc", "not inherited by children (MADV_DONTFORK)"},
	{"wf", "emptied in children (MADV_WIPEONFORK)"},
	{"dd", "not in core files (MADV_DONTDUMP)"},
	{"mg", "merged with equal pages (MADV_MERGEABLE)"},
	{"ht", "huge pages (hugetlb)"},
	{"sl", "sealed (mseal)"},
	{"pk", "has a protection key"},
	{"dp", "may be taken at any time (MAP_DROPPABLE)"},
}

// Look looks at a process, which runs meanwhile, and is the caller's: the plan needs it.
func Look(ctx context.Context, p *procfs.Process, o Options) (*Plan, error) {
	if o.Round == 0 {
		o.Round = DefaultRound
	}
	plan := &Plan{Process: p, options: o}
	stat, err := p.Stat()
	if err != nil {
		return nil, err
	}
	plan.Program = stat.Command
	status, err := tracee.Check(p)
	if refusals := api.Refusals(err); len(refusals) > 0 {
		plan.Refusals = refusals
		return plan, nil
	}
	if err != nil {
		return nil, err
	}
	plan.locked, plan.parent = status.Locked, status.PPID
	if err := plan.lookAtPins(); err != nil {
		return nil, err
	}
	if err := plan.lookAtSharers(); err != nil {
		return nil, err
	}
	if err := plan.lookAtMemory(); err != nil {
		return nil, err
	}
	return plan, ctx.Err()
}

// pinners are files by which devices, or the kernel behind the program's back, write to
// memory that was once told to them: they would go on to write to the old pages.
var pinners = []struct{ prefix, detail string }{
	{"anon_inode:[io_uring]", "io_uring may read to and write from its memory meanwhile"},
	{"/dev/infiniband/", "a network adapter may write to its memory (RDMA)"},
	{"/dev/vfio/", "a device may write to its memory (VFIO)"},
	{"/dev/dri/", "a graphics device may write to its memory"},
	{"/dev/nvidia", "a graphics device may write to its memory"},
	{"/dev/kfd", "a graphics device may write to its memory"},
	{"/dev/kvm", "a virtual machine has its memory"},
}

// lookAtPins refuses programs whose pages somebody else holds on to.
func (p *Plan) lookAtPins() error {
	links, err := p.Process.Descriptors()
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, link := range links {
		for _, pin := range pinners {
			if strings.HasPrefix(link, pin.prefix) && !seen[pin.detail] {
				seen[pin.detail] = true
				p.Refusals = append(p.Refusals, pinned(p.Process.PID(), pin.detail))
			}
		}
	}
	return nil
}

// lookAtSharers refuses a process whose address space is another's, too.
func (p *Plan) lookAtSharers() error {
	other, err := sharer(p.Process, p.parent)
	if other != 0 {
		p.Refusals = append(p.Refusals, shared(p.Process.PID(), other))
	}
	return err
}

// sharer returns a child, or the parent, with the same address space, or 0.
func sharer(p *procfs.Process, parent int) (int, error) {
	others, err := p.Children()
	if err != nil {
		return 0, err
	}
	if parent > 0 {
		others = append(others, parent)
	}
	for _, pid := range others {
		switch differ, err := kernel.CompareMemory(p.PID(), pid); {
		case errors.Is(err, syscall.ESRCH), errors.Is(err, fs.ErrPermission):
			// It has ended, or is another user's: then it has no memory of this one.
		case err != nil:
			return 0, err
		case differ == 0:
			return pid, nil
		}
	}
	return 0, nil
}

// lookAtMemory sorts the mappings into those that are made anew and those that stay.
func (p *Plan) lookAtMemory() error {
	maps, err := p.Process.Maps()
	if err != nil {
		return err
	}
	flags, err := p.Process.MappingFlags()
	if err != nil {
		return err
	}
	policies, err := p.Process.MemoryPolicies()
	if err != nil {
		return err
	}
	pages, err := p.Process.OpenPagemap()
	if err != nil {
		return err
	}
	defer pages.Close()
	for _, m := range maps {
		reason := stays(&m, flags[m.Start], policies[m.Start])
		if strings.HasPrefix(m.Path, "/[aio]") {
			p.Refusals = append(p.Refusals, pinned(p.Process.PID(), "asynchronous input and output (io_setup) may write to its memory meanwhile"))
		}
		if reason == "" {
			touched, err := pages.TouchedPages(nil, m.Start, m.End)
			if err != nil {
				return err
			}
			if len(touched) == 0 {
				continue // there is nothing in it
			}
			p.add(m, flags[m.Start], touched)
			continue
		}
		p.Left = count(p.Left, reason, m.Size())
	}

	return nil
}

// stays returns why a mapping is left as it is; "" is that it can be made anew.
func stays(m *procfs.Mapping, flags []string, policy string) string {
	switch m.Kind {
	case procfs.KindAnonymous, procfs.KindHeap, procfs.KindNamedAnonymous:
	case procfs.KindFile:
		return "of a file"
	case procfs.KindStack:
		return "the stack of the main thread"
	case procfs.KindVDSO, procfs.KindVVar, procfs.KindVsyscall:
		return "the kernel's"
	default:
		return "shared, or of a file in memory"
	}
	switch {
	case m.Perms&procfs.Shared != 0:
		return "shared, or of a file in memory"
	case policy != "":
		return "has a memory policy (mbind)"
	case len(flags) == 0:
		return "it came while vos looked"
	}
	for _, flag := range flags {
		if simple[flag] {
			continue
		}
		for _, r := range reasons {
			if r.flag == flag {
				return r.reason
			}
		}
		return fmt.Sprintf("has the flag %q, of which vos does not know what it means", flag)
	}
	return ""
}

func (p *Plan) add(m procfs.Mapping, flags []string, touched []procfs.PageRange) {
	a := &area{Mapping: m, cut: m.Start, done: m.Start, pages: touched, flags: syscall.MAP_PRIVATE | syscall.MAP_ANONYMOUS}
	for _, flag := range flags {
		switch flag {
		case "nr":
			a.flags |= syscall.MAP_NORESERVE
		case "hg":
			a.advice = append(a.advice, adviseHuge)
		case "nh":
			a.advice = append(a.advice, adviseNoHuge)
		}
	}
	for _, r := range touched {
		p.Bytes += r.End - r.Start
	}
	if n := len(p.areas); n > 0 && p.areas[n-1].continues(a) {
		last := p.areas[n-1]
		last.End, last.pages = a.End, append(last.pages, touched...)
		return
	}
	p.areas = append(p.areas, a)
}

// continues reports whether another area goes on where this one ends, and is alike.
func (a *area) continues(b *area) bool {
	return a.End == b.Start && a.alike(&b.Mapping) && a.flags == b.flags && slices.Equal(a.advice, b.advice)
}

// alike reports whether a mapping is of the kind of the area's.
func (a *area) alike(m *procfs.Mapping) bool {
	return m.Perms == a.Perms && m.Kind == a.Kind && m.Path == a.Path
}

const (
	adviseHuge   = 14 // MADV_HUGEPAGE
	adviseNoHuge = 15
)
