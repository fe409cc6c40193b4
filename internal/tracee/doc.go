// Package tracee stops a running process, runs system calls inside it and lets
// it go on as if nothing had been.
//
// # One session
//
// Do runs a function with a Session of one process on an OS thread of its own,
// as a tracee belongs to the thread that seized it. In the session the caller
// may StopAll threads, Borrow one thread and Call system calls in it. When the
// function returns, fails, panics or runs out of time, the session undoes what
// is undone by it (registers, signal mask, the arena, the scheduling policy)
// and detaches every thread. The OS thread then ends, which makes the kernel
// detach whatever might be left.
//
// # Death of the tracer
//
// vOS may be killed between any two instructions, and the program must not
// notice. What the kernel does when a tracer dies is to let its tracees run on
// from the registers that they have. So:
//
//   - A thread is only ever given registers from which it comes home by
//     itself. Before that, a chain is written to dead memory of the process: a
//     return address and a signal frame that holds all of the thread's state.
//     The registers then point at a `syscall; ret` that the process has mapped
//     already. Untraced, the thread runs that system call, returns into an
//     rt_sigreturn that the process also has, and with that one system call is
//     back where it was, with its registers, vector state and signal mask. One
//     PTRACE_SETREGS is the whole step from "untouched" to "on the way home".
//   - The living tracer sees the system call's result by PTRACE_SYSCALL stops,
//     whose arming ends with the tracer. A single step would leave the trap
//     flag behind, an int3 would leave a trap: neither is used.
//   - The signal mask is set after the registers and put back before them, so
//     that no death leaves a thread with its signals blocked.
//   - Dead memory is the lowest end of the main thread's stack mapping (see
//     scratch.go). Small stacks (goroutines, coroutines) are not written to.
//   - Several calls are a chain of such frames (see chain.go): no code is put
//     into the process, and nothing is mapped.
//   - Several threads may be on their way at the same time (AskEach), each with its
//     way home in a lane above the first; the seal of that says how far they reach.
//
// # Functions
//
// Some things only code of the program can do: keep a module open, tell the
// unwinder of a table. BorrowForCall borrows a thread in which a C function may be
// called, CallFunction calls it (function.go).
//
//   - The thread must hold no lock that the function needs, and be in the middle
//     of nothing that it works on (place.go): it waits in the C library for
//     something from outside, or runs code that is neither the loader's nor an
//     allocator's, the unwinder's or the C library's; no signal handler is on its
//     stack; and the loader's list is whole.
//   - The function has a stack of its own, mapped before and unmapped behind it by
//     the thread itself. Its return leads on to frames as those of system calls, so
//     that the thread comes home from within it without a tracer, too.
//   - A function is never broken off. Where it takes longer than the stop timeout
//     its thread is let go as it is; until it is home the memory of its way home
//     is marked, and other sessions are refused.
//   - It may change all registers: of a living tracer the thread gets its extended
//     state back with the others. Its errno is kept.
//
// # System calls that a stop interrupts
//
// A stop makes blocking calls return. Those that the kernel marks restartable
// (-ERESTART*) are restarted by it when the thread goes on from a stop with the
// registers unchanged. Some return a bare -EINTR (epoll_wait, semop, a receive
// with a timeout, …), which an unmodified program would see. These are turned
// into -ERESTARTNOHAND: the kernel itself then decides, at the very moment the
// thread goes on, between EINTR, where a signal handler runs, and a restart,
// where none does. A restarted call waits for its whole time again, but for
// those that restart_syscall goes on with (nanosleep, poll, futex). If the tracer
// is killed in the few microseconds between a thread's stop and this repair, the
// thread sees its EINTR; nothing can prevent that.
//
// Registers are put back in a stop that lies within the kernel's signal
// handling (PTRACE_EVENT_STOP or a signal's delivery), where it looks at
// -ERESTART* again, and never in a system call stop, where it does not.
//
// # Order
//
// Seizing stops nobody and comes first; then interrupt, collect, look at
// /proc/PID/task again for threads born meanwhile, until none is new. Everything
// that allocates or reads much is done before the first interrupt. The tracing
// thread runs with SCHED_FIFO from the first interrupt to the last resume.
package tracee
