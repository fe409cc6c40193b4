package restore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// openDeleted makes a file that was deleted when it was mapped: it shows as one of the
// same path, and nothing is made at that path.
func openDeleted(o *image.Object) (_ *os.File, err error) {
	file, err := kernel.DetachedFile(o.Name, o.Mode&0o777)
	if err != nil {
		return nil, err
	}
	if err := file.Truncate(int64(o.Size)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// settleDeleted gives such a file, whose content is written, its owner and time of change,
// and opens it for what it is mapped for: an executable may not be open for writing. With
// an error the file is the caller's to close.
func settleDeleted(o *image.Object, file *os.File) (*os.File, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	if err := file.Chown(int(o.UID), int(o.GID)); err != nil {
		return nil, err
	}
	if err := os.Chtimes(path, o.File.Modified, o.File.Modified); err != nil {
		return nil, err
	}
	if o.Flags&syscall.O_ACCMODE == syscall.O_RDWR {
		return file, nil
	}
	settled, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return settled, file.Close()
}
