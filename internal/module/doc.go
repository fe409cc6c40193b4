// Package module knows the modules of a running process: it lists them, compares
// them with their files, and makes them again what their files say.
//
// # What is compared
//
// A module is an ELF object whose segments are mapped as its program headers
// ask. Its file is the mapped inode, so one that was deleted or replaced on disk
// is still compared with what the process runs.
//
//   - Constant segments (text, read-only data): every byte. A page that the
//     kernel shows as the file's own needs no look; one that has become the
//     process's private copy does. --full looks at all pages that are present.
//   - Relocated words: RELATIVE ones in the RELRO part must be load address +
//     addend; imports (GLOB_DAT, JUMP_SLOT, and R_X86_64_64 in RELRO) must point
//     at the symbol in a module that defines it, or, where binding is lazy, at
//     the module's own stub.
//   - The vDSO has no file; it is compared with the one that this process got
//     from the same kernel.
//
// Differences are told apart by where they come from: corruption, a lone int3 on
// an instruction (a uprobe or a debugger set it), a relocation of DT_TEXTREL.
//
// # How a module is refreshed
//
// All is looked at and planned while the program runs (plan.go). The plan is a
// value; it is printed by --dry-run and carried out by Commit, in one session
// of package tracee for each process:
//
//   - private pages that differ are dropped by madvise from one borrowed thread,
//     and the next access finds the file's page. Threads may run in that very
//     page: what they meet is the old byte or the right one.
//   - pages that also hold breakpoints, and words, are written.
//   - then it is compared again.
//
// Modules that the program may unload at any time (opened by dlopen), and
// programs that keep all processors busy, are healed with all threads stopped,
// after another look at what is mapped where.
//
// Nothing that was done is lost or half done if vOS dies: a page is dropped or
// not, a word is written whole, and each is right by itself.
package module
