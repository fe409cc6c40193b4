package procfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"

	"github.com/virtualizing-os/vos/internal/kernel"
)

var errElsewhere = errors.New("it is on a mount that neither the process nor vos sees")

// settleElsewhere looks again at a file that is not at its path, or has none in
// the process's root directory: its mount may be one that the process left
// behind, and then the path means another file there, or none.
func (p *Process) settleElsewhere(state *FileState, m *Mapping, mapped *os.File) {
	origin, err := kernel.FileOrigin(mapped)
	if err != nil {
		return
	}
	outside := errors.Is(state.Why, fs.ErrInvalid)
	if !outside && state.Change != FileUnknown && origin.Mount != 0 {
		seen, err := p.seesMount(origin.Mount)
		outside = err == nil && !seen
	}
	if outside && origin.Mount != 0 {
		if ownMount(origin.Mount) {
			state.OwnRoot = true
			p.compareAt(state, m, mapped, openAtOwnPath)
		} else if state.Why == nil {
			state.Change, state.Why = FileUnknown, p.failed("look up "+m.Path+" in", errElsewhere)
		}
	}
	if state.Change == FileReplaced || state.Change == FileDeleted {
		state.Born = origin.Born
	}
}

// seesMount reports whether a mount is in the process's namespace. A process with
// another root directory than that of its namespace is shown only the mounts
// below it, not the one that it stands in: there, all count as seen.
func (p *Process) seesMount(id uint64) (seen bool, err error) {
	if link, err := p.readSharedLink("root"); err != nil || link != "/" {
		return true, err
	}
	err = p.read("mountinfo", func(text []byte) error {
		seen = hasMount(text, id)
		return nil
	})
	return seen, err
}

// ownMount reports whether this process sees a mount.
func ownMount(id uint64) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && hasMount(text, id)
}

// hasMount looks for a mount in the text of a mountinfo file: each line begins
// with an id, proc_pid_mountinfo(5).
func hasMount(mountinfo []byte, id uint64) bool {
	for line := range bytes.Lines(mountinfo) {
		n := numbers{rest: line}
		if n.unsigned(10) == id && n.err == nil {
			return true
		}
	}
	return false
}

// openAtOwnPath opens (O_PATH) what is at a path for this process: maps writes
// the paths of files on mounts that the reader sees from the reader's root.
func openAtOwnPath(path string) (*os.File, error) {
	root, err := kernel.OpenDirectory("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenInRoot(path, kernel.PathOnly)
}
