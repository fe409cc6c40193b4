package restore

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

// takeTerminal makes a pseudo terminal the controlling one of a process that leads a
// session. What it bears has it, too.
func (p *process) takeTerminal(of *descriptor.Terminals, number int) error {
	return p.withSlave(of, number, func(b *batch, fd uint64) error {
		b.add("take a controlling terminal", syscall.SYS_IOCTL, fd, syscall.TIOCSCTTY, 0)
		return nil
	})
}

// withSlave adds calls to a batch, for which the process has the other end of a terminal
// open.
func (p *process) withSlave(of *descriptor.Terminals, number int, add func(b *batch, fd uint64) error) (err error) {
	slave, err := of.Slave(number)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slave.Close()) }()
	numbers, err := p.pull([]*os.File{slave})
	if err != nil {
		return err
	}
	b := p.batch()
	if err := add(b, numbers[0]); err != nil {
		return err
	}
	b.add("close a terminal", syscall.SYS_CLOSE, numbers[0])
	_, err = b.run()
	return err
}

// setForeground gives the terminals their process group in the foreground, by who leads
// the session. A group that has ended stays without.
func (p *Plan) setForeground(built []*process, img *image.Image) error {
	for i := range img.Files {
		t := img.Files[i].Terminal
		if t == nil || !t.Master || t.Foreground <= 0 {
			continue
		}
		group := t.Foreground
		if group == img.Processes[0].Group {
			group = img.Processes[0].PID
		}
		for n, b := range built {
			of := &img.Processes[n]
			if of.Terminal == nil || *of.Terminal != t.Index || sessionOf(img.Processes, n) != of.PID {
				continue
			}
			err := b.withSlave(p.terminals, t.Index, func(calls *batch, fd uint64) error {
				at, err := calls.place(binary.LittleEndian.AppendUint32(nil, uint32(group)))
				calls.try(syscall.SYS_IOCTL, fd, syscall.TIOCSPGRP, at)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
