package restore

import (
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// refuseTree returns what of the relations between processes can't be made again.
func refuseTree(processes []image.Process) (refusals []api.Refusal) {
	refuse := func(p *image.Process, format string, args ...any) {
		refusals = append(refusals, notRestorable(fmt.Sprintf("process %d", p.PID), fmt.Sprintf(format, args...)))
	}
	ids := make(map[int]int) // of all threads: the process
	for i := range processes {
		p := &processes[i]
		for j := range p.Threads {
			tid := p.Threads[j].TID
			if other, taken := ids[tid]; taken && other != p.PID {
				refuse(p, "the image has thread %d in process %d, too", tid, other)
			}
			ids[tid] = p.PID
		}
		if i == 0 {
			continue
		}
		parent := indexOf(processes[:i], p.Parent)
		if parent < 0 {
			refuse(p, "its parent %d does not stand before it in the image", p.Parent)
			continue
		}
		// A child is in its parent's session, or leads its own.
		if session := sessionOf(processes, i); session != p.PID && session != sessionOf(processes, parent) {
			refuse(p, "it is in session %d, and its parent in %d", session, sessionOf(processes, parent))
		}
		group := groupOf(processes, i)
		leader := indexOf(processes, group)
		switch {
		case group == p.PID:
		case leader < 0:
			refuse(p, "process %d, which led its process group, has ended", group)
		case groupOf(processes, leader) != group || sessionOf(processes, leader) != sessionOf(processes, i):
			refuse(p, "process %d does not lead its process group", group)
		}
		if session := sessionOf(processes, i); session == p.PID && group != p.PID {
			refuse(p, "it leads a session, and is in the process group of %d", group)
		}
	}
	return refusals
}

// sessionOf is the session that a process is to be in: the root leads one of its own, in
// the place of the one that it was in.
func sessionOf(of []image.Process, i int) int {
	if of[i].Session == of[0].Session {
		return of[0].PID
	}
	return of[i].Session
}

// groupOf is the group that a process is to be in: the root leads one of its own, in
// the place of the one that it was in.
func groupOf(of []image.Process, i int) int {
	if of[i].Group == of[0].Group {
		return of[0].PID
	}
	return of[i].Group
}

// indexOf returns the place of a process among those of the image.
func indexOf(processes []image.Process, pid int) int {
	return slices.IndexFunc(processes, func(p image.Process) bool { return p.PID == pid })
}
