package vex

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// resolve returns the processes that a target means, by ascending pid. The
// caller closes them.
//
// A name is a process's name, its executable's name or path, a systemd unit or
// the begin of a container's id (12 digits or more). For all programs of the
// machine that of vos itself is left out.
func resolve(t api.Target) (found []*procfs.Process, err error) {
	if t.Node != "" {
		return nil, fmt.Errorf("reach node %s: %w: this machine belongs to no community", t.Node, api.ErrNotSupported)
	}
	if pid, ok := t.PID(); ok {
		p, err := procfs.Open(pid)
		if err != nil {
			return nil, classify(err)
		}
		return []*procfs.Process{p}, nil
	}
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		p, err := procfs.Open(pid)
		if err != nil {
			continue // it has ended, or may not even be seen
		}
		if pid != os.Getpid() && isProgram(p) && (t.All || t.Program == "" || matches(p, t.Program)) {
			found = append(found, p)
			continue
		}
		p.Close()
	}
	if len(found) == 0 && !t.All && t.Program != "" {
		return nil, fmt.Errorf("find program %q: %w: no process of this name, executable, unit or container runs", t.Program, api.ErrGone)
	}
	return found, nil
}

// isProgram reports whether a process is neither a kernel thread nor a zombie.
func isProgram(p *procfs.Process) bool {
	stat, err := p.Stat()
	return err == nil && !stat.KernelThread() && (!stat.Zombie() || stat.Threads > 1)
}

const shortContainerID = 12

func matches(p *procfs.Process, name string) bool {
	if stat, err := p.Stat(); err == nil && stat.Command == name {
		return true
	}
	if exe, err := p.Executable(); err == nil && (exe.Path == name || path.Base(exe.Path) == name) {
		return true
	}
	isUnit := strings.Contains(name, ".")
	isContainer := len(name) >= shortContainerID && strings.Trim(name, "0123456789abcdef") == ""
	if !isUnit && !isContainer {
		return false
	}
	group, err := p.Cgroup()
	if err != nil {
		return false
	}
	return isUnit && (group.Unit == name || group.UserUnit == name) ||
		isContainer && strings.HasPrefix(group.Container, name)
}
