// Package vin is what vOS leaves inside a program for one module that it
// replaced: machine code and a table, the interceptor. It is bytes in and bytes
// out: who maps them and writes them into a process is not its business.
//
// # What happens at a call
//
// A redirected function of the original build begins with a veneer, a jump to
// its stub. The stub takes the function's entry from the table of the current
// generation, which one word, the selector, holds the address of:
//
//	function:  jmp  stub                    5 bytes, the rest as it was
//	stub:      mov  selector(%rip), %r11    ─► table of generation g: one word an entry
//	           jmp  *8*i(%r11)              ─► the new build's function, or
//	trampoline: the instructions that the veneer overwrote, moved; jmp function+n
//
// A function that may not get a veneer is reached through import slots of other
// modules, which hold the address of the stub instead of the function's.
//
// Generation 0 is the original build: its table leads to the trampolines, and to
// the functions themselves where there is no veneer. So veneers and slots are
// neutral when they are installed, and one store of 8 bytes to the selector moves
// every entry to another generation at once, also if vOS dies beside it.
//
// The stub changes r11 alone: at a function's entry it holds nothing (x86-64
// psABI 3.2.3: a linker's PLT may use it, too), unlike r10, the static chain, and
// rax, the number of vector arguments. Flags and stack stay.
//
// # Order of writing
//
// A Vin is a value in vOS; its images, Table and Code, are mapped whole. Changes
// of a live one are the list that [Changes] returns, written in its order: code,
// target tables, records, counts, journal, selector. What lies behind a count is
// not there for a reader, and each count is one aligned word, so the list may be
// cut short anywhere between two of its elements. Pending is a journal of one word
// for those who change the program in several steps.
//
// # What shows
//
// Calls pass through a stub, they never return through it, so return addresses,
// longjmp and exceptions are as they were. There is no unwind table for the code:
// a profiler that interrupts a thread within a stub or trampoline sees no callers.
//
// # What may fail
//
// [Read] trusts nothing in a process: bounds, checksums and relations of all that
// it takes, and the code, which must be what the records say byte by byte. What
// doesn't hold is an error that wraps ErrCorrupt or ErrVersion; memory is
// allocated for what was read only. A function that can't be given a veneer is
// an error that wraps ErrCannotMove, ErrRange or ErrOverlap, and changes nothing.
//
// docs/format/vin-table.md describes the bytes.
package vin
