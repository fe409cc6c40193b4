// Package image is the state of programs at rest: what a checkpoint wrote down and a
// restore builds again, as plain values, and the directory in which they are kept.
//
// The values are the contract between the side that looks at running processes
// (snapshot/dump) and the side that builds them (snapshot/restore): neither imports
// the other, and nothing here knows of /proc or ptrace. All numbers that the kernel
// defines (flags, signals, families) are kept as the kernel's own, for x86-64.
//
// # The tree of values
//
//	Image
//	├─ Machine                       what it ran on: kernel, CPU, clocks
//	├─ Process …                     parents before their children
//	│  ├─ Thread …                   registers, extended state, signals
//	│  ├─ Mapping … → Object or path memory, with the runs of pages that are kept
//	│  └─ Descriptor … → File        numbers, which lead to open files
//	├─ File …                        open file descriptions, shared by descriptors
//	└─ Object …                      memory that several mappings or files share
//
// File and Object are referred to by their place in the image's slices.
package image
