package dump

import (
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// maxMembers bounds how many processes one image holds.
const maxMembers = 4096

// grow finds all that descends from the root, parents before their children.
func (p *Plan) grow() error {
	for i := 0; i < len(p.members); i++ {
		m := p.members[i]
		children, err := m.Process.Children()
		if err != nil {
			return err
		}
		for _, pid := range children {
			child, err := procfs.Open(pid)
			if errors.Is(err, procfs.ErrGone) {
				continue // it has ended, and was reaped
			}
			if err != nil {
				return err
			}
			m.children = append(m.children, pid)
			stat, err := child.Stat()
			if err != nil && !errors.Is(err, procfs.ErrGone) {
				return errors.Join(err, child.Close())
			}
			if err == nil && stat.Zombie() && stat.Threads <= 1 {
				p.ended = append(p.ended, &ended{child, m.Process.PID()})
				continue
			}
			p.members = append(p.members, &member{Process: child, parent: m.Process.PID(), options: m.options, model: m.model})
		}
		if len(p.members)+len(p.ended) > maxMembers {
			return fmt.Errorf("look at what descends from process %d: more than %d processes", p.Process.PID(), maxMembers)
		}
	}
	return nil
}

// Close lets go of the processes that descend from the root. That is the caller's.
func (p *Plan) Close() error {
	var errs []error
	for _, m := range p.members[1:] {
		errs = append(errs, m.Process.Close())
	}
	for _, e := range p.ended {
		errs = append(errs, e.Close())
	}
	p.members, p.ended = p.members[:1], nil
	return errors.Join(errs...)
}

// lookAtSharers refuses memory that processes have mapped which are not of the program.
func (p *Plan) lookAtSharers() (refusals []api.Refusal, err error) {
	own := make(map[int]bool)
	objects := 0
	for _, m := range p.members {
		own[m.Process.PID()] = true
		objects += len(m.memory.objects)
	}
	if objects == 0 {
		return nil, nil
	}
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if own[pid] {
			continue
		}
		other, err := procfs.Open(pid)
		if err != nil {
			continue // it has ended
		}
		maps, err := other.Maps()
		other.Close()
		if err != nil {
			continue // likewise, or a thread of the kernel
		}
		for _, m := range p.members {
			for _, o := range m.memory.objects {
				if o.mappedBy(maps) {
					refusals = append(refusals, refused(codeSharedWith, mappingSubject(m.Process.PID(), o.mapping.Start, o.mapping.End),
						fmt.Sprintf("process %d has the same memory mapped", pid), "end the other process first"))
					return refusals, nil
				}
			}
		}
	}
	return nil, nil
}

// mappedBy reports whether mappings are of memory that the object has in common with
// them. A segment of System V stays theirs, and what each has of a file for itself is its
// own.
func (o *object) mappedBy(maps []procfs.Mapping) bool {
	if o.Kind == "sysv" || o.Kind == "file" && !o.shared {
		return false
	}
	for i := range maps {
		if maps[i].Inode == o.inode && kernel.DeviceNumber(maps[i].DevMajor, maps[i].DevMinor) == o.device {
			return true
		}
	}
	return false
}
