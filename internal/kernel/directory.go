package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Directory is an O_PATH descriptor of a directory: names are looked up in
// it whatever becomes of the path that led there. Of /proc/PID it means one
// process for good: once that is gone lookups fail, and a later process of the
// same number is another directory.
//
// A Directory may be used by several goroutines; none may use it during or
// after Close. What its methods open belongs to the caller.
type Directory struct {
	fd   int
	path string // for messages
}

// PathOnly opens a name without opening what it names: O_PATH of open(2).
const PathOnly = unix.O_PATH

// OpenDirectory opens a directory by path.
func OpenDirectory(path string) (*Directory, error) {
	return openDirectory(unix.AT_FDCWD, path, path)
}

func openDirectory(at int, name, path string) (*Directory, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	return &Directory{fd: fd, path: path}, nil
}

// Close gives the descriptor back. A second Close does nothing.
func (d *Directory) Close() error {
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1 // a use after Close is EBADF, not somebody else's descriptor
	return unix.Close(fd)
}

// Directory opens a directory below d, symbolic and magic links followed.
func (d *Directory) Directory(name string) (*Directory, error) {
	return openDirectory(d.fd, name, d.join(name))
}

// Open opens name, relative to d. Flags are those of open(2), as the syscall
// package has them; O_CLOEXEC is added.
func (d *Directory) Open(name string, flags int) (*os.File, error) {
	fd, err := d.open(name, flags)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.join(name), err)
	}
	return os.NewFile(uintptr(fd), d.join(name)), nil
}

func (d *Directory) open(name string, flags int) (int, error) {
	return retry(func() (int, error) { return unix.Openat(d.fd, name, flags|unix.O_CLOEXEC, 0) })
}

// OpenInRoot opens name as if d were the root directory: absolute symbolic
// links and ".." stay below d. Magic links (/proc/PID/exe and the like) on the
// way are refused with ELOOP. It is openat2(2) with RESOLVE_IN_ROOT.
func (d *Directory) OpenInRoot(name string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if errors.Is(err, unix.ENOSYS) {
		err = notSupported("openat2", "resolves paths as another process sees them", Version{Major: 5, Minor: 6})
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", name, d.path, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// CreateInRoot is OpenInRoot that makes a regular file with these permissions,
// less those of the umask, where there is none; the last name may be no symbolic
// link that leads nowhere.
func (d *Directory) CreateInRoot(name string, flags int, permissions uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_CREAT),
		Mode:    uint64(permissions),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if errors.Is(err, unix.ENOSYS) {
		err = notSupported("openat2", "resolves paths as another process sees them", Version{Major: 5, Minor: 6})
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", name, d.path, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// RemoveIn removes a name of an open directory; no directory.
func RemoveIn(folder *os.File, name string) error {
	if err := unix.Unlinkat(int(folder.Fd()), name, 0); err != nil {
		return fmt.Errorf("remove %s in %s: %w", name, folder.Name(), err)
	}
	return nil
}

// ReadFile appends all of the file name to buf[:0], growing it where it must,
// and returns it: nothing is allocated where buf is large enough. Files of
// /proc have no size to ask for beforehand.
func (d *Directory) ReadFile(name string, buf []byte) ([]byte, error) {
	fd, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.join(name), err)
	}
	defer unix.Close(fd)
	buf = buf[:0]
	for {
		if cap(buf)-len(buf) < 512 {
			buf = slices.Grow(buf, max(pageSize, len(buf)))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", d.join(name), err)
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

// ReadLink returns what the symbolic or magic link name says.
func (d *Directory) ReadLink(name string) (string, error) {
	link, err := readLink(d.fd, name)
	if err != nil {
		return "", fmt.Errorf("read link %s: %w", d.join(name), err)
	}
	return link, nil
}

// ReadLinkIn is ReadLink of a name in an open directory.
func ReadLinkIn(folder *os.File, name string) (string, error) {
	link, err := readLink(int(folder.Fd()), name)
	if err != nil {
		return "", fmt.Errorf("read link %s in %s: %w", name, folder.Name(), err)
	}
	return link, nil
}

func readLink(at int, name string) (string, error) {
	var array [512]byte
	for buf := array[:]; ; buf = make([]byte, 2*len(buf)) {
		n, err := retry(func() (int, error) { return unix.Readlinkat(at, name, buf) })
		if err != nil {
			return "", err
		}
		if n < len(buf) { // a full buffer may be a cut one
			return string(buf[:n]), nil
		}
	}
}

// A FileStat is what vOS asks of stat(2).
type FileStat struct {
	Device, Inode uint64 // together the file's identity; Device as makedev has it
	Special       uint64 // which device a device's node is of, likewise; else 0
	Links         uint64
	Mode          fs.FileMode // type bits; permissions are left out
	Size          int64       // bytes
	Modified      time.Time
}

// Stat looks at name, links followed.
func (d *Directory) Stat(name string) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, 0); err != nil {
		return FileStat{}, fmt.Errorf("stat %s: %w", d.join(name), err)
	}
	return fileStat(&st), nil
}

// StatKnown looks at an open file, also one opened with O_PATH, by what this
// machine knows of it: the server of a remote file is not asked. Mount is the id of
// the mount that it was found on; 0 before Linux 5.8.
func StatKnown(file *os.File) (stat FileStat, mount int, err error) {
	var st unix.Statx_t
	err = unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	if err != nil {
		return FileStat{}, 0, fmt.Errorf("statx %s: %w", file.Name(), err)
	}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		mount = int(st.Mnt_id)
	}
	return FileStat{
		Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino,
		Special: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Links: uint64(st.Nlink),
		Mode: fileType(uint32(st.Mode)), Size: int64(st.Size),
		Modified: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
	}, mount, nil
}

// LinkOf returns what /proc says of an open file of this process: its path, or the
// kernel's name for what has none.
func LinkOf(file *os.File) (string, error) {
	return (&Directory{fd: unix.AT_FDCWD}).ReadLink("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
}

// StatFile looks at an open file, also one opened with O_PATH.
func StatFile(file *os.File) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return FileStat{}, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	return fileStat(&st), nil
}

func fileStat(st *unix.Stat_t) FileStat {
	return FileStat{
		Device: st.Dev, Inode: st.Ino, Special: st.Rdev, Links: st.Nlink, Mode: fileType(st.Mode),
		Size: st.Size, Modified: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
}

func fileType(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	}
	return fs.ModeIrregular
}

// Device returns the major and minor number of a device, as /proc/PID/maps
// writes them.
func Device(device uint64) (major, minor uint32) { return unix.Major(device), unix.Minor(device) }

// DeviceNumber is the opposite of Device, as stat(2) writes it.
func DeviceNumber(major, minor uint32) uint64 { return unix.Mkdev(major, minor) }

// Reopen opens the file behind an O_PATH descriptor, which tells what it is
// before anything that opening would cause: a FIFO blocks, a device acts.
func Reopen(file *os.File, flags int) (*os.File, error) {
	name := "/proc/self/fd/" + strconv.Itoa(int(file.Fd()))
	fd, err := retry(func() (int, error) { return unix.Open(name, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file.Name(), err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// MapPage maps the first page of a file, which is not read, and returns where.
// The caller unmaps it.
func MapPage(file *os.File) (address uint64, unmap func() error, err error) {
	page, err := unix.Mmap(int(file.Fd()), 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return 0, nil, fmt.Errorf("map %s: %w", file.Name(), err)
	}
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(page)))), func() error { return unix.Munmap(page) }, nil
}

// OpenPidfd returns a descriptor of the process pid, pidfd_open(2). It means
// that process for good, and the caller closes it.
func OpenPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) {
		err = notSupported("pidfd_open", "holds on to a process", Version{Major: 5, Minor: 3})
	}
	if err != nil {
		return nil, fmt.Errorf("open descriptor of process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), nil
}

// PidfdAlive reports whether any thread of the process behind a pidfd still
// lives; a zombie does not. It does not wait.
func PidfdAlive(pidfd *os.File) (bool, error) {
	poll := [1]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := retry(func() (int, error) { return unix.Poll(poll[:], 0) })
	if err != nil {
		return false, fmt.Errorf("poll %s: %w", pidfd.Name(), err)
	}
	return n == 0, nil
}

func (d *Directory) join(name string) string { return d.path + "/" + name }

// retry repeats a call that a signal interrupted; the Go runtime sends signals
// to its own threads all the time.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// TryLock takes an exclusive advisory lock on an open file or directory (flock(2))
// and reports whether it got it; somebody else may have it. Closing the file gives
// it back.
func TryLock(file *os.File) (bool, error) {
	_, err := retry(func() (int, error) { return 0, unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return true, nil
}
