// Package remote is how both sides of a snapshot make system calls in a process that
// they hold: the side that looks (a tracee.Session of a running program) and the side
// that builds (a process that is not the program yet).
package remote

import (
	"errors"

	"github.com/virtualizing-os/vos/internal/tracee"
)

// ErrNoRoom is wrapped where a Process can't place more data before the next Run.
var ErrNoRoom = errors.New("no more room for data of system calls")

// A Process is one in which system calls can be made while it is held.
type Process interface {
	// PID is the process's id in this pid namespace.
	PID() int

	// Run makes system calls in order, whatever they return, and returns their
	// results (see tracee.Call.Err). There may be any number of them.
	Run(calls []tracee.Call) ([]uint64, error)

	// Place puts bytes where the system calls of the next Run can read and write
	// them, and returns their address, aligned to 16 bytes. What was placed holds
	// until the end of the Run after it. ErrNoRoom is wrapped where there is no more
	// room: Run what there is first.
	Place(data []byte) (uint64, error)

	// Read reads memory of the process: after a Run, what its calls wrote to what
	// was placed.
	Read(address uint64, b []byte) error
}
