// Package kernel holds the raw Linux calls that vOS needs and the standard
// library does not offer: ptrace and waiting for tracees, the scheduling of
// the tracing thread, another process's memory, page maps, pid descriptors.
//
// It adds nothing of its own: a call takes and returns what the kernel does,
// as Go values, and an error is the errno, wrapped with what was asked. It is
// the only package that imports unsafe and golang.org/x/sys/unix.
//
// Calls on a tracee (ptrace.go, wait.go) must come from the one OS thread that
// seized it. They use RawSyscall, so that the Go scheduler neither hands the
// thread's processor away nor takes it back within a window in which somebody
// else's program is stopped.
package kernel
