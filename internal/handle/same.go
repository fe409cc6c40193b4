package handle

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// SameDescription reports whether two descriptors lead to one open file
// description: with one offset and one set of status flags. It needs the right to
// trace both processes; a descriptor that is not open wraps ErrClosed. Of a process
// whose main thread has ended the id of a living one must be given.
func SameDescription(pidA, fdA, pidB, fdB int) (bool, error) {
	order, err := kernel.CompareFiles(pidA, fdA, pidB, fdB)
	if err != nil {
		return false, compareFailed(err)
	}
	return order == 0, nil
}

// Registered reports whether descriptor fd of a process is what an epoll instance
// of it has registered under that number: the number may have been closed, and
// given to another file, while a duplicate kept the first one registered. Of
// several descriptions under one number any will do.
func Registered(pid, epoll, fd int) (bool, error) {
	for nth := range tries {
		order, err := kernel.CompareRegistered(pid, fd, pid, epoll, fd, nth)
		switch {
		case errors.Is(err, syscall.ENOENT):
			return false, nil
		case err != nil:
			return false, compareFailed(err)
		case order == 0:
			return true, nil
		}
	}
	return false, nil
}

// Apart returns the threads of a process that have descriptors of their own, by
// unshare(2) or clone(2) without CLONE_FILES: what the process's numbers mean does
// not hold for them.
func Apart(p *procfs.Process) ([]int, error) {
	main, err := p.LivingThread()
	if err != nil {
		return nil, err
	}
	tids, err := p.Threads()
	if err != nil {
		return nil, err
	}
	var apart []int
	for _, tid := range tids {
		if tid == main {
			continue
		}
		order, err := kernel.CompareTables(main, tid)
		switch {
		case errors.Is(err, syscall.ESRCH): // it has ended
		case err != nil:
			return nil, err
		case order != 0:
			if stat, err := p.ThreadStat(tid); err == nil && !stat.Zombie() {
				apart = append(apart, tid)
			}
		}
	}
	return apart, nil
}

func compareFailed(err error) error {
	if errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
