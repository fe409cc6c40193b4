package dump

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// endAll ends all processes, which are held, the root first. Of several the root's main
// thread is let make the calls, where it may: it then makes all of them, itself last, also
// if vOS dies meanwhile.
func endAll(processes []image.Process, root *tracee.Session) error {
	if len(processes) > 1 {
		endTogether(root, processes) // what it could not do is done below
	}
	var errs []error
	for i := range processes {
		pid := processes[i].PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && (len(processes) == 1 || !errors.Is(err, syscall.ESRCH)) {
			errs = append(errs, fmt.Errorf("end process %d behind its checkpoint: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// endTogether lets the main thread end all processes. Where these are more than can be
// ended at once it is given up.
func endTogether(s *tracee.Session, processes []image.Process) {
	if s.Borrow() != nil {
		return
	}
	if most, _ := s.MaxAsk(); len(processes) > most {
		return
	}
	var calls []tracee.Call
	for i := range processes {
		calls = append(calls, call(syscall.SYS_KILL, uint64(processes[i].PID), uint64(syscall.SIGKILL)))
	}
	calls = append(calls[1:], calls[0])
	// The end of the process shows as an error.
	_, _, _ = s.Ask(0, func(uint64) []tracee.Call { return calls })
}

// awaitEnd waits for a moment until processes that were ended have let go of what they
// had: vos is not their parent, which could wait for them.
func (k *whole) awaitEnd() {
	const patience = 5 * time.Second
	const often = 100 * time.Microsecond
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(often) {
		if !slices.ContainsFunc(k.members, func(m *member) bool {
			stat, err := m.Process.Stat()
			return err == nil && (!stat.Zombie() || stat.Threads > 1)
		}) {
			return
		}
	}
}
