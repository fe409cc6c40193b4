package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// System calls that package syscall does not name.
const (
	sysMlock2         = 325
	sysRseq           = 334
	sysPidfdOpen      = 434
	sysClone3         = 435
	sysCloseRange     = 436
	sysPidfdGetfd     = 438
	sysMseal          = 462
	sysPrlimit64      = 302
	sysTgsigqueueinfo = 297
	sysSchedSetattr   = 314
)

// Flags of clone3(2) that package syscall does not name.
const (
	cloneClearHandlers = 0x100000000 // CLONE_CLEAR_SIGHAND
)

// cloneArgs is struct clone_args of linux/sched.h, followed by the id that the child is
// to have. It will stand at an address.
func cloneArgs(at, flags, clearTID uint64, tid, exitSignal int) []byte {
	b := make([]byte, 0, cloneArgsBytes+8)
	put := func(v uint64) { b = binary.LittleEndian.AppendUint64(b, v) }
	put(flags)
	put(0) // pidfd
	put(clearTID)
	put(0) // parent_tid
	put(uint64(exitSignal))
	put(0)                   // stack
	put(0)                   // stack_size
	put(0)                   // tls
	put(at + cloneArgsBytes) // set_tid
	put(1)                   // set_tid_size
	put(0)                   // cgroup
	put(uint64(tid))
	return b
}

const cloneArgsBytes = 88

// bear lets a process make another one.
func (p *process) bear(pid, exitSignal int) (*process, error) {
	err := p.untilFree(func() (free bool, err error) {
		errno, err := p.clone(pid, exitSignal)
		switch {
		case err != nil:
			return false, err
		case errno == syscall.EEXIST:
			return false, pidTaken(pid, "a process, thread, group or session has it")
		case errno != 0:
			return true, &StepError{PID: p.pid, TID: p.pid, What: fmt.Sprintf("make process %d", pid), Errno: errno}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return p.child(pid)
}

// clone asks for a process with an id.
func (p *process) clone(pid, exitSignal int) (syscall.Errno, error) {
	b := p.batch()
	at, err := b.place(cloneArgs(p.main.arena.data, syscall.CLONE_PTRACE|cloneClearHandlers, 0, pid, exitSignal))
	if err != nil {
		return 0, err
	}
	b.try(sysClone3, at, cloneArgsBytes)
	results, err := b.run()
	if err != nil {
		return 0, err
	}
	return errnoOf(results[0]), nil
}

// child is a process that was just made, ready for calls. One that comes with an error is
// to be ended.
func (p *process) child(pid int) (*process, error) {
	child := &process{tracer: p.tracer, pid: pid, main: p.task(pid)}
	child.main.arena = p.main.arena
	if err := p.awaitStop(child.main); err != nil {
		return child, err
	}
	return child, child.main.prepare()
}

// untilFree tries for a moment to get ids: the kernel may not have let go of those of a
// process that has just been reaped. The error is that of the last try.
func (t *tracer) untilFree(try func() (done bool, err error)) error {
	const moment = 300 * time.Millisecond
	for end := time.Now().Add(moment); ; time.Sleep(200 * time.Microsecond) {
		done, err := try()
		if done || err == nil || len(api.Refusals(err)) == 0 || time.Now().After(end) || t.ctx.Err() != nil {
			return err
		}
	}
}

// settleIn gives the process its arena, in a gap of its image's mappings, and unmaps
// all else.
func (p *process) settleIn(mappings []image.Mapping) error {
	g, err := p.makeArena(mappings)
	if err != nil {
		return err
	}
	p.main.arena = g
	// The stack pointer is for what looks at it: sigaltstack.
	p.main.base.RSP = g.end
	b := p.batch()
	b.add("unmap what is below the arena", syscall.SYS_MUNMAP, 0, g.start)
	b.add("unmap what is above the arena", syscall.SYS_MUNMAP, g.end, addressLimit-g.end)
	_, err = b.run()
	return err
}

func (p *process) makeArena(mappings []image.Mapping) (arena, error) {
	for _, at := range gaps(mappings) {
		g, code, err := arenaAt(at)
		if err != nil {
			return arena{}, err
		}
		b := p.batch()
		b.try(syscall.SYS_MMAP, at, arenaBytes, syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS|mapFixedNoReplace, noFile, 0)
		results, err := b.run()
		if err != nil {
			return arena{}, err
		}
		switch errno := errnoOf(results[0]); errno {
		case 0:
		case syscall.EEXIST:
			continue
		default:
			return arena{}, &StepError{PID: p.pid, TID: p.pid, What: "map memory to work in", Errno: errno}
		}
		if err := kernel.WriteMemory(p.pid, code, []kernel.RemoteRange{{Address: at, Length: uint64(len(code))}}); err != nil {
			return arena{}, err
		}
		b.addAt("make code executable at", at, syscall.SYS_MPROTECT, at, pageSize, syscall.PROT_READ|syscall.PROT_EXEC)
		_, err = b.run()
		return g, err
	}
	return arena{}, fmt.Errorf("build process %d: no gap of %d KiB in its address space", p.pid, arenaBytes>>10)
}

const (
	addressLimit      = 0x7ffffffff000 // of programs, with page tables of four levels
	lowestAddress     = 0x10000        // vm.mmap_min_addr
	mapFixedNoReplace = 0x100000
	noFile            = ^uint64(0)
	stackGap          = 16 << 20 // below a growing stack and its guard gap
)

// gaps returns addresses of room for an arena, the larger gaps of the mappings first.
func gaps(mappings []image.Mapping) []uint64 {
	type gap struct{ start, size uint64 }
	var found []gap
	last := uint64(lowestAddress)
	consider := func(end uint64) {
		if end > last && end-last >= arenaBytes+stackGap {
			found = append(found, gap{last, end - last})
		}
	}
	for _, m := range mappings {
		consider(m.Start)
		last = max(last, m.End)
	}
	consider(addressLimit)
	var at []uint64
	for range min(len(found), 8) {
		largest := 0
		for i, g := range found {
			if g.size > found[largest].size {
				largest = i
			}
		}
		g := &found[largest]
		for _, part := range []uint64{2, 3, 5} {
			if room := g.size - g.size/part; room >= arenaBytes+stackGap/2 {
				at = append(at, (g.start+g.size/part)&^(pageSize-1))
			}
		}
		g.size = 0
	}
	return at
}

// end kills what was built, and the starter, and reaps all: the starter adopts those whose
// parent is dead.
func (t *tracer) end(starter *task, built []*process) error {
	var errs []error
	tids := make([]int, 0, len(t.tasks))
	for tid := range t.tasks {
		if starter == nil || tid != starter.tid {
			tids = append(tids, tid)
		}
	}
	for i := len(built) - 1; i > 0; i-- {
		if err := syscall.Kill(built[i].pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	if len(built) > 0 {
		errs = append(errs, t.kill(built[0].pid, tids...))
	}
	if starter == nil {
		return errors.Join(errs...)
	}
	if starter.stopped {
		b := (&process{tracer: t, pid: starter.tid, main: starter}).batch()
		for range built {
			b.try(syscall.SYS_WAIT4, ^uint64(0), 0, waitAll, 0)
		}
		_, err := b.run()
		errs = append(errs, err)
	}
	return errors.Join(append(errs, t.kill(starter.tid))...)
}

const waitAll = 0x40000000 // __WALL

func ownPID() uint64 { return uint64(os.Getpid()) }
