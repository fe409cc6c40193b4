package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Namespaces are the inode numbers of a process's namespaces, namespaces(7):
// two processes are in the same one where they are equal. One that the kernel
// does not have is 0.
type Namespaces struct {
	Cgroup, IPC, Mount, Net, PID, PIDForChildren, Time, TimeForChildren, User, UTS uint64
}

// Namespaces reads /proc/PID/ns. It needs the right to read the process.
func (p *Process) Namespaces() (Namespaces, error) {
	var n Namespaces
	for _, ns := range [...]struct {
		name  string
		inode *uint64
	}{
		{"cgroup", &n.Cgroup},
		{"ipc", &n.IPC},
		{"mnt", &n.Mount},
		{"net", &n.Net},
		{"pid", &n.PID},
		{"pid_for_children", &n.PIDForChildren},
		{"time", &n.Time},
		{"time_for_children", &n.TimeForChildren},
		{"user", &n.User},
		{"uts", &n.UTS},
	} {
		link, err := p.dir.ReadLink("ns/" + ns.name)
		if errors.Is(err, fs.ErrNotExist) && p.hasNamespaces() {
			continue
		}
		if err == nil {
			*ns.inode, err = ParseNamespace(link)
		}
		if err != nil {
			return Namespaces{}, p.failed("read namespaces of", err)
		}
	}
	return n, nil
}

// hasNamespaces tells a kernel without a certain namespace from a process that
// has exited, and so left all of them.
func (p *Process) hasNamespaces() bool {
	_, err := p.dir.ReadLink("ns/mnt")
	return err == nil
}

// ParseNamespace reads the inode number from a link such as "mnt:[4026531841]".
func ParseNamespace(link string) (uint64, error) {
	_, number, found := strings.Cut(link, ":[")
	number, closed := strings.CutSuffix(number, "]")
	inode, ok := parseUnsigned([]byte(number), 10)
	if !found || !closed || !ok {
		return 0, fmt.Errorf("parse namespace %.60q: it is not name:[number]", link)
	}
	return inode, nil
}

// TimeOffsets are what a time namespace adds to the machine's clocks,
// time_namespaces(7).
type TimeOffsets struct{ Monotonic, Boottime time.Duration }

// TimeOffsets reads /proc/PID/timens_offsets: the offsets of the time
// namespace of the process's children. They are zero on a kernel without time
// namespaces.
func (p *Process) TimeOffsets() (o TimeOffsets, err error) {
	err = p.read("timens_offsets", func(text []byte) (err error) {
		o, err = ParseTimeOffsets(text)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return TimeOffsets{}, nil
	}
	return o, err
}

// ParseTimeOffsets reads lines of "clock seconds nanoseconds".
func ParseTimeOffsets(text []byte) (TimeOffsets, error) {
	var o TimeOffsets
	for line := range bytes.Lines(text) {
		n := numbers{rest: line}
		clock := string(n.field())
		seconds, nanoseconds := n.signed(), n.signed()
		const most = int64(1<<63-1) / int64(time.Second)
		if n.err != nil || seconds >= most || seconds <= -most || nanoseconds < 0 || nanoseconds >= int64(time.Second) {
			return TimeOffsets{}, fmt.Errorf("parse timens_offsets: %.60q", line)
		}
		offset := time.Duration(seconds)*time.Second + time.Duration(nanoseconds)
		switch clock {
		case "monotonic":
			o.Monotonic = offset
		case "boottime":
			o.Boottime = offset
		}
	}
	return o, nil
}
