package restore

import (
	"encoding/binary"
	"fmt"

	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/x86"
)

// An arena is memory in a process in which system calls are made: the interpreter's
// code, its table, and room for what the calls read and write.
type arena struct {
	start, end  uint64 // all of it; 0 of the starter's, which ends with its program
	interpreter uint64 // address of the code
	gadget      uint64 // address of `syscall`; what follows it is not to be run
	table       uint64
	entries     int // how many calls fit into the table
	data        uint64
	size        uint64 // bytes of data
}

// An entry of the table is a system call: its number, six arguments, and the result.
const (
	entryBytes = 64
	resultAt   = 56
)

// interpreterAt appends the interpreter: it makes the calls from the entry at rbx up to
// the one at r12, and traps.
func interpreterAt(a *x86.Assembler) uint64 {
	at := a.Address()
	next, done := a.NewLabel(), a.NewLabel()
	a.Bind(next)
	a.Cmp(x86.RBX, x86.R12)
	a.Jcc(x86.AboveEqual, done)
	for i, r := range []x86.Reg{x86.RAX, x86.RDI, x86.RSI, x86.RDX, x86.R10, x86.R8, x86.R9} {
		a.Load(r, x86.At(x86.RBX, int32(8*i)))
	}
	a.Syscall()
	a.Store(x86.At(x86.RBX, resultAt), x86.RAX)
	a.AddImm(x86.RBX, entryBytes)
	a.Jmp(next)
	a.Bind(done)
	a.Raw(0xcc) // int3
	return at
}

// arenaAt lays out an arena of an address, and returns its code, too:
//
//	code      a page
//	table     arenaEntries calls
//	data      the rest
func arenaAt(address uint64) (arena, []byte, error) {
	a := x86.NewAssembler(address)
	interpreter := interpreterAt(a)
	gadget := a.Address()
	a.Syscall()
	code, err := a.Code()
	if err != nil {
		return arena{}, nil, fmt.Errorf("assemble the interpreter: %w", err)
	}
	g := arena{start: address, end: address + arenaBytes, interpreter: interpreter, table: address + pageSize, entries: arenaEntries}
	g.gadget = gadget
	g.data = g.table + arenaEntries*entryBytes
	g.size = g.end - g.data
	return g, code, nil
}

const (
	arenaBytes   = 512 << 10
	arenaEntries = 1024
)

// encodeCalls appends the table of calls.
func encodeCalls(b []byte, calls []tracee.Call) []byte {
	for _, c := range calls {
		b = binary.LittleEndian.AppendUint64(b, c.Number)
		for _, v := range c.Args {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = binary.LittleEndian.AppendUint64(b, 0)
	}
	return b
}

// appendResults appends the results that the interpreter has put into its table.
func appendResults(results []uint64, table []byte) []uint64 {
	for ; len(table) >= entryBytes; table = table[entryBytes:] {
		results = append(results, binary.LittleEndian.Uint64(table[resultAt:]))
	}
	return results
}
