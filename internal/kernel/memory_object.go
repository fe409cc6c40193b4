package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seals returns the seals of a memfd: F_GET_SEALS.
func Seals(file *os.File) (uint32, error) {
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return 0, fmt.Errorf("read seals of %s: %w", file.Name(), err)
	}
	return uint32(seals), nil
}

// SeekData returns the first offset from at on where a file has data, or io.EOF where
// only a hole follows: SEEK_DATA of lseek(2).
func SeekData(file *os.File, at int64) (int64, error) {
	next, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case err != nil:
		return 0, fmt.Errorf("find data of %s: %w", file.Name(), err)
	}
	return next, nil
}
