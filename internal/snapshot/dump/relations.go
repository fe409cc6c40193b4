package dump

import (
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/lineage"
)

// An ended process is one of the tree that its parent has not waited for.
type ended struct {
	*procfs.Process
	parent int
}

// lookAtEnded writes down those that have ended and were not waited for. Their parents
// may do so until they are held.
func (p *Plan) lookAtEnded() (all []image.Ended, err error) {
	for _, e := range p.ended {
		stat, err := e.Stat()
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		status, err := e.Status()
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, image.Ended{PID: e.PID(), Parent: e.parent, Group: stat.ProcessGrp, Session: stat.Session, Program: stat.Command,
			Status: uint32(stat.ExitStatus), ExitSignal: max(stat.ExitSignal, 0), UID: uint32(status.UIDs.Real), GID: uint32(status.GIDs.Real)})
	}
	return all, nil
}

// refuseRelations refuses what of the relations between processes can't be made again by
// births: a place in a session or group whose leader lives outside, or which others have
// in common, or that no order of births gives. What of these the root was in is to be its
// own.
func refuseRelations(processes []image.Process, ended []image.Ended) (refusals []api.Refusal, err error) {
	const remedy = "end it first, or start it anew"
	births := lineage.Of(processes, ended)
	for _, r := range births.Refused {
		code := codeSession
		if r.What == lineage.Group {
			code = codeGroup
		}
		refusals = append(refusals, refused(code, processSubject(r.PID), r.Detail, remedy))
	}
	if len(births.StandIns) == 0 {
		return refusals, nil
	}
	own := make(map[int]bool)
	for i := range processes {
		own[processes[i].PID] = true
	}
	for i := range ended {
		own[ended[i].PID] = true
	}
	gone := make(map[int]api.Code)
	for _, s := range births.StandIns {
		gone[s.PID] = codeSession
	}
	for _, pid := range births.Founders {
		if gone[pid] != "" {
			gone[pid] = codeGroup
		}
	}
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if own[pid] {
			continue
		}
		r, err := outside(pid, gone)
		if err != nil {
			return nil, err
		}
		if r != nil {
			refusals = append(refusals, *r)
		}
	}
	return refusals, nil
}

// outside refuses a process that is not of the tree, and is in or has led a session or
// group that is to be made again.
func outside(pid int, gone map[int]api.Code) (_ *api.Refusal, err error) {
	p, err := procfs.Open(pid)
	if errors.Is(err, procfs.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	stat, err := p.Stat()
	if errors.Is(err, procfs.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, id := range []int{pid, stat.Session, stat.ProcessGrp} {
		if code := gone[id]; code != "" {
			what := "process group"
			if code == codeSession {
				what = "session"
			}
			return new(refused(code, processSubject(pid), fmt.Sprintf("it belongs to %s %d, as others of the program, and does not descend from its root", what, id), "end it first")), nil
		}
	}
	return nil, nil
}
