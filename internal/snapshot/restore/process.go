package restore

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A process is one that is held, with the task in which its calls are made. It is used
// from the tracer's OS thread only.
type process struct {
	*tracer
	pid    int
	main   *task
	placed []byte // data for the next Run

	unmake  []func() error // what was made for it that would stay when it ends
	release []func() error // what vOS holds until it has it
}

var _ remote.Process = (*process)(nil)

// PID implements remote.Process.
func (p *process) PID() int { return p.pid }

// Run implements remote.Process.
func (p *process) Run(calls []tracee.Call) ([]uint64, error) { return p.runIn(p.main, calls) }

// runIn is Run in one of the threads.
func (p *process) runIn(k *task, calls []tracee.Call) ([]uint64, error) {
	data := p.placed
	p.placed = p.placed[:0]
	return p.run(p.pid, k, calls, data)
}

// Place implements remote.Process.
func (p *process) Place(data []byte) (uint64, error) {
	g := &p.main.arena
	at := (len(p.placed) + 15) &^ 15
	if uint64(at)+uint64(len(data)) > g.size {
		return 0, fmt.Errorf("place %d bytes in process %d: %w", len(data), p.pid, remote.ErrNoRoom)
	}
	p.placed = append(p.placed, make([]byte, at-len(p.placed))...)
	p.placed = append(p.placed, data...)
	return g.data + uint64(at), nil
}

// Read implements remote.Process.
func (p *process) Read(address uint64, b []byte) error {
	return kernel.ReadMemory(p.pid, b, []kernel.RemoteRange{{Address: address, Length: uint64(len(b))}})
}
