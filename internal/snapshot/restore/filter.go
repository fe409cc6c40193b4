package restore

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Seccomp filters can't be taken back, and forbid what building a process takes. They are
// set while the process still has all rights, and not asked until it is left: from its
// birth on it is traced with PTRACE_O_SUSPEND_SECCOMP.

const (
	sysSeccomp       = 317
	setModeFilter    = 1      // SECCOMP_SET_MODE_FILTER
	filterSync       = 1 << 0 // SECCOMP_FILTER_FLAG_TSYNC
	filterLog        = 1 << 1
	filterSyncErrors = 1 << 4 // SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	filterBytes      = 8      // struct sock_filter
	programBytes     = 16     // struct sock_fprog
)

// suspendFilters lets what the starter makes be built whatever the filters forbid.
func suspendFilters(starter *task, processes []image.Process) error {
	for i := range processes {
		if len(processes[i].Filters) > 0 {
			if err := kernel.SetOptions(starter.tid, tracing|kernel.SuspendSeccomp); err != nil {
				return fmt.Errorf("set seccomp filters aside (which takes a vos without one, and CAP_SYS_ADMIN): %w", err)
			}
			return nil
		}
	}
	return nil
}

// setFilters gives the threads their filters, the oldest first. Those that all have are
// one for all: a program may set another one for all threads (TSYNC) only if they are.
func (p *process) setFilters(of *image.Process) error {
	if len(of.Filters) == 0 {
		return nil
	}
	common := commonFilters(of.Threads)
	b := p.batch()
	for _, n := range of.Threads[0].Filters[:common] {
		if err := b.addFilter(&of.Filters[n], filterSync|filterSyncErrors); err != nil {
			return err
		}
	}
	if _, err := b.run(); err != nil {
		return err
	}
	for i := range of.Threads {
		t := &of.Threads[i]
		b := p.batchIn(p.task(t.TID))
		for _, n := range t.Filters[common:] {
			if err := b.addFilter(&of.Filters[n], 0); err != nil {
				return err
			}
		}
		if _, err := b.run(); err != nil {
			return err
		}
	}
	return nil
}

// commonFilters returns how many of their oldest filters all threads have.
func commonFilters(threads []image.Thread) int {
	n := len(threads[0].Filters)
	for i := range threads {
		for n = min(n, len(threads[i].Filters)); n > 0; n-- {
			if slices.Equal(threads[0].Filters[:n], threads[i].Filters[:n]) {
				break
			}
		}
	}
	return n
}

func (b *batch) addFilter(f *image.Filter, flags uint64) error {
	at, err := b.place(make([]byte, programBytes+len(f.Code)))
	if err != nil {
		return err
	}
	program := binary.LittleEndian.AppendUint64(nil, uint64(len(f.Code)/filterBytes)) // struct sock_fprog
	program = binary.LittleEndian.AppendUint64(program, at+programBytes)
	copy(b.process.placed[at-b.process.main.arena.data:], append(program, f.Code...))
	if f.Log {
		flags |= filterLog
	}
	b.add("set a seccomp filter", sysSeccomp, setModeFilter, flags, at)
	return nil
}
