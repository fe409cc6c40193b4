// Package restart gives a running program fresh memory, with its state: every mapping
// that is the program's own (heap, stacks of threads, what it has from mmap) is made
// anew in place, page by page on new memory, without pages of nothing but zeroes. The
// process stays, with its id, parent, threads, descriptors and connections.
//
// # Order
//
// Look finds out which mappings can be made anew, and touches nothing. The others are
// left as they are, with the reason: files, which are fresh as long as they are clean,
// memory that is shared, locked or watched, the stack of the main thread.
//
// Commit takes rounds, each a session of its own. In a round all threads stop; a fresh
// mapping of the same size, protection and advice is made where nothing is, the
// program's pages are copied into it, and mremap puts it where the old one was. A
// round copies no more than so many bytes, so that the program is never stopped for
// long; between two it runs for as long as it was stopped.
//
// # What may fail
//
// Nothing is taken from the program before its copy is whole, and mremap puts one in
// the other's place by one call. The calls are made alone (tracee.RunAlone): if vOS is
// killed meanwhile they are all made before any other thread goes on, so none sees
// memory that was copied and then written to. What a killed vOS leaves is fresh memory
// that was not put in place, of a round's size at most, and an empty reservation.
package restart
