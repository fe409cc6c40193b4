// Package procfs is /proc as typed values: what a process is (Stat, Status,
// Auxv, Cgroup, Executable), what is mapped in it (Maps), the files behind its
// mappings (OpenMapped, FileState), its memory (OpenMemory) and the pages that
// are no longer its files' (OpenPagemap).
//
// A Process is opened once and holds the directory /proc/PID itself. Every
// later read is about that process: after it is gone reads fail with an error
// that wraps ErrGone, also when the number was given to another process.
//
// What is read was in part written by the program: names of processes, files
// and memory are hostile input. Parsers take bytes, never panic, and keep what
// they can't interpret apart from what they can. Three texts of the kernel are
// ambiguous, and settled by looking at the files themselves:
//
//   - a newline in a mapped path is written \012, a backslash stays as it is;
//   - a deleted file is marked with a trailing " (deleted)", which may as well
//     be the end of a name;
//   - the device numbers in maps are not those of stat(2) on overlayfs and
//     btrfs.
//
// Nothing here stops or changes a process, but for a Memory that was opened
// for writing. Where a right is missing errors wrap fs.ErrPermission. Values
// may be used by several goroutines unless they say otherwise.
package procfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// ErrGone is wrapped where the process has ended, been replaced by execve
// (its memory), or left nothing but a zombie.
var ErrGone = errors.New("process is gone")

// ErrNoMemory is wrapped where a process has no memory to look at: a kernel
// thread.
var ErrNoMemory = errors.New("process has no address space")

// PageSize is the size of a page of x86-64, in bytes.
const PageSize = 4096

// A Process is one process, held by its directory in /proc.
type Process struct {
	pid  int
	dir  *kernel.Directory
	lock *os.File // see Lock
}

// Open holds the process pid. The caller closes it.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("open process %d: not a process id", pid)
	}
	dir, err := kernel.OpenDirectory("/proc/" + strconv.Itoa(pid))
	if errors.Is(err, os.ErrNotExist) {
		// Under hidepid= processes of others do not even show.
		if syscall.Kill(pid, 0) == syscall.EPERM {
			return nil, fmt.Errorf("open process %d: hidden by the hidepid option of /proc: %w", pid, os.ErrPermission)
		}
		return nil, fmt.Errorf("open process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{pid: pid, dir: dir}, nil
}

// PID returns the process id that the process was opened by.
func (p *Process) PID() int { return p.pid }

// Close lets go of the process. Files opened from it stay open.
func (p *Process) Close() error {
	var err error
	if p.lock != nil {
		err = p.lock.Close()
	}
	return errors.Join(err, p.dir.Close())
}

// Alive reports whether the process still exists; a zombie does.
func (p *Process) Alive() bool {
	_, err := p.dir.Stat("stat")
	return err == nil || !isAbsence(err)
}

// Threads returns the ids of the process's threads, ascending. Threads come
// and go meanwhile; one that must have them all stops them and asks again.
func (p *Process) Threads() ([]int, error) {
	task, err := p.dir.Open("task", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return nil, p.failed("list threads of", err)
	}
	defer task.Close()
	tids, err := numericNames(task)
	if err != nil {
		return nil, p.failed("list threads of", err)
	}
	if len(tids) == 0 {
		return nil, p.failed("list threads of", ErrGone)
	}
	return tids, nil
}

// Processes returns the ids of all processes that this /proc shows, ascending:
// kernel threads and zombies too (Stat tells them), those of other pid
// namespaces only where they are below this one.
func Processes() ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer proc.Close()
	pids, err := numericNames(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return pids, nil
}

func numericNames(directory *os.File) ([]int, error) {
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	ids := make([]int, 0, len(names))
	for _, name := range names {
		if id, err := strconv.Atoi(name); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// buffers hold the text of one /proc file while it is parsed. Those that a
// giant maps file made large are kept: the collector drops them in time.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 16<<10)) }}

// read hands the text of a file of the process to parse, which must not keep
// it.
func (p *Process) read(name string, parse func(text []byte) error) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	text, err := p.dir.ReadFile(name, *buf)
	if err != nil {
		return p.failed("read "+name+" of", err)
	}
	*buf = text
	if err := parse(text); err != nil {
		return p.failed("read "+name+" of", err)
	}
	return nil
}

// anyThread runs try on the name of a file that is about what all threads
// share: memory, executable, root directory. Of a process whose main thread has
// called pthread_exit only the other threads' files still tell; they are tried
// where the process's own says that there is nothing, or, as a zombie's belong
// to root, that one may not.
func (p *Process) anyThread(name string, try func(name string) error) error {
	err := try(name)
	if !isAbsence(err) && !errors.Is(err, os.ErrPermission) {
		return err
	}
	if stat, statErr := p.Stat(); statErr != nil || !stat.Zombie() {
		return err
	}
	if tid, threadErr := p.LivingThread(); threadErr == nil {
		return try("task/" + strconv.Itoa(tid) + "/" + name)
	}
	return err
}

// readMemoryFile is read for a file about the process's memory: such a file is
// empty, on newer kernels an error, where there is none.
func (p *Process) readMemoryFile(name string, parse func(text []byte) error) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	err := p.anyThread(name, func(name string) error {
		text, err := p.dir.ReadFile(name, *buf)
		if err != nil {
			return err
		}
		*buf = text
		if len(text) == 0 {
			return syscall.ESRCH
		}
		return parse(text)
	})
	if err != nil {
		return p.failed("read "+name+" of", err)
	}
	return nil
}

// openMemoryFile opens a file about the process's memory.
func (p *Process) openMemoryFile(name string, flags int) (file *os.File, err error) {
	err = p.anyThread(name, func(name string) (err error) {
		file, err = p.dir.Open(name, flags)
		return err
	})
	return file, err
}

// readSharedLink reads a link that all threads share.
func (p *Process) readSharedLink(name string) (link string, err error) {
	err = p.anyThread(name, func(name string) (err error) {
		link, err = p.dir.ReadLink(name)
		return err
	})
	return link, err
}

// failed words an error about the process, verb first. Lookups in a process
// that is gone say ENOENT, reads of its open files ESRCH; but ENOENT is also
// what a kernel without a certain file says, so it is asked again.
func (p *Process) failed(verb string, err error) error {
	if isAbsence(err) {
		switch stat, statErr := p.Stat(); {
		case statErr != nil:
			err = ErrGone
		case errors.Is(err, syscall.ESRCH) && stat.KernelThread():
			err = ErrNoMemory
		case errors.Is(err, syscall.ESRCH):
			err = ErrGone // it has exited: what is left is a zombie
		case stat.Zombie() && stat.Threads <= 1:
			err = ErrGone
		}
	} else if errors.Is(err, os.ErrPermission) {
		// The files of a zombie belong to root.
		if stat, statErr := p.Stat(); statErr != nil || stat.Zombie() && stat.Threads <= 1 {
			err = ErrGone
		}
	}
	return fmt.Errorf("%s process %d: %w", verb, p.pid, err)
}

func isAbsence(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
