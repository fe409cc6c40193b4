package procfs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// Lock waits until no other holds the process locked, and locks it: among those
// that ask, one at a time changes it. Close ends it, and so does the end of this
// process. It is an advisory lock on /proc/PID/mem, which nobody can open who may
// not trace the process.
func (p *Process) Lock(ctx context.Context) error {
	memory, err := p.openMemoryFile("mem", syscall.O_RDONLY)
	if err != nil {
		return p.failed("lock", err)
	}
	for {
		ok, err := kernel.TryLock(memory)
		if ok {
			p.lock = memory
			return nil
		}
		if err != nil {
			return p.failed("lock", errors.Join(err, memory.Close()))
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("lock process %d, which another vos works on: %w", p.pid, ctx.Err())
			return errors.Join(err, memory.Close())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
