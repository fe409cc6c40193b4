package descriptor

import (
	"errors"
	"fmt"
	"os"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// sameNetwork reports whether a process is in vos's network namespace.
func sameNetwork(p *procfs.Process) (same bool, err error) {
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, self.Close()) }()
	own, err := self.Namespaces()
	if err != nil {
		return false, err
	}
	other, err := p.Namespaces()
	return err == nil && own.Net == other.Net, err
}

// sockets returns what the kernel's tables tell of a unix socket now that the program
// is held. They are read once.
func (d *dumping) sockets(h *handle.Handle) (*handle.Socket, error) {
	if d.tables == nil {
		survey := handle.NewSurvey()
		defer survey.Close()
		d.tables = map[uint64]*handle.Socket{}
		for _, p := range d.processes {
			var own []handle.Handle
			for _, h := range d.handles {
				if h.PID == p.PID() && h.Kind == handle.KindSocket && h.Socket.Family == "unix" {
					own = append(own, h)
				}
			}
			if err := survey.Sockets(p, own); err != nil {
				return nil, err
			}
			for _, h := range own {
				d.tables[h.Inode] = h.Socket
			}
		}
	}
	s := d.tables[h.Inode]
	if s == nil || !s.Found {
		return nil, fmt.Errorf("the kernel tells nothing of socket %d", h.Inode)
	}
	return s, nil
}

// ownSocket reports whether a socket is the program's.
func (d *dumping) ownSocket(inode uint64) bool {
	for _, h := range d.handles {
		if h.Kind == handle.KindSocket && h.Inode == inode {
			return true
		}
	}
	return false
}
