package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// peeking lets a thread of the program, which is held, set SO_PEEK_OFF of a socket for the
// time of a function.
func peeking(s *tracee.Session) func(pid, fd int, f func() error) error {
	const soPeekOffset = 42
	return func(_, fd int, f func() error) error {
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
}
