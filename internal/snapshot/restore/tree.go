package restore

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/snapshot/lineage"
)

// lookAtTree plans how the processes are born, and returns what of the relations between
// them can't be made again.
func (p *Plan) lookAtTree(img *image.Image) (refusals []api.Refusal) {
	p.ids = make(map[int]bool)
	owner := make(map[int]int) // of threads: the process
	for i := range img.Processes {
		of := &img.Processes[i]
		for j := range of.Threads {
			tid := of.Threads[j].TID
			if other, taken := owner[tid]; taken && other != of.PID {
				refusals = append(refusals, notRestorable(fmt.Sprintf("process %d", of.PID), fmt.Sprintf("the image has thread %d in process %d, too", tid, other)))
			}
			owner[tid], p.ids[tid] = of.PID, true
		}
	}
	for i := range img.Ended {
		p.ids[img.Ended[i].PID] = true
	}
	p.births = lineage.Of(img.Processes, img.Ended)
	for _, r := range p.births.Refused {
		refusals = append(refusals, notRestorable(fmt.Sprintf("process %d", r.PID), r.Detail))
	}
	for _, s := range p.births.StandIns {
		p.ids[s.PID] = true
	}
	return refusals
}

// family are the processes that are to be born.
func (p *Plan) family(t *tracer) *family {
	f := &family{tracer: t, plan: p, births: p.births, members: make(map[int]*process)}
	for id := range p.ids {
		f.spare = max(f.spare, id)
	}
	return f
}

// sessionOf is the session that a process is to be in: the root leads one of its own, in
// the place of the one that it was in.
func sessionOf(of []image.Process, i int) int {
	if of[i].Session == of[0].Session {
		return of[0].PID
	}
	return of[i].Session
}
