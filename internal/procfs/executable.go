package procfs

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// An Executable is the file that the process runs.
type Executable struct {
	Path    string // from the root of its mount namespace, without " (deleted)"
	Deleted bool   // no name leads to it any more
}

// Executable reads /proc/PID/exe, proc_pid_exe(5). It needs the right to read
// the process. A kernel thread has none: the error wraps ErrNoMemory.
func (p *Process) Executable() (Executable, error) {
	link, err := p.readSharedLink("exe")
	if errors.Is(err, fs.ErrNotExist) {
		if stat, statErr := p.Stat(); statErr == nil {
			if err = ErrGone; stat.KernelThread() {
				err = ErrNoMemory
			}
		}
	}
	if err != nil {
		return Executable{}, p.failed("find executable of", err)
	}
	path, deleted := strings.CutSuffix(link, deletedMark)
	if deleted && p.exeIsAt(link) { // the mark is part of the name
		path, deleted = link, false
	}
	return Executable{Path: path, Deleted: deleted}, nil
}

func (p *Process) exeIsAt(path string) bool {
	mapped, err := p.openMemoryFile("exe", kernel.PathOnly)
	if err != nil {
		return false
	}
	defer mapped.Close()
	exe, err := kernel.StatFile(mapped)
	if err != nil {
		return false
	}
	file, err := p.openAtPath(path)
	if err != nil {
		return false
	}
	defer file.Close()
	at, err := kernel.StatFile(file)
	return err == nil && at.Device == exe.Device && at.Inode == exe.Inode
}

// OpenExecutable opens the file that the process runs, for reading, also when
// it was deleted or replaced. It needs no more rights than Executable.
func (p *Process) OpenExecutable() (*os.File, error) {
	exe, err := p.openMemoryFile("exe", kernel.PathOnly)
	if err != nil {
		return nil, p.failed("open executable of", err)
	}
	defer exe.Close()
	file, err := reopenRegular(exe)
	if err != nil {
		return nil, p.failed("open executable of", err)
	}
	return file, nil
}

// Cmdline reads the arguments that the process was started with, or what it
// has written over them, proc_pid_cmdline(5). A kernel thread or a zombie has
// none.
func (p *Process) Cmdline() (args []string, err error) {
	err = p.read("cmdline", func(text []byte) error {
		args = ParseCmdline(text)
		return nil
	})
	return args, err
}

// ParseCmdline splits the text of a cmdline file: each argument ends in a NUL.
func ParseCmdline(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// RootDirectory returns the process's root directory as a path from the root
// of its mount namespace: "/" unless chroot(2) moved it. Paths of mappings
// start at the same place.
func (p *Process) RootDirectory() (string, error) {
	link, err := p.readSharedLink("root")
	if err != nil {
		return "", p.failed("find root directory of", err)
	}
	return link, nil
}
