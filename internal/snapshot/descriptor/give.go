package descriptor

import (
	"fmt"
	"os"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/tracee"
)

const (
	sysClose      = 3
	sysFcntl      = 72
	sysDup3       = 292
	sysPidfdOpen  = 434
	sysPidfdGetfd = 438

	fcntlSetFD             = 2
	fcntlDupCloexec        = 1030
	closeOnExec     uint64 = 0o2000000
)

// Give lets a process that is held take its descriptors, each under its number, and
// makes there what can't be made elsewhere. What the process has open already stays,
// unless its number is one of the image's. It must be allowed to trace vos, and its
// limit of descriptors must be above all numbers.
func (o *Opened) Give(p remote.Process, process *image.Process) error {
	if len(process.Descriptors) == 0 {
		return nil
	}
	target, err := procfs.Open(p.PID())
	if err != nil {
		return err
	}
	defer target.Close()
	if err := o.openProcess(p.PID(), process); err != nil {
		return err
	}
	source, err := o.reach(p, process)
	if err != nil {
		return err
	}
	numbers, err := target.DescriptorNumbers()
	if err != nil {
		return err
	}
	calls := o.pulls(p, source, numbers, process.Descriptors)
	calls.add(sysClose, uint64(source))
	if err := calls.run(); err != nil {
		return fmt.Errorf("let process %d take its descriptors: %w", p.PID(), err)
	}
	return o.wire(p, process)
}

// reach opens a pidfd of vos in the process, above all numbers of the image.
func (o *Opened) reach(p remote.Process, process *image.Process) (int, error) {
	open := tracee.Call{Number: sysPidfdOpen, Args: [6]uint64{uint64(os.Getpid())}}
	results, err := p.Run([]tracee.Call{open})
	if err == nil {
		err = open.Err(results[0])
	}
	if err != nil {
		return 0, fmt.Errorf("open a pidfd of vos in process %d: %w", p.PID(), err)
	}
	highest := process.Descriptors[len(process.Descriptors)-1].Number
	up := tracee.Call{Number: sysFcntl, Args: [6]uint64{results[0], fcntlDupCloexec, uint64(highest) + 1}}
	moved, err := p.Run([]tracee.Call{up, {Number: sysClose, Args: [6]uint64{results[0]}}})
	if err == nil {
		err = up.Err(moved[0])
	}
	if err != nil {
		return 0, fmt.Errorf("make room for %d descriptors in process %d: %w", highest+2, p.PID(), err)
	}
	return int(moved[0]), nil
}

// pulls returns the system calls that take the descriptors. A file is taken under the
// lowest number that is free, copied to where it belongs, and closed there if that is
// none of its own.
func (o *Opened) pulls(p remote.Process, source int, numbers []int, descriptors []image.Descriptor) *batch {
	calls := &batch{process: p}
	used := map[int]bool{}
	for _, n := range numbers {
		used[n] = true
	}
	files := map[int][]image.Descriptor{}
	var order []int
	for _, d := range descriptors {
		if files[d.File] == nil {
			order = append(order, d.File)
		}
		files[d.File] = append(files[d.File], d)
	}
	lowest := 0
	for _, file := range order {
		for used[lowest] {
			lowest++
		}
		calls.returns(uint64(lowest), sysPidfdGetfd, uint64(source), uint64(o.files[file]), 0)
		stays := false
		for _, d := range files[file] {
			flags := uint64(0)
			if d.OnClose {
				flags = closeOnExec
			}
			switch {
			case d.Number != lowest:
				calls.returns(uint64(d.Number), sysDup3, uint64(lowest), uint64(d.Number), flags)
			case !d.OnClose: // it is taken with the flag set
				calls.add(sysFcntl, uint64(lowest), fcntlSetFD, 0)
			}
			stays = stays || d.Number == lowest
			used[d.Number] = true
		}
		if !stays {
			calls.add(sysClose, uint64(lowest))
		}
	}
	return calls
}

// wire makes what is made in the process itself.
func (o *Opened) wire(p remote.Process, process *image.Process) error {
	done := map[int]bool{}
	for _, d := range process.Descriptors {
		if done[d.File] {
			continue
		}
		done[d.File] = true
		f := &o.image.Files[d.File]
		var err error
		if k, ok := kinds[handle.Kind(f.Kind)].(wired); ok {
			err = k.wire(o, p, d.File, d.Number, process)
		}
		if err == nil {
			err = own(f, p, process, d.Number)
		}
		if err != nil {
			return fmt.Errorf("restore %s: %w", subject(process.PID, d.Number), err)
		}
	}
	return nil
}
