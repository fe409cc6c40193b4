package kernel

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// TakeDescriptor returns a copy of descriptor fd of the process behind a pidfd,
// pidfd_getfd(2): the same open file description. It needs the right to trace the
// process; a descriptor that is not open there is EBADF.
func TakeDescriptor(pidfd *os.File, fd int) (*os.File, error) {
	taken, err := unix.PidfdGetfd(int(pidfd.Fd()), fd, 0)
	if errors.Is(err, unix.ENOSYS) {
		err = notSupported("pidfd_getfd", "shares an open file of a process", Version{Major: 5, Minor: 6})
	}
	if err != nil {
		return nil, fmt.Errorf("take descriptor %d of %s: %w", fd, pidfd.Name(), err)
	}
	return os.NewFile(uintptr(taken), pidfd.Name()+"/"+strconv.Itoa(fd)), nil
}

// SendDescriptors sends open files over a unix socket, in order, with one byte of
// data, which the kernel wants: SCM_RIGHTS of unix(7). It does not wait.
func SendDescriptors(socket *os.File, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, err := retry(func() (int, error) {
		return 0, unix.Sendmsg(int(socket.Fd()), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if err != nil {
		return fmt.Errorf("send %d descriptors: %w", len(files), err)
	}
	return nil
}

// SealedFile returns a file in memory of this content, which nobody can change any
// more, memfd_create(2).
func SealedFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|mfdNoexecSeal)
	if errors.Is(err, unix.EINVAL) { // older than Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make memfd %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.Write(content); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, all); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memfd %s: %w", name, err), file.Close())
	}
	return file, nil
}

const mfdNoexecSeal = 0x8 // linux/memfd.h

// FileFlags returns the access mode and status flags of an open file, F_GETFL.
func FileFlags(file *os.File) (int, error) {
	flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("flags of %s: %w", file.Name(), err)
	}
	return flags, nil
}

// SetFileFlags sets the status flags of an open file, F_SETFL.
func SetFileFlags(file *os.File, flags int) error {
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETFL, flags); err != nil {
		return fmt.Errorf("set flags of %s: %w", file.Name(), err)
	}
	return nil
}

// CopySignalOwner lets the process that is told of readiness by signal, and the
// signal, be the same for to as for from: F_SETOWN_EX, F_SETSIG.
func CopySignalOwner(to, from *os.File) error {
	var owner ownerEx
	if err := fcntlOwner(from, unix.F_GETOWN_EX, &owner); err != nil {
		return fmt.Errorf("signal owner of %s: %w", from.Name(), err)
	}
	signal, err := unix.FcntlInt(from.Fd(), unix.F_GETSIG, 0)
	if err != nil {
		return fmt.Errorf("signal of %s: %w", from.Name(), err)
	}
	if owner.pid != 0 {
		if err := fcntlOwner(to, unix.F_SETOWN_EX, &owner); err != nil {
			return fmt.Errorf("set signal owner of %s: %w", to.Name(), err)
		}
	}
	if signal != 0 {
		if _, err := unix.FcntlInt(to.Fd(), unix.F_SETSIG, signal); err != nil {
			return fmt.Errorf("set signal of %s: %w", to.Name(), err)
		}
	}
	return nil
}

// Pollable reports whether an open file can be registered with epoll; a regular
// file can't.
func Pollable(file *os.File) (bool, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("make an epoll: %w", err)
	}
	defer unix.Close(epoll)
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(file.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN})
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("register %s with epoll: %w", file.Name(), err)
	}
	return true, nil
}
