package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NewPipe makes a pipe, pipe2(2): the end to read from, and the one to write to.
func NewPipe(flags int) (reads, writes Raw, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], flags|unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make a pipe: %w", err)
	}
	return Raw(fds[0]), Raw(fds[1]), nil
}

// PipeSize returns how many bytes a pipe takes, F_GETPIPE_SZ.
func (r Raw) PipeSize() (int, error) {
	size, err := unix.FcntlInt(uintptr(r), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return 0, fmt.Errorf("size of the pipe behind descriptor %d: %w", r, err)
	}
	return size, nil
}

// SetPipeSize sets it: at least so many bytes.
func (r Raw) SetPipeSize(size int) error {
	if _, err := unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, size); err != nil {
		return fmt.Errorf("set size of the pipe behind descriptor %d: %w", r, err)
	}
	return nil
}

// Waiting returns how many bytes are there to be read, FIONREAD: of a datagram
// socket those of the first datagram.
func (r Raw) Waiting() (int, error) {
	n, err := unix.IoctlGetInt(int(r), unix.TIOCINQ)
	if err != nil {
		return 0, fmt.Errorf("bytes to be read from descriptor %d: %w", r, err)
	}
	return n, nil
}

// Tee copies what is in pipe r to the pipe that to writes to, without waiting; it
// stays in r.
func (r Raw) Tee(to Raw, most int) (int, error) {
	n, err := retry(func() (int, error) {
		n, err := unix.Tee(int(r), int(to), most, unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	if err != nil {
		return 0, fmt.Errorf("copy what is in the pipe behind descriptor %d: %w", r, err)
	}
	return n, nil
}
