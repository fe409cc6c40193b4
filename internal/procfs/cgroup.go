package procfs

import (
	"strings"
)

// A Cgroup tells which service or container a process belongs to, as read from
// the path of its control group. Names are those that the tools print.
type Cgroup struct {
	Path      string // of cgroup v2, else of systemd's hierarchy, else the first; "/" is the root
	Unit      string // systemd's unit, "nginx.service", "session-3.scope"; "" is none
	UserUnit  string // the unit of a user's own systemd, below user@UID.service
	Container string // the id of the innermost container, as its runtime names it
	Runtime   string // docker, containerd, podman, cri-o, lxc, … ; "" where the path does not tell
}

// Cgroup reads /proc/PID/cgroup, cgroups(7). Anyone may. Paths start at the
// root of the reader's cgroup namespace: inside of a container they tell
// little.
func (p *Process) Cgroup() (c Cgroup, err error) {
	err = p.read("cgroup", func(text []byte) error {
		c = ParseCgroup(string(text))
		return nil
	})
	return c, err
}

// A CgroupPlace is a place in one hierarchy.
type CgroupPlace struct {
	Controllers string // of version 1, "cpu,cpuacct", "name=systemd"; "" is version 2
	Path        string
}

// Cgroups reads /proc/PID/cgroup: the places in all hierarchies. Paths are as Cgroup's.
func (p *Process) Cgroups() (all []CgroupPlace, err error) {
	err = p.read("cgroup", func(text []byte) error {
		all = parseCgroups(string(text))
		return nil
	})
	return all, err
}

func parseCgroups(text string) (all []CgroupPlace) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) == 3 && strings.HasPrefix(parts[2], "/") {
			all = append(all, CgroupPlace{Controllers: parts[1], Path: strings.TrimSuffix(parts[2], deletedMark)})
		}
	}
	return all
}

// ParseCgroup reads lines of "hierarchy-id:controllers:path". A v2 hierarchy is
// number 0 without controllers; on hybrid machines it may be unused ("/"),
// and systemd's own v1 hierarchy tells the unit.
func ParseCgroup(text string) Cgroup {
	var c Cgroup
	rank := 0 // of the line that gave Path
	for line := range strings.Lines(text) {
		// A cgroup is a directory: its name can't have a newline (the kernel
		// refuses them) but may well have a colon.
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		id, controllers := parts[0], parts[1]
		// What a dying cgroup's processes show.
		path := strings.TrimSuffix(parts[2], deletedMark)
		lineRank := 1
		switch {
		case path == "/":
		case id == "0" && controllers == "":
			lineRank = 4
		case controllers == "name=systemd":
			lineRank = 3
		default:
			lineRank = 2
		}
		if lineRank > rank {
			rank, c.Path = lineRank, path
		}
		if c.Container == "" {
			c.Container, c.Runtime = ContainerOf(path)
		}
	}
	c.Unit, c.UserUnit = UnitsOf(c.Path)
	return c
}

// unitSuffixes are the types of units that own processes, systemd.unit(5).
var unitSuffixes = [...]string{".service", ".scope", ".socket", ".mount", ".swap"}

// UnitsOf returns the systemd unit that a cgroup path belongs to: the first
// component below the slices. What is below the unit is its own affair
// (Delegate=, see systemd.resource-control(5)), except for user@UID.service,
// below which a user's own systemd starts again, with slices.
func UnitsOf(path string) (unit, userUnit string) {
	unit, below := firstUnit(path)
	if strings.HasPrefix(unit, "user@") && strings.HasSuffix(unit, ".service") {
		userUnit, _ = firstUnit(below)
	}
	return unit, userUnit
}

func firstUnit(path string) (unit, below string) {
	for rest := strings.TrimPrefix(path, "/"); rest != ""; {
		var component string
		component, rest, _ = strings.Cut(rest, "/")
		// A name that the kernel keeps for itself has "_" before it.
		component = strings.TrimPrefix(component, "_")
		if name, isSlice := strings.CutSuffix(component, ".slice"); isSlice && name != "" {
			continue
		}
		for _, suffix := range unitSuffixes {
			if name, found := strings.CutSuffix(component, suffix); found && validUnitName(name) {
				return component, rest
			}
		}
		return "", rest
	}
	return "", ""
}

// validUnitName checks against the characters that systemd allows in a unit's
// name; others come escaped as \xAB.
func validUnitName(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(`:-_.\@`, c) >= 0:
		default:
			return false
		}
	}
	return name != "" && name[0] != '@' && name[0] != '.'
}

// scopePrefixes are what runtimes put before a container's id where systemd
// makes the cgroup ("docker-ID.scope") or their own name is kept in the path.
var scopePrefixes = [...]struct{ prefix, runtime string }{
	{"docker-", "docker"},
	{"cri-containerd-", "containerd"},
	{"containerd-", "containerd"},
	{"nerdctl-", "containerd"},
	{"libpod-", "podman"},
	{"crio-", "cri-o"},
	{"buildkit-", "buildkit"},
}

// parentRuntimes are the directories that runtimes use where they make the
// cgroup themselves ("/docker/ID"). Kubernetes leaves the runtime open.
var parentRuntimes = map[string]string{
	"docker": "docker", "libpod_parent": "podman", "libpod": "podman", "actions_job": "docker",
}

// ContainerOf returns the id of the innermost container that a cgroup path
// belongs to, and the runtime where the path tells it. Monitors of containers
// (conmon) run beside them and do not count.
func ContainerOf(path string) (id, runtime string) {
	parent := ""
	for component := range strings.SplitSeq(path, "/") {
		// "slice:runtime:id": the systemd notation where cgroupfs was meant.
		name := component
		if fields := strings.Split(component, ":"); len(fields) == 3 {
			name = fields[1] + "-" + fields[2]
		}
		name, _ = strings.CutSuffix(name, ".scope")
		found := ""
		switch {
		case isContainerID(name):
			found, runtime = name, parentRuntimes[parent]
		case parent == "lxc" && name != "":
			found, runtime = name, "lxc"
		case strings.HasPrefix(name, "lxc.payload."):
			found, runtime = strings.TrimPrefix(name, "lxc.payload."), "lxc"
		case isTaskID(name) && strings.HasPrefix(path, "/ecs/"):
			found, runtime = name, "ecs"
		default:
			for _, scope := range scopePrefixes {
				if rest, cut := strings.CutPrefix(name, scope.prefix); cut && isContainerID(rest) {
					found, runtime = rest, scope.runtime
				}
			}
		}
		if found != "" {
			id = found
		}
		parent = component
	}
	return id, runtime
}

// isContainerID recognises 64 lower-case hexadecimal digits, the id of every
// OCI runtime's engine.
func isContainerID(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// isTaskID recognises the ids of containers of AWS Fargate: 32 hexadecimal
// digits, a hyphen and a decimal number.
func isTaskID(name string) bool {
	task, number, found := strings.Cut(name, "-")
	return found && len(task) == 32 && strings.Trim(task, "0123456789abcdef") == "" &&
		number != "" && strings.Trim(number, "0123456789") == ""
}
