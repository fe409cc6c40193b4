package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// peeking lets a thread of a process, which is held, set SO_PEEK_OFF of a socket for the
// time of a function.
func peeking(parts []*commit, holds []held) func(pid, fd int, f func() error) error {
	return func(pid, fd int, f func() error) error {
		i := slices.IndexFunc(parts, func(c *commit) bool { return c.Process.PID() == pid })
		var failed error
		err := holds[i].do(func(s *tracee.Session) error {
			failed = peekIn(s, fd, f)
			return nil
		})
		return errors.Join(failed, err)
	}
}

func peekIn(s *tracee.Session, fd int, f func() error) error {
	const soPeekOffset = 42
	if err := s.Borrow(); err != nil {
		return err
	}
	values := binary.LittleEndian.AppendUint32(make([]byte, 4), ^uint32(0)) // on, off
	at, err := s.Data(values)
	if err != nil {
		return err
	}
	set := func(at uint64) tracee.Call {
		return call(syscall.SYS_SETSOCKOPT, uint64(fd), syscall.SOL_SOCKET, soPeekOffset, at, 4)
	}
	err = s.Around(set(at), f, set(at+4))
	if errors.Is(err, tracee.ErrNotAtOnce) {
		err = fmt.Errorf("%w: %w", descriptor.ErrNotNow, err)
	}
	return errors.Join(err, s.GiveBack())
}
