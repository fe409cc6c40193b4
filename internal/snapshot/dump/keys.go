package dump

import (
	"errors"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Of keyctl(2) and linux/keyctl.h.
const (
	keyctl         = 250
	getKeyring     = 0
	threadKeyring  = ^uint64(0)
	processKeyring = ^uint64(1)
)

// keys refuses keys that are the process's own, or its main thread's, which is borrowed:
// they end with it, and what they hold is for the kernel to know. A process with seccomp
// filters is not asked, as they may end whoever asks.
func (c *commit) keys(s *tracee.Session, b *image.Process) error {
	status, err := c.status(b.PID)
	if err != nil || status.Seccomp != procfs.SeccompDisabled {
		return err
	}
	_, results, err := s.Ask(0, func(uint64) []tracee.Call {
		return []tracee.Call{call(keyctl, getKeyring, threadKeyring, 0), call(keyctl, getKeyring, processKeyring, 0)}
	})
	if err != nil {
		return err
	}
	for _, result := range results {
		err := (tracee.Call{}).Err(result)
		if errors.Is(err, syscall.ENOKEY) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
			continue
		}
		return refused(codeKeys, processSubject(b.PID), "it has a keyring of its own, whose keys are not kept", "let it use the keyring of its session or user")
	}
	return nil
}
