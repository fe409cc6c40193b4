// Package dump is the side of a snapshot that looks at running programs: what speaks
// against keeping one, and its state, written to an image.
//
// Look reads all that can be read while the program runs, and stops nothing: it says
// what stands in the way, and how large the image would be. Plan.Commit copies memory
// while the program runs, with the kernel noting what is written (tracker). Then it stops
// all threads, looks again at what may have changed, and writes down registers, signals,
// timers and memory; one thread after the other makes the few system calls that only
// the thread itself can make, with its way home prepared (package tracee). So a vos
// that is killed at any instant leaves the program running, and what it had written is
// no image: that comes to be at its commit. Only then is the program ended, if it is
// to be.
//
// # System calls that the stop interrupts
//
// A thread of the image makes such a call again when it goes on. One with a relative
// limit of time goes on with the time that was left of it where that can be known
// (wait.go), and otherwise waits for its whole time again. The threads of a program that
// is left running go on as after every session of vOS.
package dump
