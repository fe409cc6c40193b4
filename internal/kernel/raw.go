package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Raw is an open file of this process of which the Go runtime knows nothing: it is
// neither set to block nor registered with the runtime's epoll, as would happen with
// an os.File. It is for descriptions that are a program's, or are to become one's.
// The owner closes it; -1 is none.
type Raw int

// TakeRaw is TakeDescriptor that returns a Raw.
func TakeRaw(pidfd *os.File, fd int) (Raw, error) {
	taken, err := unix.PidfdGetfd(int(pidfd.Fd()), fd, 0)
	if err != nil {
		return -1, fmt.Errorf("take descriptor %d of %s: %w", fd, pidfd.Name(), err)
	}
	return Raw(taken), nil
}

// CopyRaw returns another descriptor of an open file.
func CopyRaw(file *os.File) (Raw, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("copy descriptor of %s: %w", file.Name(), err)
	}
	copied := -1
	var failed error
	err = conn.Control(func(fd uintptr) {
		copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return -1, fmt.Errorf("copy descriptor of %s: %w", file.Name(), err)
	}
	return Raw(copied), nil
}

// OpenRaw is OpenInRoot that returns a Raw. It does not wait for the other end of a
// FIFO if flags have O_NONBLOCK, and makes no terminal the controlling one.
func (d *Directory) OpenRaw(name string, flags int) (Raw, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH != 0 {
		how.Flags &^= unix.O_NOCTTY
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if err != nil {
		return -1, fmt.Errorf("open %s in %s: %w", name, d.path, err)
	}
	return Raw(fd), nil
}

// Reopen opens the file behind r anew: another description. O_NOFOLLOW is left out, as
// what it is opened by is a link.
func (r Raw) Reopen(flags int) (Raw, error) {
	name := "/proc/self/fd/" + strconv.Itoa(int(r))
	fd, err := retry(func() (int, error) { return unix.Open(name, flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0) })
	if err != nil {
		return -1, fmt.Errorf("open anew what descriptor %d leads to: %w", r, err)
	}
	return Raw(fd), nil
}

// Close gives the descriptor back; of -1 it does nothing.
func (r Raw) Close() error {
	if r < 0 {
		return nil
	}
	return unix.Close(int(r))
}

// Read and Write are read(2) and write(2), once.
func (r Raw) Read(b []byte) (int, error) {
	return retry(func() (int, error) { return unix.Read(int(r), b) })
}

// Write is Read's counterpart.
func (r Raw) Write(b []byte) (int, error) {
	return retry(func() (int, error) { return unix.Write(int(r), b) })
}

// ReadAt reads at an offset, pread(2), once; 0 is the end.
func (r Raw) ReadAt(b []byte, offset int64) (int, error) {
	return retry(func() (int, error) { return unix.Pread(int(r), b, offset) })
}

// WriteAt writes at an offset, pwrite(2), once.
func (r Raw) WriteAt(b []byte, offset int64) (int, error) {
	return retry(func() (int, error) { return unix.Pwrite(int(r), b, offset) })
}

// SetOffset sets the offset of the description.
func (r Raw) SetOffset(offset int64) error {
	if _, err := unix.Seek(int(r), offset, unix.SEEK_SET); err != nil {
		return fmt.Errorf("set offset of descriptor %d: %w", r, err)
	}
	return nil
}

// Flags returns the access mode and status flags, F_GETFL.
func (r Raw) Flags() (int, error) {
	flags, err := unix.FcntlInt(uintptr(r), unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("flags of descriptor %d: %w", r, err)
	}
	return flags, nil
}

// SetFlags sets the status flags, F_SETFL: of what it can't set nothing is said.
func (r Raw) SetFlags(flags int) error {
	if _, err := unix.FcntlInt(uintptr(r), unix.F_SETFL, flags); err != nil {
		return fmt.Errorf("set flags of descriptor %d: %w", r, err)
	}
	return nil
}

// A RawStat is stat(2) with what Raw's users need.
type RawStat struct {
	FileStat
	Permissions uint32 // with set-id bits
	UID, GID    uint32
}

// Stat looks at the file.
func (r Raw) Stat() (RawStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(r), &st); err != nil {
		return RawStat{}, fmt.Errorf("look at descriptor %d: %w", r, err)
	}
	return RawStat{FileStat: fileStat(&st), Permissions: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}, nil
}

// Copy returns another descriptor of the description.
func (r Raw) Copy() (Raw, error) {
	fd, err := unix.FcntlInt(uintptr(r), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy descriptor %d: %w", r, err)
	}
	return Raw(fd), nil
}

// An Owner is told by a signal that a description is ready.
type Owner struct {
	Type, ID int // F_OWNER_…; ID 0 is nobody
	Signal   int // 0 is SIGIO
}

// Owner returns who is told, F_GETOWN_EX and F_GETSIG.
func (r Raw) Owner() (Owner, error) {
	var owner ownerEx
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(r), unix.F_GETOWN_EX, uintptr(unsafe.Pointer(&owner)))
	if errno != 0 {
		return Owner{}, fmt.Errorf("signal owner of descriptor %d: %w", r, errno)
	}
	signal, err := unix.FcntlInt(uintptr(r), unix.F_GETSIG, 0)
	if err != nil {
		return Owner{}, fmt.Errorf("signal of descriptor %d: %w", r, err)
	}
	return Owner{int(owner.kind), int(owner.pid), signal}, nil
}

// Events of poll(2).
const (
	EventIn      = unix.POLLIN
	EventOut     = unix.POLLOUT
	EventUrgent  = unix.POLLPRI
	EventError   = unix.POLLERR
	EventHangUp  = unix.POLLHUP
	EventPeerEnd = unix.POLLRDHUP
)

// Ready reports whether any of events is there now.
func (r Raw) Ready(events int16) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(r), Events: events}}
	if _, err := retry(func() (int, error) { return unix.Poll(fds, 0) }); err != nil {
		return false, fmt.Errorf("poll descriptor %d: %w", r, err)
	}
	return fds[0].Revents&events != 0, nil
}

// Data returns the next part of a file that is no hole, from at on; io.EOF is none.
func (r Raw) Data(at int64) (start, end int64, err error) {
	if start, err = unix.Seek(int(r), at, unix.SEEK_DATA); err == nil {
		end, err = unix.Seek(int(r), start, unix.SEEK_HOLE)
	}
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find data behind descriptor %d: %w", r, err)
	}
	return start, end, nil
}

// Truncate sets a file's size.
func (r Raw) Truncate(size int64) error {
	if err := unix.Ftruncate(int(r), size); err != nil {
		return fmt.Errorf("set size of what descriptor %d leads to: %w", r, err)
	}
	return nil
}

// Seals returns the seals of a memfd, F_GET_SEALS.
func (r Raw) Seals() (int, error) {
	seals, err := unix.FcntlInt(uintptr(r), unix.F_GET_SEALS, 0)
	if err != nil {
		return 0, fmt.Errorf("seals of descriptor %d: %w", r, err)
	}
	return seals, nil
}

// FileSystem returns the magic number of the file system, statfs(2).
func (r Raw) FileSystem() (uint32, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r), &st); err != nil {
		return 0, fmt.Errorf("file system of descriptor %d: %w", r, err)
	}
	return uint32(st.Type), nil
}

// OpenUnnamed makes a file without a name in a folder, O_TMPFILE, for reading and
// writing; it is looked up as by OpenRaw.
func (d *Directory) OpenUnnamed(folder string, permissions uint32) (Raw, error) {
	how := unix.OpenHow{
		Flags:   unix.O_TMPFILE | unix.O_RDWR | unix.O_EXCL | unix.O_CLOEXEC,
		Mode:    uint64(permissions & 0o7777),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, folder, &how) })
	if err != nil {
		return -1, fmt.Errorf("make a file without a name in %s: %w", folder, err)
	}
	return Raw(fd), nil
}

// SetOwnership sets who owns a file, and its permissions.
func (r Raw) SetOwnership(uid, gid, permissions uint32) error {
	err := unix.Fchown(int(r), int(uid), int(gid))
	if err == nil {
		err = unix.Fchmod(int(r), permissions)
	}
	if err != nil {
		return fmt.Errorf("set owner of what descriptor %d leads to: %w", r, err)
	}
	return nil
}
