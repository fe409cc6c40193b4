package api

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// A Target names what a command acts on: [node/]program[:module].
//
// Program is a pid, a process name, the path of an executable, a systemd unit
// ("nginx.service") or a container id. Module is a soname, a file name or a
// path. A name that matches several processes means all of them.
type Target struct {
	Node    string // machine of the community; "" is this one
	Program string // "" with All
	Module  string // "" is every module
	All     bool   // every program of the machine
}

// ParseTarget reads the text form of a target. A path may contain slashes and
// a module path may follow the colon, so the node is only split off where the
// text before the first slash is not empty and the program is not a path.
func ParseTarget(text string) (Target, error) {
	var t Target
	rest := text
	if program, module, found := strings.Cut(rest, ":"); found {
		if module == "" {
			return Target{}, fmt.Errorf("target %q: a module name is missing after the colon", text)
		}
		rest, t.Module = program, module
	}
	if i := strings.IndexByte(rest, '/'); i > 0 {
		t.Node, rest = rest[:i], rest[i+1:]
	}
	if rest == "" {
		return Target{}, fmt.Errorf("target %q: the program is missing; write PROGRAM, PROGRAM:MODULE or NODE/PROGRAM", text)
	}
	t.Program = rest
	return t, nil
}

// PID returns the process id that the program is written as, if it is one.
func (t Target) PID() (pid int, ok bool) {
	pid, err := strconv.Atoi(t.Program)
	return pid, err == nil && pid > 0
}

// MatchesModule reports whether a module with this soname and path is meant:
// no module named, or its soname, its path, or its file name given.
func (t Target) MatchesModule(soname, file string) bool {
	if t.Module == "" {
		return true
	}
	return t.Module == soname || t.Module == file || t.Module == path.Base(file)
}

func (t Target) String() string {
	var b strings.Builder
	if t.Node != "" {
		b.WriteString(t.Node + "/")
	}
	if t.All {
		b.WriteString("--all")
	} else {
		b.WriteString(t.Program)
	}
	if t.Module != "" {
		b.WriteString(":" + t.Module)
	}
	return b.String()
}
