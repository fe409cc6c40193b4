package criu

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Components of the extended state, as bits of XCR0.
const (
	xX87 = iota
	xSSE
	xYMM
	xBoundRegs
	xBoundCSR
	xOpMask
	xZMMUpper
	xHi16ZMM
	_
	xPKRU    = 9
	xTileCfg = 17
	xTile    = 18
)

// A component is where a part of the state stands in its standard form, which depends
// on the maker of the CPU (CPUID leaf 13).
type component struct{ offset, size int }

var layouts = []map[int]component{
	{ // Intel
		xYMM: {576, 256}, xBoundRegs: {960, 64}, xBoundCSR: {1024, 64}, xOpMask: {1088, 64}, xZMMUpper: {1152, 512}, xHi16ZMM: {1664, 1024},
		xPKRU: {2688, 8}, xTileCfg: {2752, 64}, xTile: {2816, 8192},
	},
	{xYMM: {576, 256}, xOpMask: {832, 64}, xZMMUpper: {896, 512}, xHi16ZMM: {1408, 1024}, xPKRU: {2432, 8}}, // AMD
	{xYMM: {576, 256}, xPKRU: {832, 8}}, // AMD, without AVX-512
}

const (
	legacySize = 512 // what FXSAVE writes
	headEnd    = 576 // of the header behind it
)

// layoutOf returns where the components stand in a state of so many bytes, with so many
// components: the layout that ends there. It is nil where none does.
func layoutOf(size int, features uint64) map[int]component {
	for _, l := range layouts {
		end, known := headEnd, true
		for rest := features &^ (1<<xX87 | 1<<xSSE); rest != 0; rest &= rest - 1 {
			c, ok := l[bits.TrailingZeros64(rest)]
			known = known && ok
			end = max(end, c.offset+c.size)
		}
		if known && end == size {
			return l
		}
	}
	return nil
}

// extended turns an extended state, as NT_X86_XSTATE has it, into CRIU's message.
func extended(state []byte, features uint64) (to fpu, err error) {
	if len(state) < headEnd {
		return to, fmt.Errorf("its extended state has %d bytes", len(state))
	}
	short := func(at int) uint32 { return uint32(binary.LittleEndian.Uint16(state[at:])) }
	to = fpu{
		Control: short(0), Status: short(2), Tag: short(4), Opcode: short(6),
		IP: binary.LittleEndian.Uint64(state[8:]), Data: binary.LittleEndian.Uint64(state[16:]),
		MXCSR: binary.LittleEndian.Uint32(state[24:]), MXCSRMask: binary.LittleEndian.Uint32(state[28:]),
		ST: words32(state[32:160]), XMM: words32(state[160:416]),
	}
	used := binary.LittleEndian.Uint64(state[legacySize:])
	to.XSave = &xsave{Components: used}
	layout := layoutOf(len(state), features)
	const expressed = 1<<xX87 | 1<<xSSE | 1<<xYMM | 1<<xBoundRegs | 1<<xBoundCSR | 1<<xOpMask | 1<<xZMMUpper | 1<<xHi16ZMM | 1<<xPKRU
	if other := used &^ expressed; other != 0 {
		return to, fmt.Errorf("it uses registers (components %#x of the extended state) that CRIU's format does not have", other)
	}
	if layout == nil && used&^(1<<xX87|1<<xSSE) != 0 {
		return to, fmt.Errorf("where the components %#x of its extended state of %d bytes stand is not known for this CPU", features, len(state))
	}
	part := func(n int) []byte {
		c, ok := layout[n]
		if !ok || features&(1<<n) == 0 {
			return nil
		}
		return state[c.offset : c.offset+c.size]
	}
	s := to.XSave
	s.YMM, s.BoundRegs, s.BoundCSR, s.OpMask = words32(part(xYMM)), words64(part(xBoundRegs)), words64(part(xBoundCSR)), words64(part(xOpMask))
	s.ZMMUpper, s.Hi16ZMM, s.PKRU = words64(part(xZMMUpper)), words64(part(xHi16ZMM)), words32(part(xPKRU))
	return to, nil
}

func words32(b []byte) []uint32 {
	words := make([]uint32, len(b)/4)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return words
}

func words64(b []byte) []uint64 {
	words := make([]uint64, len(b)/8)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return words
}
