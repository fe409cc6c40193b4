// Package criu writes images in the format of CRIU (criu.org), so that its tools (crit,
// go-criu, checkpointctl) can look at what vos has kept.
//
// CRIU's image is a directory of files, each a magic number followed by protobuf messages
// with their lengths, and some with raw bytes behind a message:
//
//	inventory.img, pstree.img       what there is; the processes with their threads
//	core-TID.img                    registers, extended state, signals, rights of a thread
//	ids-PID.img, fs-PID.img         which tables a process has; its directories
//	mm-PID.img                      the layout of its memory, and its mappings
//	pagemap-PID.img, pages-N.img    which pages are kept, and the pages
//	fdinfo-N.img, files.img         descriptors, and the descriptions that they lead to
//	pipes-data.img, fifo-data.img, sk-queues.img, ghost-file-N.img, remap-fpath.img,
//	memfd.img, pagemap-shmem-N.img, filelocks.img
//	                                what is in them
//
// The messages are those of CRIU 3.17 and later, written by this package itself
// (marshal): the generated code for them would make vos larger by a fifth, and every
// start of it slower. Tests read them with go-criu's generated code.
//
// What CRIU's format has no place for is a Refusal, or, where a program does not notice,
// one of the notes that Write returns.
package criu
