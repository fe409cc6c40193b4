package descriptor

import (
	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
)

// A kind is one kind of resource, both sides.
type kind interface {
	// look returns what speaks against keeping what h leads to. It is asked while
	// the program runs, and again when it is held still.
	look(l *looking, h *handle.Handle) []api.Refusal

	// dump fills in f, of which the kind, flags and offset are there, by raw, a copy
	// of the descriptor. The program is held still.
	dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error

	// plan returns what speaks against making file i of the image again.
	plan(p *planning, i int) []api.Refusal

	// open makes file i of the image again, status flags and offset included. The
	// caller closes it.
	open(o *Opened, i int) (kernel.Raw, error)
}

// A shareable kind keeps so little in a description that it does not matter whether
// others have it too.
type shareable interface {
	// mayShare reports whether what h leads to may be others', too.
	mayShare(h *handle.Handle) bool
}

// A wired kind has something that is made in the process itself, once all of its
// descriptors are there.
type wired interface {
	// wire makes the system calls for file i, which number leads to in process.
	wire(o *Opened, p remote.Process, i, number int, process *image.Process) error
}

// kinds are those that are kept; others are refused.
var kinds = map[handle.Kind]kind{
	handle.KindFile:      regular{},
	handle.KindDirectory: regular{},
	handle.KindPath:      regular{},
	handle.KindDevice:    device{},
	handle.KindPipe:      pipe{},
	handle.KindEventfd:   event{},
	handle.KindEpoll:     epoll{},
	handle.KindTimerfd:   timer{},
	handle.KindSignalfd:  signalfd{},
	handle.KindMemfd:     memory{},
	handle.KindSocket:    socket{},
	handle.KindFIFO:      pipe{},
	handle.KindInotify:   inotify{},
	handle.KindPidfd:     pidfd{},
	handle.KindTerminal:  terminal{},
}

// statusFlags are those of open(2) that a description keeps, access mode included.
const statusFlags = 0o3 | 0o2000 | 0o4000 | 0o10000 | 0o4010000 | 0o40000 | 0o100000 | 0o200000 | 0o400000 | 0o1000000 | 0o10000000

// settable are those that F_SETFL sets, but for O_ASYNC.
const settable = 0o2000 | 0o4000 | 0o40000 | 0o1000000

// withFlags makes file i by open, and sets its status flags.
func withFlags(o *Opened, i int, open func() (kernel.Raw, error)) (kernel.Raw, error) {
	raw, err := open()
	if err != nil {
		return -1, err
	}
	if err := raw.SetFlags(int(o.image.Files[i].Flags) & settable); err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}
