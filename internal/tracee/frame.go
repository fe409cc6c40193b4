package tracee

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// Layout of the signal frame that rt_sigreturn loads: struct rt_sigframe
// without its first word (the return address), from struct ucontext and struct
// sigcontext_64 in the kernel's arch/x86/include/uapi/asm/sigcontext.h.
const (
	ucontextFlags   = 0
	ucontextStack   = 16  // stack_t: ss_sp, ss_flags, ss_size
	ucontextContext = 40  // struct sigcontext_64
	ucontextMask    = 296 // sigset_t
	ucontextBytes   = 304

	contextRAX       = ucontextContext + 13*8
	contextRIP       = ucontextContext + 16*8
	contextSelectors = ucontextContext + 18*8 // cs, gs, fs, ss: 16 bits each
	contextFPState   = ucontextContext + 23*8 // pointer to the extended state

	hasXState       = 0x1 // UC_FP_XSTATE
	hasSS           = 0x2 // UC_SIGCONTEXT_SS
	restoreSSStrict = 0x4 // UC_STRICT_RESTORE_SS

	// A mode that sigaltstack(2) rejects: rt_sigreturn ignores the error and
	// leaves the thread's alternate stack, which nobody can read from outside,
	// as it is.
	invalidStackMode = 0x7f
)

// Layout of the extended state in a signal frame: struct _fpstate_64 and
// struct _fpx_sw_bytes, followed by a second magic word.
const (
	xstateAlign    = 64
	xstateSoftware = 464 // struct _fpx_sw_bytes within the legacy area
	xstateMagic1   = 0x46505853
	xstateMagic2   = 0x46505845
	xstateLegacy   = 512
	xstateHeader   = 64

	// The two components of AMX. The register set that ptrace reads has room
	// for them wherever the CPU has them; a signal frame may have it only in a
	// program that asked for AMX (arch_prctl ARCH_REQ_XCOMP_PERM). All CPUs
	// with AMX end the state before them with PKRU, at this offset.
	xstateAMX       = 1<<17 | 1<<18
	xstateBeforeAMX = 2696
)

// frameState returns that part of an extended state that belongs into a signal
// frame, and its features (XCR0, which ptrace puts into the software words).
func frameState(xstate []byte) (state []byte, features uint64) {
	features = binary.LittleEndian.Uint64(xstate[xstateSoftware:])
	inUse := binary.LittleEndian.Uint64(xstate[xstateLegacy:])
	if features&xstateAMX != 0 && inUse&xstateAMX == 0 && len(xstate) > xstateBeforeAMX {
		return xstate[:xstateBeforeAMX], features &^ xstateAMX
	}
	return xstate, features
}

// freshXState returns a thread's extended state with which a function may begin:
// no x87 registers in use, exceptions masked, its protection keys as they are.
func freshXState(xstate []byte) []byte {
	const (
		controlWord, mxcsr = 0, 24
		protectionKeys     = 1 << 9
	)
	fresh := slices.Clone(xstate)
	binary.LittleEndian.PutUint16(fresh[controlWord:], 0x37f)
	binary.LittleEndian.PutUint32(fresh[mxcsr:], 0x1f80)
	inUse := binary.LittleEndian.Uint64(fresh[xstateLegacy:])
	binary.LittleEndian.PutUint64(fresh[xstateLegacy:], inUse&protectionKeys)
	return fresh
}

// A home is the state that brings a thread back to where it was.
type home struct {
	regs   kernel.Registers // as homeRegisters returns them
	mask   uint64
	xstate []byte // XSAVE standard format, as ptrace reads it
}

// encodeContext lays out a signal frame that loads registers, signal mask and
// the extended state that stands at an address.
func encodeContext(r *kernel.Registers, mask, xstateAt uint64) [ucontextBytes]byte {
	var frame [ucontextBytes]byte
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(frame[at:], v) }

	put(ucontextFlags, hasXState|hasSS|restoreSSStrict)
	binary.LittleEndian.PutUint32(frame[ucontextStack+8:], invalidStackMode)
	for i, v := range [...]uint64{
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
		r.RDI, r.RSI, r.RBP, r.RBX, r.RDX, r.RAX, r.RCX, r.RSP, r.RIP, r.Flags,
	} {
		put(ucontextContext+8*i, v)
	}
	binary.LittleEndian.PutUint16(frame[contextSelectors:], uint16(r.CS))
	binary.LittleEndian.PutUint16(frame[contextSelectors+6:], uint16(r.SS))
	put(contextFPState, xstateAt)
	put(ucontextMask, mask)
	return frame
}

// encodeXState turns the extended state that ptrace reads into that of a signal
// frame: the same, with a description in its software words and behind it.
func encodeXState(xstate []byte) ([]byte, error) {
	if len(xstate) < xstateLegacy+xstateHeader {
		return nil, fmt.Errorf("encode extended state: %d bytes are less than its header", len(xstate))
	}
	state, features := frameState(xstate)
	x := make([]byte, len(state)+4)
	copy(x, state)
	software := x[xstateSoftware:xstateLegacy]
	clear(software)
	binary.LittleEndian.PutUint32(software[0:], xstateMagic1)
	binary.LittleEndian.PutUint32(software[4:], uint32(len(x)))
	binary.LittleEndian.PutUint64(software[8:], features)
	binary.LittleEndian.PutUint32(software[16:], uint32(len(state)))
	binary.LittleEndian.PutUint32(x[len(state):], xstateMagic2)
	return x, nil
}
