package kernel

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// NewInotify makes an inotify instance.
func NewInotify() (Raw, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make an inotify: %w", err)
	}
	return Raw(fd), nil
}

// AddWatch lets an inotify watch what another descriptor leads to, under a number
// that it does not have yet: this needs a kernel with CONFIG_CHECKPOINT_RESTORE.
func (r Raw) AddWatch(what Raw, number int, events uint32) error {
	const setNext = 0x40044900 // INOTIFY_IOC_SETNEXTWD, which takes the number itself
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r), setNext, uintptr(number)); errno != 0 {
		return fmt.Errorf("choose number %d for a watch: %w", number, errno)
	}
	got, err := unix.InotifyAddWatch(int(r), "/proc/self/fd/"+strconv.Itoa(int(what)), events)
	if err != nil {
		return fmt.Errorf("watch what descriptor %d leads to: %w", what, err)
	}
	if got != number {
		return fmt.Errorf("the watch has number %d, not %d", got, number)
	}
	return nil
}

// PathOfHandle returns the path of the file that a handle of name_to_handle_at(2) means,
// in a file system of which root is a directory. It needs CAP_DAC_READ_SEARCH.
func PathOfHandle(root string, kind int, handle []byte) (path string, err error) {
	mount, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, unix.Close(mount)) }()
	fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(int32(kind), handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open a file handle in %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
