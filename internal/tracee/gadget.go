package tracee

import (
	"bytes"
	"encoding/binary"
)

// Gadgets are instructions that the process has mapped already and by which a
// thread makes a system call and comes home, with nothing injected.
type Gadgets struct {
	Syscall   uint64 // syscall; registers that the call may spoil cleared; ret
	Sigreturn uint64 // mov $15, %eax; syscall — or 0
	PopRAX    uint64 // pop %rax; ret: with Syscall it does for Sigreturn
	Store     uint64 // mov %rax, StoreAt(%rbx); pop %rbx; ret — or 0
	StoreAt   int8

	// With these a thread makes several calls without an rt_sigreturn in between: see
	// Session.Ask.
	Plain                  uint64 // syscall; ret: no register but those of the result changes
	PopRDI, PopRSI, PopRDX uint64 // pop; ret
}

// Sufficient reports whether one can call and come home with them.
func (g Gadgets) Sufficient() bool { return g.Syscall != 0 && (g.Sigreturn != 0 || g.PopRAX != 0) }

// Complete reports whether calls can be chained, too.
func (g Gadgets) Complete() bool { return g.Sufficient() && g.Store != 0 }

// Pops reports whether all registers that differ from call to call can be popped.
func (g Gadgets) Pops() bool {
	return g.Complete() && g.Plain != 0 && g.PopRAX != 0 && g.PopRDI != 0 && g.PopRSI != 0 && g.PopRDX != 0
}

const sysRTSigreturn = 15

// tail returns what must stand on the stack, from the word that a ret pops, so
// that rt_sigreturn is entered with the stack pointer behind it, at the signal
// frame.
func (g Gadgets) tail() []byte {
	if g.Sigreturn != 0 {
		return binary.LittleEndian.AppendUint64(nil, g.Sigreturn)
	}
	words := binary.LittleEndian.AppendUint64(nil, g.PopRAX)
	words = binary.LittleEndian.AppendUint64(words, sysRTSigreturn)
	return binary.LittleEndian.AppendUint64(words, g.Syscall)
}

var (
	sigreturnLong  = []byte{0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05} // mov $15, %rax; syscall
	sigreturnShort = []byte{0xb8, 15, 0, 0, 0, 0x0f, 0x05}             // mov $15, %eax; syscall
	syscallBytes   = []byte{0x0f, 0x05}
	storeNear      = []byte{0x48, 0x89, 0x03, 0x5b, 0xc3} // mov %rax, (%rbx); pop %rbx; ret
	storeBeside    = []byte{0x48, 0x89, 0x43}             // mov %rax, disp8(%rbx)
	popRBXReturn   = []byte{popRBX, 0xc3}
)

// Instructions of one byte.
const (
	popRAX = 0x58
	popRBX = 0x5b
	popRDX = 0x5a
	popRDI = 0x5f
	popRSI = 0x5e
)

// Add completes g with what executable code, mapped at address, has to offer.
// Bytes are taken at any offset: an instruction need not begin where the
// compiler meant one to.
func (g *Gadgets) Add(code []byte, address uint64) {
	if g.Sigreturn == 0 {
		if i := bytes.Index(code, sigreturnLong); i >= 0 {
			g.Sigreturn = address + uint64(i)
		} else if i := bytes.Index(code, sigreturnShort); i >= 0 {
			g.Sigreturn = address + uint64(i)
		}
	}
	g.addReturning(code, address)
	for at := 0; g.Syscall == 0; {
		i := bytes.Index(code[at:], syscallBytes)
		if i < 0 {
			break
		}
		at += i + len(syscallBytes)
		if returnsAtOnce(code[at:]) {
			g.Syscall = address + uint64(at-len(syscallBytes))
		}
	}
}

// addReturning looks at what comes before each return instruction.
func (g *Gadgets) addReturning(code []byte, address uint64) {
	const ret = 0xc3
	for at := 0; g.Store == 0 || !g.Pops(); {
		i := bytes.IndexByte(code[at:], ret)
		if i < 0 {
			return
		}
		at += i + 1
		if at < 3 {
			continue
		}
		found := func(gadget *uint64, bytes int) {
			if *gadget == 0 {
				*gadget = address + uint64(at-bytes)
			}
		}
		switch code[at-2] {
		case popRAX:
			found(&g.PopRAX, 2)
		case popRDI:
			found(&g.PopRDI, 2)
		case popRSI:
			found(&g.PopRSI, 2)
		case popRDX:
			found(&g.PopRDX, 2)
		case syscallBytes[1]:
			if code[at-3] == syscallBytes[0] {
				found(&g.Plain, 3)
			}
		case popRBX:
			if g.Store == 0 {
				g.addStore(code[:at], address+uint64(at))
			}
		}
	}
}

// addStore looks whether code ends as the usual function does that fills in a field.
func (g *Gadgets) addStore(code []byte, end uint64) {
	const besideBytes = 6 // mov with its displacement; pop %rbx; ret
	if bytes.HasSuffix(code, storeNear) {
		g.Store, g.StoreAt = end-uint64(len(storeNear)), 0
	} else if bytes.HasSuffix(code, popRBXReturn) && len(code) >= besideBytes && bytes.HasPrefix(code[len(code)-besideBytes:], storeBeside) {
		g.Store, g.StoreAt = end-besideBytes, int8(code[len(code)-besideBytes+len(storeBeside)])
	}
}

// returnsAtOnce reports whether code does nothing but clear general registers
// and return, as the vDSO does after its system calls: `xor %edx, %edx; … ret`.
// Such registers need not be kept, as the signal frame holds them all.
func returnsAtOnce(code []byte) bool {
	for range 12 {
		extended := len(code) > 2 && code[0] == 0x45 // REX.RB: both operands r8 to r15
		if extended {
			code = code[1:]
		}
		switch {
		case len(code) > 0 && code[0] == 0xc3 && !extended:
			return true
		case len(code) > 1 && code[0] == 0x31 && clearsRegister(code[1], extended):
			code = code[2:]
		default:
			return false
		}
	}
	return false
}

// clearsRegister reports whether the ModRM byte of an xor names one register
// twice: not the stack pointer, and not rax, which holds the result.
func clearsRegister(modrm byte, extended bool) bool {
	reg, rm := modrm>>3&7, modrm&7
	return modrm>>6 == 3 && reg == rm && (extended || reg != 4 && reg != 0)
}
