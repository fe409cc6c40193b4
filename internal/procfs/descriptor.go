package procfs

import (
	"os"
	"strconv"
	"syscall"
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

// Descriptors returns what the open descriptors of the process lead to, as
// readlink(2) tells it: "/path", "socket:[123]", "/memfd:name (deleted)".
func (p *Process) Descriptors() (map[int]string, error) {
	const verb = "list the descriptors of"
	folder, err := p.openMemoryFile("fd", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return nil, p.failed(verb, err)
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return nil, p.failed(verb, err)
	}
	all := make(map[int]string, len(names))
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		link, err := p.readSharedLink("fd/" + name)
		if err != nil {
			continue // closed meanwhile
		}
		all[fd] = link
	}
	return all, nil
}
