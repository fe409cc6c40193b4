package descriptor

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// handleRoots returns where the file systems that a process sees are mounted, by
// device: through these a file handle is turned into a file.
func handleRoots(p *procfs.Process) (map[uint64][]string, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", p.PID()))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	roots := map[uint64][]string{}
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime …, with octal escapes in the paths
		fields := strings.Fields(scanner.Text())
		if len(fields) < 5 {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("mountinfo has device %.40q", fields[2])
		}
		device := kernel.DeviceNumber(uint32(a), uint32(b))
		roots[device] = append(roots[device], fmt.Sprintf("/proc/%d/root", p.PID())+unescape(fields[4]))
	}
	return roots, scanner.Err()
}

// unescape undoes the kernel's \040 for a space, and the like.
func unescape(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+3 < len(path) {
			if c, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}
