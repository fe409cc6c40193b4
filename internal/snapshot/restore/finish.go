package restore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// restartBlock is what a system call returns whose rest restart_syscall(2) makes:
// ERESTART_RESTARTBLOCK of the kernel's linux/errno.h.
const restartBlock = ^uint64(516 - 1)

// Where a system call that restart_syscall goes on with has its time, and the clock's
// resolution of it.
var timeArgument = map[uint64]int{
	syscall.SYS_NANOSLEEP:       0,
	syscall.SYS_CLOCK_NANOSLEEP: 2,
	syscall.SYS_POLL:            2,
	syscall.SYS_FUTEX:           3,
}

// restart lets a thread begin a system call with the time that is left, and interrupts
// it, so that the kernel knows until when it takes: the thread then goes on with its
// rest, and with the registers that the program has. It returns these.
func (p *process) restart(t *image.Thread, regs kernel.Registers) (kernel.Registers, error) {
	r, k := t.Restart, p.task(t.TID)
	call := tracee.Call{Number: r.Number, Args: r.Args}
	left := max(r.Left, time.Nanosecond)
	i := timeArgument[r.Number]
	if r.Number == syscall.SYS_POLL {
		call.Args[i] = uint64((left + time.Millisecond - 1) / time.Millisecond)
	} else {
		spec := binary.LittleEndian.AppendUint64(nil, uint64(left/time.Second))
		spec = binary.LittleEndian.AppendUint64(spec, uint64(left%time.Second))
		g := &k.arena
		if err := kernel.WriteMemory(p.pid, spec, []kernel.RemoteRange{{Address: g.data, Length: uint64(len(spec))}}); err != nil {
			return regs, err
		}
		call.Args[i] = g.data
	}
	result, err := p.interrupted(k, call)
	if err != nil {
		return regs, fmt.Errorf("let thread %d go on with system call %d: %w", t.TID, r.Number, err)
	}
	regs.RIP, regs.RAX = regs.RIP+syscallBytes, result
	if result == restartBlock {
		regs.OrigRAX = r.Number
	}
	return regs, nil
}

const syscallBytes = 2

// interrupted makes a call that is interrupted as soon as it would wait.
func (p *process) interrupted(k *task, call tracee.Call) (uint64, error) {
	regs := k.base
	regs.RIP, regs.RAX = k.arena.gadget, call.Number
	regs.RDI, regs.RSI, regs.RDX = call.Args[0], call.Args[1], call.Args[2]
	regs.R10, regs.R8, regs.R9 = call.Args[3], call.Args[4], call.Args[5]
	if err := kernel.SetRegisters(k.tid, &regs); err != nil {
		return 0, err
	}
	if err := p.resume(k, kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
		return 0, err
	}
	if err := p.settle([]*task{k}); err != nil {
		return 0, err
	}
	err := kernel.GetRegisters(k.tid, &regs)
	return regs.RAX, err
}

// gadget finds a `syscall` instruction of the program: the vDSO's, or any other.
func (p *process) gadget(mappings []image.Mapping) (uint64, error) {
	instruction := []byte{0x0f, 0x05}
	for _, kinds := range [][]image.Kind{{image.VDSO}, {image.Private, image.Anonymous, image.SharedMap}} {
		for i := range mappings {
			m := &mappings[i]
			if m.Protection&syscall.PROT_EXEC == 0 || m.Protection&syscall.PROT_READ == 0 || !contains(kinds, m.Kind) {
				continue
			}
			code := make([]byte, min(m.End-m.Start, maxSearched))
			if err := p.Read(m.Start, code); err != nil {
				continue // beyond the end of its file
			}
			if at := bytes.Index(code, instruction); at >= 0 {
				return m.Start + uint64(at), nil
			}
		}
	}
	return 0, fmt.Errorf("build process %d: its code has no `syscall` by which its way in could be unmapped", p.pid)
}

const maxSearched = 4 << 20

func contains(kinds []image.Kind, kind image.Kind) bool {
	for _, k := range kinds {
		if k == kind {
			return true
		}
	}
	return false
}

// An exit is a process that is about to be left: all that is left to be done is to let
// its threads go.
type exit struct{ tasks []*task }

// prepareLeave takes the arena out, and gives all threads their state.
func (p *process) prepareLeave(of *image.Process, trap *image.Action) (*exit, error) {
	gadget, err := p.gadget(of.Mappings)
	if err != nil {
		return nil, err
	}
	registers := make([]kernel.Registers, len(of.Threads))
	tasks := make([]*task, len(of.Threads))
	for i := range of.Threads {
		t := &of.Threads[i]
		tasks[i], registers[i] = p.task(t.TID), registersOf(&t.Registers)
		if err := p.leaveSection(t, &registers[i]); err != nil {
			return nil, err
		}
		if t.Restart != nil {
			if registers[i], err = p.restart(t, registers[i]); err != nil {
				return nil, err
			}
		}
	}
	if err := p.unmapArena(gadget, trap); err != nil {
		return nil, err
	}
	if err := p.settle(tasks); err != nil {
		return nil, err
	}
	suspended := false
	for i, k := range tasks {
		t := &of.Threads[i]
		if err := kernel.SetXState(k.tid, t.XState); err != nil {
			return nil, err
		}
		if err := kernel.SetRegisters(k.tid, &registers[i]); err != nil {
			return nil, err
		}
		if err := kernel.SetSignalMask(k.tid, t.Mask); err != nil {
			return nil, err
		}
		suspended = suspended || k.suspended
	}
	if suspended {
		if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
			return nil, err
		}
	}
	return &exit{tasks}, nil
}

// leaveAll lets the processes go. Up to its end they die with vOS, and from there on they
// are the program's. Of several, the end of the guard makes the difference.
func (t *tracer) leaveAll(exits []*exit, watch *guard) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if err := t.connections.Ready(); err != nil {
		return err
	}
	for _, e := range exits {
		for _, k := range e.tasks {
			if err := kernel.SetOptions(k.tid, 0); err != nil {
				return err
			}
		}
	}
	if err := t.dismiss(watch); err != nil {
		return err
	}
	// The program is there. Where its connections can't be let go, they are so by
	// themselves in some seconds.
	_ = t.connections.Go()
	for _, e := range exits {
		t.detach(e.tasks)
	}
	return nil
}

// unmapArena lets the main thread unmap the arena by an instruction of the program.
func (p *process) unmapArena(gadget uint64, trap *image.Action) error {
	k := p.main
	if err := kernel.SetSignalMask(k.tid, allSignals); err != nil {
		return err
	}
	if trap != nil {
		g := &k.arena
		action := encodeAction(trap)
		if err := kernel.WriteMemory(p.pid, action, []kernel.RemoteRange{{Address: g.data, Length: uint64(len(action))}}); err != nil {
			return err
		}
		call := tracee.Call{Number: syscall.SYS_RT_SIGACTION, Args: [6]uint64{uint64(syscall.SIGTRAP), g.data, 0, maskBytes}}
		if _, err := p.step(k, gadget, call); err != nil {
			return fmt.Errorf("build process %d: ignore SIGTRAP: %w", p.pid, err)
		}
	}
	call := tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{k.arena.start, k.arena.end - k.arena.start}}
	if _, err := p.step(k, gadget, call); err != nil {
		return fmt.Errorf("build process %d: unmap the arena: %w", p.pid, err)
	}
	return nil
}

// detach lets the threads go. The process is the program's by now: a thread that can't
// be detached has ended, or ends.
func (t *tracer) detach(tasks []*task) {
	for _, k := range tasks {
		delete(t.tasks, k.tid)
		// A thread that another one of them has ended already is gone (ESRCH).
		_ = kernel.Detach(k.tid, 0)
	}
}
