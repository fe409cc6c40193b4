package tracee

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A scratch is memory of the process that holds nothing: the lowest end of the
// main thread's stack mapping, which execve makes at least 128 KiB longer than
// the program needs to start. It is not the memory below the borrowed thread's
// own stack pointer, which on a goroutine's or coroutine's small stack belongs
// to somebody else.
type scratch struct {
	start, end uint64 // the stack mapping
}

const (
	pageSize = 4096

	// Room below the chain. It is used only if the tracer dies and a signal
	// handler runs on the way home; the mapping grows on its own beyond it.
	handlerRoom = 16 << 10

	// How far a used stack's pointer must stay away from memory that was
	// touched once and is dead now.
	deadDistance = 64 << 10
)

// findScratch returns the stack mapping of the process.
func findScratch(process *procfs.Process) (scratch, error) {
	maps, err := process.Maps()
	if err != nil {
		return scratch{}, err
	}
	for _, m := range maps {
		if m.Kind == procfs.KindStack {
			return scratch{m.Start, m.End}, nil
		}
	}
	return scratch{}, noScratchRefusal(process.PID(), "it has no stack mapping")
}

// place returns the address for length bytes, where nothing is lost by writing
// them, given that thread t is stopped: memory that was never touched, or such
// as lies far below the stack pointer of the stopped main thread.
func (a scratch) place(process *procfs.Process, pagemap *procfs.Pagemap, t *thread, length int) (uint64, error) {
	need := (uint64(handlerRoom+length) + pageSize - 1) &^ (pageSize - 1)
	if a.end-a.start < need {
		return 0, noScratchRefusal(process.PID(), "its stack mapping is too small")
	}
	touched, err := pagemap.TouchedPages(nil, a.start, a.start+need)
	if err != nil {
		return 0, err
	}
	if len(touched) > 0 {
		onStack := t.regs.RSP >= a.start && t.regs.RSP < a.end
		if t.tid != process.PID() || !onStack || t.regs.RSP < a.start+need+deadDistance {
			return 0, noScratchRefusal(process.PID(), "the whole of its stack mapping has been used")
		}
	}
	return a.start + handlerRoom, nil
}

func noScratchRefusal(pid int, detail string) error {
	return api.Refusal{Code: codeNoScratch, Subject: fmt.Sprintf("process %d", pid),
		Detail: "no memory to prepare a thread's way home: " + detail,
		Remedy: "try again when the program's main thread uses less of its stack"}
}
