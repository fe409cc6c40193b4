// Package intercept is what vOS leaves inside a program to know what it calls:
// machine code and tables, the interceptor. It is bytes in and bytes out: who maps
// them and writes them into a process is not its business.
//
// # What happens at a call
//
// An import slot of a module leads to a stub instead of the function. The stub
// counts, and jumps on:
//
//	module:  call *slot ─► stub: count ─► jmp function
//
// There is a stub for each function and each module that imports it, so a count
// belongs to both. Return addresses, flags, and all registers but r11 stay as they
// were; at a function's entry r11 holds nothing (x86-64 psABI 3.2.3: a linker's PLT
// may use it, too).
//
// # Counting without a loss
//
// Each processor has its own words. A stub adds to those of the processor that it
// runs on in a restartable sequence (rseq(2)): where the thread is moved, interrupted
// by a signal or by another thread within it, the kernel leads it back to its begin,
// and its last instruction is the only one that shows. No lock, no atomic
// instruction, no count lost. glibc registers each thread since 2.35; where threads
// have no registration, Config.Rseq is nil and stubs use atomic additions.
//
// # Memory
//
// Functions that allocate are called by their stub (see [Kind]), which then knows
// the block, and its size from the allocator: so what is counted when a block is
// allocated is what is counted when it is freed. Nothing else passes back through
// a stub: these functions neither return twice nor throw. operator new, which may
// throw, is left to itself where malloc found nothing.
//
// One block in Config.Interval bytes, on average, is put into a table of bounded
// size with the module that allocated it, until anybody frees it: so what a module
// holds can be told from what others freed for it.
//
// # What it is made of
//
// An Interceptor never changes once it is made: a table with records and a
// checksum, code, and words that are counted in. What a program got later gets an
// interceptor of its own. So there is no journal: it can be mapped, slots can be
// led to it one after the other and led back, and vOS may die at any instant; what
// there is to know is in the records and in the slots.
//
// The words are to be anonymous memory that a fork finds empty (MADV_WIPEONFORK):
// a child counts for itself.
//
// # What may fail
//
// [Read] trusts nothing in a process: bounds, checksum, and the code, which must be
// what the records say byte by byte. What doesn't hold is an error that wraps
// ErrCorrupt or ErrVersion. Counts are the program's memory: any number may be there.
//
// docs/format/interceptor.md describes the bytes.
package intercept
