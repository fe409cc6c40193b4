package restore

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A groupMove puts a process into a control group.
type groupMove struct {
	pid   int
	group image.ControlGroup
	at    string // the group's directory
}

// lookAtGroups finds the control groups that the processes were in, notes those that are
// not to be had, and refuses frozen ones, in which nothing could be built. A process begins
// in those of vOS.
func (p *Plan) lookAtGroups(img *image.Image) (refusals []api.Refusal, err error) {
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, self.Close()) }()
	own, err := self.Cgroups()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts := hierarchiesOf(string(text))
	said := make(map[image.ControlGroup]bool)
	for i := range img.Processes {
		of := &img.Processes[i]
		for _, g := range of.ControlGroups {
			if slices.Contains(own, procfs.CgroupPlace{Controllers: g.Controllers, Path: g.Path}) {
				continue
			}
			at, detail := directoryOf(mounts, g)
			switch {
			case detail == "" && !frozen(at):
				p.groups = append(p.groups, groupMove{of.PID, g, at})
				continue
			case said[g]:
			case detail == "":
				refusals = append(refusals, api.Refusal{Code: codeFrozen, Subject: "control group " + g.Path, Detail: "it is frozen", Remedy: "thaw it: " + thawing(at)})
			default:
				p.Notes = append(p.Notes, outsideGroup(of.PID, g, detail, at))
			}
			said[g] = true
		}
	}
	return refusals, nil
}

// joinGroups puts the processes, which have nothing yet, into their control groups, so that
// what they get is counted there. It returns what could not be done.
func (p *Plan) joinGroups() (notes []string) {
	for _, m := range p.groups {
		if err := writeTo(path.Join(m.at, "cgroup.procs"), strconv.Itoa(m.pid)); err != nil {
			notes = append(notes, outsideGroup(m.pid, m.group, err.Error(), m.at))
		}
	}
	return notes
}

func writeTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}

// outsideGroup says that a process will not be in its control group.
func outsideGroup(pid int, g image.ControlGroup, detail, at string) string {
	of := ""
	if g.Controllers != "" {
		of = " (" + g.Controllers + ")"
	}
	text := fmt.Sprintf("process %d is in the control group of vos, and was in %s%s: %s", pid, g.Path, of, detail)
	if at != "" {
		text += fmt.Sprintf("; put it there: echo %d > %s", pid, path.Join(at, "cgroup.procs"))
	}
	return text
}

// A hierarchy is where control groups are mounted.
type hierarchy struct {
	options []string // of version 1: controllers, or name=…, among others; nil is version 2
	at      string   // the directory
	root    string   // which group is there
}

// hierarchiesOf finds the hierarchies in the text of /proc/PID/mountinfo.
func hierarchiesOf(mountinfo string) (all []hierarchy) {
	for line := range strings.Lines(mountinfo) {
		const root, at, fewest = 3, 4, 6
		before, behind, found := strings.Cut(line, " - ")
		fields, of := strings.Fields(before), strings.Fields(behind)
		if !found || len(fields) < fewest || len(of) < 3 {
			continue
		}
		h := hierarchy{at: fields[at], root: fields[root]}
		switch of[0] {
		case "cgroup":
			h.options = strings.Split(of[2], ",")
		case "cgroup2":
		default:
			continue
		}
		all = append(all, h)
	}
	return all
}

// directoryOf finds the directory of a control group; detail says why there is none. Where
// it could be is told with it.
func directoryOf(mounts []hierarchy, g image.ControlGroup) (at, detail string) {
	for _, h := range mounts {
		first, _, _ := strings.Cut(g.Controllers, ",") // a controller is in one hierarchy
		if g.Controllers == "" && h.options != nil || g.Controllers != "" && !slices.Contains(h.options, first) {
			continue
		}
		below, within := strings.CutPrefix(g.Path, strings.TrimSuffix(h.root, "/"))
		if !within || below != "" && below[0] != '/' {
			continue
		}
		at = path.Join(h.at, below)
		if info, err := os.Stat(at); err == nil && info.IsDir() {
			return at, ""
		}
	}
	if at != "" {
		return at, "it is not there any more"
	}
	return "", "its hierarchy is not mounted here"
}

// frozen reports whether what is in a control group stands still.
func frozen(at string) bool {
	// One of the two is there: a root group, which has none, is never frozen.
	events, _ := os.ReadFile(path.Join(at, "cgroup.events"))
	state, err := os.ReadFile(path.Join(at, "freezer.state"))
	return slices.Contains(strings.Split(string(events), "\n"), "frozen 1") || err == nil && strings.TrimSpace(string(state)) != "THAWED"
}

// thawing is a command that lets go on what is in a control group, where that itself was
// frozen and not one above it.
func thawing(at string) string {
	if _, err := os.Stat(path.Join(at, "freezer.state")); err == nil {
		return "echo THAWED > " + path.Join(at, "freezer.state")
	}
	return "echo 0 > " + path.Join(at, "cgroup.freeze")
}
