package testbed

import (
	"fmt"
	"os"
)

// Corrupt overwrites bytes in the memory of another process, read-only text
// included, as a stray write of a faulty driver or a flipped bit would: through
// /proc/PID/mem, which needs the right to trace it but stops nobody. The pages
// become private copies. It returns what was there before.
func Corrupt(pid int, address uint64, bytes []byte) (before []byte, err error) {
	mem, err := openMemory(pid)
	if err != nil {
		return nil, fmt.Errorf("corrupt %d: %w", pid, err)
	}
	defer mem.Close()
	before = make([]byte, len(bytes))
	if _, err := mem.ReadAt(before, int64(address)); err != nil {
		return nil, fmt.Errorf("corrupt %d at %#x: read: %w", pid, address, err)
	}
	if _, err := mem.WriteAt(bytes, int64(address)); err != nil {
		return nil, fmt.Errorf("corrupt %d at %#x: write: %w", pid, address, err)
	}
	return before, nil
}

// openMemory opens the memory of a process through any of its threads: the main
// one may have ended, and has none then.
func openMemory(pid int) (*os.File, error) {
	tids, err := threads(pid)
	if err != nil {
		return nil, err
	}
	err = os.ErrNotExist
	for _, tid := range tids {
		var mem *os.File
		if mem, err = os.OpenFile(fmt.Sprintf("/proc/%d/task/%d/mem", pid, tid), os.O_RDWR, 0); err == nil {
			return mem, nil
		}
	}
	return nil, err
}
