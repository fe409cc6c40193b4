// Package dso is the model of one ELF object for x86-64 Linux: an executable
// or a shared library (ET_EXEC, ET_DYN), read from its file or from the memory
// of a process that has it loaded.
//
// # One model, two forms
//
// All that the package knows of an object is addressed by object address, the
// p_vaddr space of the program headers. An image translates: in a file an
// object address becomes an offset by way of the PT_LOAD that holds it, in a
// process it becomes bias + address. Everything above the image (dynamic
// section, symbols, hash tables, relocations, notes, unwind tables) is the same
// code for both. Two things differ, and are undone on reading:
//
//   - glibc adds the bias to most pointers of .dynamic in place; musl does not,
//     and nobody does for the vDSO. A value inside [bias+start, bias+end) of
//     the loaded span is taken for an address, any other for an object address.
//   - A word that DT_RELR relocates holds its addend in a file and
//     bias + addend in memory.
//
// Section headers and .symtab exist in files only. Where they are missing,
// SectionAt derives names from the dynamic section and the segments.
//
// # What is read when
//
// Opening reads the headers, the dynamic section with its names, and the notes:
// a few system calls. Symbols, hash tables, versions, sections, functions and
// unwind tables are read when they are first asked for and kept. Relocations
// are streamed and never kept. So the io.ReaderAt must stay usable as long as
// the Object is; in memory form, what is read late is what the process has then.
//
// # Concurrency
//
// An Object doesn't change once it is open: its fields are for reading, its
// methods may be called from several goroutines at once. Slices that it hands
// out are shared; callers do not write to them.
//
// # What may fail
//
// Nothing in an object is trusted: each count, offset, size and link is checked
// against the segment that holds it, and that against the file. Loops are
// bounded by the size of what they walk, a table by its bytes in the file and
// by MaxTable, a name by maxName. What breaks a bound is an error that wraps
// one of the sentinels (ErrMalformed, ErrTruncated, ErrLimit, …) and says what
// was read where; nothing panics. What cannot be told from memory alone (the
// size of a table of imports, where there is no hash of exports) says so at its
// method.
//
// Sources: System V gABI chapters 4 and 5, x86-64 psABI, LSB core chapter 10
// (.eh_frame), glibc elf/dl-load.c, dl-lookup.c, dl-version.c and
// get-dynamic-info.h for what the loader accepts.
package dso
