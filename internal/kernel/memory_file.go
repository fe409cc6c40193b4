package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const mfdExec = 0x10 // linux/memfd.h

// MemoryFile returns an empty file in memory, made with flags of memfd_create(2) and
// MFD_CLOEXEC.
func MemoryFile(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memfd %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "memfd:"+name), nil
}

// ExecutableFile returns a file in memory of this content that can be executed, where
// the sysctl vm.memfd_noexec allows it.
func ExecutableFile(name string, content []byte) (*os.File, error) {
	file, err := MemoryFile(name, mfdExec)
	if errors.Is(err, unix.EINVAL) { // older than Linux 6.3
		file, err = MemoryFile(name, 0)
	}
	if err != nil {
		return nil, err
	}
	if _, err := file.Write(content); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// AddSeals adds seals to a file in memory: F_ADD_SEALS.
func AddSeals(file *os.File, seals int) error {
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal %s: %w", file.Name(), err)
	}
	return nil
}
