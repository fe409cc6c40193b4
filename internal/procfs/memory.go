package procfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// ErrAddress is wrapped where an address can't be read through /proc: it is
// not mapped, or lies above the addresses of programs (vsyscall).
var ErrAddress = errors.New("address is not accessible")

// A Memory is the memory of a process by address, through /proc/PID/mem
// (proc_pid_mem(5)). It belongs to the program that ran when it was opened:
// after execve, as after the end, accesses fail with ErrGone.
//
// Page protections do not hold back whoever may trace the process: reads work
// on memory that is not readable, writes on private memory that is not
// writable make the page a private copy, as a debugger's do. It is an
// io.ReaderAt and io.WriterAt, safe for several goroutines.
type Memory struct {
	pid  int
	file *os.File
}

var (
	_ io.ReaderAt = (*Memory)(nil)
	_ io.WriterAt = (*Memory)(nil)
)

// OpenMemory opens the memory for reading. It needs the right to trace the
// process (PTRACE_MODE_ATTACH), the process is not stopped.
func (p *Process) OpenMemory() (*Memory, error) { return p.openMemory(syscall.O_RDONLY) }

// OpenMemoryForWriting opens it for reading and writing.
func (p *Process) OpenMemoryForWriting() (*Memory, error) { return p.openMemory(syscall.O_RDWR) }

func (p *Process) openMemory(flags int) (*Memory, error) {
	file, err := p.openMemoryFile("mem", flags)
	if err != nil {
		return nil, p.failed("open memory of", err)
	}
	return &Memory{pid: p.pid, file: file}, nil
}

// ReadAt reads len(b) bytes from an address. Less than that comes with an
// error; bytes before it are valid: the next page is not mapped (ErrAddress).
func (m *Memory) ReadAt(b []byte, address int64) (int, error) {
	return m.access("read", b, address, m.file.ReadAt)
}

// WriteAt writes b at an address, not atomically. Less than all comes with an
// error, and what is counted was written.
func (m *Memory) WriteAt(b []byte, address int64) (int, error) {
	return m.access("write", b, address, m.file.WriteAt)
}

func (m *Memory) access(verb string, b []byte, address int64, call func([]byte, int64) (int, error)) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if address < 0 {
		return 0, fmt.Errorf("%s memory of process %d at %#x: %w", verb, m.pid, uint64(address), ErrAddress)
	}
	n, err := call(b, address)
	if err == nil {
		return n, nil
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ESRCH), n == 0 && err == io.ErrShortWrite:
		err = ErrGone // the kernel transfers nothing once the memory is gone
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EFAULT):
		err = ErrAddress
	}
	return n, fmt.Errorf("%s memory of process %d at %#x: %w", verb, m.pid, uint64(address)+uint64(n), err)
}

// Close closes the memory.
func (m *Memory) Close() error { return m.file.Close() }
