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
	path := fmt.Sprintf("/proc/%d/mem", pid)
	mem, err := os.OpenFile(path, os.O_RDWR, 0)
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
