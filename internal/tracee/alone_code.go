package tracee

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/x86"
)

// The memory of a solo (see alone.go) is a page or more of code, and data behind it:
//
//	code  run | park | home | a trampoline for each thread
//	data  state | time limit | answer | one save area for each thread | calls
//
// State is a word of 8 bytes that all threads look at.
const (
	soloWaiting   = 0 // nobody has begun: who waits too long calls it off
	soloRunning   = 1
	soloDone      = 2
	soloCalledOff = 3

	soloState  = 0
	soloLimit  = 8  // struct timespec
	soloAnswer = 24 // what mincore writes
	soloSaved  = 32
)

// A save area holds what a thread goes home with.
const (
	savedR15 = 8 * iota
	savedR14
	savedR13
	savedR12
	savedRBP
	savedR11
	savedR10
	savedR9
	savedR8
	savedRAX
	savedRCX
	savedRDX
	savedRSI
	savedRDI
	savedFlags
	savedRSP
	savedMask
	savedWay // address of the thread's trampoline
	savedBytes
)

// A call stands in memory as its number, its arguments, its result, and its target.
const (
	soloResult    = 7 * 8
	soloTarget    = 8 * 8
	soloCallBytes = 9 * 8
)

const (
	futexWaitPrivate = 128
	futexWakePrivate = 129
	// soloPatience is how long a thread waits for the one that is to run alone before
	// it calls the solo off. It does so only where the tracer has died before that one
	// had its registers.
	soloPatience = 1 // seconds
)

// A soloCode is the code with its entries.
type soloCode struct {
	bytes           []byte
	run, park, home uint64
}

// soloCodeBytes is the room for the code of so many threads, in whole pages.
func soloCodeBytes(threads int) uint64 {
	return (1<<9 + uint64(threads)*trampolineBytes + pageSize - 1) &^ (pageSize - 1)
}

const trampolineBytes = 32

// assembleSolo assembles the code for an address, with the data behind. ways are what
// the threads go home with.
func assembleSolo(code, data uint64, calls int, ways []soloWay) (soloCode, []byte, error) {
	a := x86.NewAssembler(code)
	var c soloCode
	savedAt := func(i int) uint64 { return data + soloSaved + uint64(i)*savedBytes }
	callsAt := savedAt(len(ways))

	home, park := a.NewLabel(), a.NewLabel()
	state := x86.At(x86.R12, soloState)

	// run: rbx is its save area, r12 the data.
	c.run = a.Address()
	next, kept, failed, finish := a.NewLabel(), a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.MovImm32(x86.RAX, soloWaiting)
	a.MovImm32(x86.RCX, soloRunning)
	a.LockCmpxchg(state, x86.RCX)
	a.Jcc(x86.NotEqual, home)
	a.MovImm64(x86.R14, callsAt)
	a.MovImm64(x86.R15, callsAt+uint64(calls)*soloCallBytes)
	a.Bind(next)
	a.Cmp(x86.R14, x86.R15)
	a.Jcc(x86.AboveEqual, finish)
	for i, r := range []x86.Reg{x86.RAX, x86.RDI, x86.RSI, x86.RDX, x86.R10, x86.R8, x86.R9} {
		a.Load(r, x86.At(x86.R14, int32(8*i)))
	}
	a.Syscall()
	a.Store(x86.At(x86.R14, soloResult), x86.RAX)
	a.CmpImm(x86.RAX, -4095)
	a.Jcc(x86.AboveEqual, failed)
	a.Bind(kept)
	a.AddImm(x86.R14, soloCallBytes)
	a.Jmp(next)
	// A call that has failed is made again if its target is not mapped any more.
	a.Bind(failed)
	a.Load(x86.RDI, x86.At(x86.R14, soloTarget))
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.Equal, kept)
	a.MovImm32(x86.RSI, pageSize)
	a.Lea(x86.RDX, x86.At(x86.R12, soloAnswer))
	a.MovImm32(x86.RAX, syscall.SYS_MINCORE)
	a.Syscall()
	a.CmpImm(x86.RAX, -int32(syscall.ENOMEM))
	a.Jcc(x86.Equal, next)
	a.Jmp(kept)
	a.Bind(finish)
	a.MovImm32(x86.RAX, soloDone)
	a.Xchg(state, x86.RAX)
	a.MovImm32(x86.RAX, syscall.SYS_FUTEX)
	a.Mov(x86.RDI, x86.R12)
	a.MovImm32(x86.RSI, futexWakePrivate)
	a.MovImm32(x86.RDX, 1<<31-1)
	a.Syscall()
	a.Jmp(home)

	// park: likewise.
	c.park = a.Address()
	a.Bind(park)
	a.Load(x86.R13, state)
	a.CmpImm(x86.R13, soloDone)
	a.Jcc(x86.AboveEqual, home)
	a.MovImm32(x86.RAX, syscall.SYS_FUTEX)
	a.Mov(x86.RDI, x86.R12)
	a.MovImm32(x86.RSI, futexWaitPrivate)
	a.Mov(x86.RDX, x86.R13)
	a.Lea(x86.R10, x86.At(x86.R12, soloLimit))
	a.Syscall()
	a.CmpImm(x86.RAX, -int32(syscall.ETIMEDOUT))
	a.Jcc(x86.NotEqual, park)
	a.Test(x86.R13, x86.R13)
	a.Jcc(x86.NotEqual, park)
	a.MovImm32(x86.RAX, soloWaiting)
	a.MovImm32(x86.RCX, soloCalledOff)
	a.LockCmpxchg(state, x86.RCX)
	a.Jmp(park)

	// home: nothing from the first mov on changes a flag.
	c.home = a.Address()
	a.Bind(home)
	a.Lea(x86.RSP, x86.At(x86.RBX, savedFlags))
	a.Popfq()
	a.Load(x86.RSP, x86.At(x86.RBX, savedRSP))
	a.MovImm32(x86.RAX, syscall.SYS_RT_SIGPROCMASK)
	a.MovImm32(x86.RDI, signalSetMask)
	a.Lea(x86.RSI, x86.At(x86.RBX, savedMask))
	a.MovImm32(x86.RDX, 0)
	a.MovImm32(x86.R10, 8)
	a.Syscall()
	for _, l := range []struct {
		to x86.Reg
		at int32
	}{
		{x86.R15, savedR15}, {x86.R14, savedR14}, {x86.R13, savedR13}, {x86.R12, savedR12}, {x86.RBP, savedRBP},
		{x86.R11, savedR11}, {x86.R10, savedR10}, {x86.R9, savedR9}, {x86.R8, savedR8}, {x86.RAX, savedRAX},
		{x86.RCX, savedRCX}, {x86.RDX, savedRDX}, {x86.RSI, savedRSI}, {x86.RDI, savedRDI},
	} {
		a.Load(l.to, x86.At(x86.RBX, l.at))
	}
	a.JmpMem(x86.At(x86.RBX, savedWay))

	memory := make([]byte, soloSaved+len(ways)*savedBytes)
	binary.LittleEndian.PutUint64(memory[soloLimit:], soloPatience)
	for i := range ways {
		a.Align(8)
		way := a.Address()
		a.MovImm64(x86.RBX, ways[i].regs.RBX)
		a.Raw(0xff, 0x25, 0, 0, 0, 0) // jmp *(%rip)
		a.Quad(ways[i].regs.RIP)
		ways[i].save(memory[soloSaved+i*savedBytes:], way)
	}
	var err error
	if c.bytes, err = a.Code(); err != nil {
		return c, nil, fmt.Errorf("assemble a solo: %w", err)
	}
	return c, memory, nil
}

const signalSetMask = 2 // SIG_SETMASK

// A soloWay is what a thread goes home with, if nobody leads it.
type soloWay struct {
	regs kernel.Registers
	mask uint64
}

func (w *soloWay) save(to []byte, way uint64) {
	r := &w.regs
	for at, v := range map[int]uint64{
		savedR15: r.R15, savedR14: r.R14, savedR13: r.R13, savedR12: r.R12, savedRBP: r.RBP, savedR11: r.R11, savedR10: r.R10,
		savedR9: r.R9, savedR8: r.R8, savedRAX: r.RAX, savedRCX: r.RCX, savedRDX: r.RDX, savedRSI: r.RSI, savedRDI: r.RDI,
		savedFlags: r.Flags, savedRSP: r.RSP, savedMask: w.mask, savedWay: way,
	} {
		binary.LittleEndian.PutUint64(to[at:], v)
	}
}
