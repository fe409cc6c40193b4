package restore

import (
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

// restoring is how the descriptors of an image are made again. objects are the open files
// of the image's, when there are any.
func (p *Plan) restoring(objects []*os.File) descriptor.Restoring {
	return descriptor.Restoring{
		Terminals: p.terminals,
		Inherit:   p.options.Inherit, ReadPages: p.source.ReadPages, Force: p.options.Force, Map: p.options.mapped,
		CloseConnections: p.options.CloseConnections,
		Object: func(i int) (*os.File, error) {
			if i < 0 || i >= len(objects) {
				return nil, fmt.Errorf("there is no object %d", i)
			}
			return objects[i], nil
		},
	}
}

// takeDescriptors gives the process all descriptors that it had, and no others.
func (b *process) takeDescriptors(opened *descriptor.Opened, of *image.Process) error {
	calls := b.batch()
	calls.add("close what is open", sysCloseRange, 0, 1<<32-1, 0)
	if _, err := calls.run(); err != nil {
		return err
	}
	return opened.Give(b, of)
}

// raiseDescriptors lets the process have as many descriptors as vOS may give it; its own
// limit is set later.
func (p *process) raiseDescriptors() error {
	limit, err := p.limit(syscall.RLIMIT_NOFILE)
	if err != nil {
		return err
	}
	limit.Soft = limit.Hard
	b := p.batch()
	if err := b.addLimit(syscall.RLIMIT_NOFILE, limit); err != nil {
		return err
	}
	_, err = b.run()
	return err
}
