// Package restore builds a process from an image.Image: the same process and thread ids,
// memory, threads in the middle of what they did, signals, timers and rights. It knows
// nothing of how the image was taken.
//
// # Order
//
//  1. Look compares the image with the machine and touches nothing.
//  2. A starter, two pages of code in a memfd, is started and traced from one locked OS
//     thread. It makes the process by clone3 with set_tid.
//  3. In a gap of the image's mappings the process maps an arena: an interpreter of
//     system calls, its table, and their data. Hundreds of calls cost one resume and one
//     stop, so that all logic stays here. All else is unmapped.
//  4. The process makes the mappings; the files and shared memory are opened by vOS,
//     checked, and pulled by pidfd_getfd. vOS writes the pages from outside.
//  5. The process takes on what it is: layout and executable, directories, signals,
//     limits. It makes its threads, by set_tid again, and each of them sets what only it
//     can: stack of signals, rseq, scheduling, pending signals, and its rights last. Seccomp
//     filters are set before, and not asked until the process is left.
//  6. The starter ends; the process belongs to init, or to a nearer subreaper.
//  7. Threads that were in a system call with a limit of time begin it again with the
//     time that is left and are interrupted: the kernel then goes on with the rest.
//  8. The arena is unmapped by a `syscall` of the program's own code. All threads get
//     their registers, extended state and signal mask, and go.
//
// # What may fail
//
// Until the end all that is traced dies with its tracer (PTRACE_O_EXITKILL), and the
// starter with its parent: a vOS that is killed leaves nothing behind. The option is
// taken from one thread after the other when nothing is left to be done; taking it from
// the last is the point from which on the program exists. The threads are then in stops
// from which they go on by themselves, with the program's registers. Before it every
// failure, a panic too, kills and reaps what was built.
//
// The threads of several processes can't be let go by one system call. There a guard (guard.go)
// kills all of them when vOS dies, until it is ended itself: that is the point then.
//
// While it is built the process blocks all signals but SIGTRAP, by which the interpreter
// ends: what others send it waits until it runs.
package restore
