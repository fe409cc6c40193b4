// Package stage makes the file of a new build ready to run beside the old one
// in a process: a copy in which every relocation is done for the address where
// it will be mapped, and every reference of the new code to shared data or to a
// function that both builds have leads to the old build. It needs no loader: a
// few mmap calls of the copy, and the code can run. No constructor does.
//
// It works on bytes alone. What only the process knows, the values of imports,
// comes from the caller. The copy stays an ELF file with the segments of the
// original, so that all that reads modules reads it as well. The writable segment
// is moved to the end of the file and followed by zeros, as its last page must not
// hold what followed it in the original.
package stage
