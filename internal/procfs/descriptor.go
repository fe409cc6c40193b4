package procfs

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// OpenDescriptor opens anew what the process has open as descriptor fd, with
// flags of open(2). A memfd or a file is opened as by its path; a pipe gives
// another end; a socket can't be opened.
func (p *Process) OpenDescriptor(fd, flags int) (*os.File, error) {
	file, err := p.openMemoryFile("fd/"+strconv.Itoa(fd), flags)
	if err != nil {
		return nil, p.failed("open descriptor "+strconv.Itoa(fd)+" of", err)
	}
	return file, nil
}

// Descriptor returns what one descriptor leads to, as Descriptors does.
func (p *Process) Descriptor(fd int) (string, error) {
	link, err := p.readSharedLink("fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", p.failed("look at descriptor "+strconv.Itoa(fd)+" of", err)
	}
	return link, nil
}

// A DescriptorFile is the file that a descriptor has open.
type DescriptorFile struct {
	Link  string // as Descriptors has it
	Stat  kernel.FileStat
	Mount int // the id of its mount; 0 before Linux 5.8

	// Protocol is a socket's, as the kernel names it: "TCP", "UNIX-STREAM". It is ""
	// where the kernel keeps it to itself.
	Protocol string
}

// DescriptorFile looks at the file that a descriptor has open, by what this machine
// knows: the server of a remote file is not asked. All is about one file, which
// is held by O_PATH meanwhile: that is not an end of a pipe or socket. A descriptor
// that is not open wraps fs.ErrNotExist, of DescriptorInfo likewise.
func (p *Process) DescriptorFile(fd int) (f DescriptorFile, err error) {
	failed := func(err error) (DescriptorFile, error) {
		return DescriptorFile{}, p.failed("look at descriptor "+strconv.Itoa(fd)+" of", err)
	}
	file, err := p.openMemoryFile("fd/"+strconv.Itoa(fd), kernel.PathOnly)
	if err != nil {
		return failed(err)
	}
	defer file.Close()
	if f.Stat, f.Mount, err = kernel.StatKnown(file); err != nil {
		return failed(err)
	}
	if f.Link, err = kernel.LinkOf(file); err != nil {
		return failed(err)
	}
	if f.Stat.Mode == fs.ModeSocket {
		f.Protocol, _ = kernel.SocketProtocol(file)
	}
	return f, nil
}

// IsAtPath reports whether a file is at a path, as the process's links write it.
func (p *Process) IsAtPath(path string, stat kernel.FileStat) bool {
	found, err := p.openAtPath(path)
	if err != nil {
		return false
	}
	defer found.Close()
	at, err := kernel.StatFile(found)
	return err == nil && at.Device == stat.Device && at.Inode == stat.Inode
}

// DescriptorInfo hands the text of /proc/PID/fdinfo/FD, proc_pid_fdinfo(5), to
// parse, which must not keep it. The kernel writes it in one go, about one open
// file.
func (p *Process) DescriptorInfo(fd int, parse func(text []byte) error) error {
	return p.readMemoryFile("fdinfo/"+strconv.Itoa(fd), parse)
}

// DescriptorNumbers returns the open descriptors of the process, ascending.
func (p *Process) DescriptorNumbers() (numbers []int, err error) {
	err = p.listDescriptors(func(_ *os.File, all []int) { numbers = all })
	return numbers, err
}

// listDescriptors hands the process's folder of descriptors, and what is in it, to f.
func (p *Process) listDescriptors(f func(folder *os.File, numbers []int)) error {
	err := p.anyThread("fd", func(name string) error {
		folder, err := p.dir.Open(name, syscall.O_RDONLY|syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer folder.Close()
		numbers, err := numericNames(folder)
		if err != nil {
			return err
		}
		if len(numbers) == 0 && name == "fd" {
			if err := p.hasDescriptors(); err != nil {
				return err
			}
		}
		f(folder, numbers)
		return nil
	})
	if err != nil {
		return p.failed("list the descriptors of", err)
	}
	return nil
}

// hasDescriptors tells a process that has closed all descriptors from a zombie,
// whose folder of them is as empty.
func (p *Process) hasDescriptors() error {
	if stat, err := p.Stat(); err != nil || stat.Zombie() {
		return syscall.ESRCH
	}
	return nil
}

// Descriptors returns what the open descriptors of the process lead to, as
// readlink(2) tells it: "/path", "socket:[123]", "/memfd:name (deleted)". What may
// not be looked at is left out.
func (p *Process) Descriptors() (all map[int]string, err error) {
	err = p.listDescriptors(func(folder *os.File, numbers []int) {
		all = make(map[int]string, len(numbers))
		for _, fd := range numbers {
			link, err := kernel.ReadLinkIn(folder, strconv.Itoa(fd))
			if err != nil {
				continue // closed meanwhile
			}
			all[fd] = link
		}
	})
	return all, err
}

// WithoutDescriptors reports, by little, that a process has no descriptors as it is a
// thread of the kernel, or a zombie.
func (p *Process) WithoutDescriptors() bool {
	if _, err := p.dir.ReadLink("exe"); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	threads, err := p.ThreadCount()
	return err == nil && threads <= 1
}

// OpenNetwork opens the process's network namespace.
func (p *Process) OpenNetwork() (*os.File, error) {
	file, err := p.openMemoryFile("ns/net", syscall.O_RDONLY)
	if err != nil {
		return nil, p.failed("open the network namespace of", err)
	}
	return file, nil
}

// NetworkTable hands the text of a file in /proc/PID/net, which is about the
// process's network namespace, to parse, which must not keep it.
func (p *Process) NetworkTable(name string, parse func(text []byte) error) error {
	return p.readMemoryFile("net/"+name, parse)
}
