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
// process. It is an advisory lock on the directory /proc/PID.
func (p *Process) Lock(ctx context.Context) error {
	folder, err := p.dir.Open(".", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return p.failed("lock", err)
	}
	for {
		ok, err := kernel.TryLock(folder)
		if ok {
			p.lock = folder
			return nil
		}
		if err != nil {
			return p.failed("lock", errors.Join(err, folder.Close()))
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("lock process %d, which another vos works on: %w", p.pid, ctx.Err())
			return errors.Join(err, folder.Close())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
