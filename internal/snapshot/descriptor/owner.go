package descriptor

import (
	"encoding/binary"
	"fmt"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
)

// Whom a description tells of its readiness by a signal (F_SETOWN, F_SETSIG, O_ASYNC)
// is kept if that is one of the program's processes.

const (
	fcntlSetSignal  = 10 // F_SETSIG
	fcntlSetOwnerEx = 15 // F_SETOWN_EX
	fcntlSetFlags   = 4
	ownerProcess    = 1 // F_OWNER_PID

	flagAsync handle.Flags = 0o20000
)

// keepOwner writes down who is told.
func (d *dumping) keepOwner(h *handle.Handle, raw kernel.Raw, f *image.File) error {
	if h.Flags&handle.FlagPath != 0 {
		return nil
	}
	owner, err := raw.Owner()
	if err != nil {
		return err
	}
	async := h.Flags & flagAsync
	if owner.ID == 0 && owner.Signal == 0 && async == 0 {
		return nil
	}
	if owner.ID != 0 && (owner.Type != ownerProcess || !d.program[owner.ID]) {
		return refusal(codeSignal, h, fmt.Sprintf("%s, and it tells thread, process or group %d by a signal when it is ready", leadsTo(h), owner.ID), "none is known")
	}
	f.Owner = &image.Owner{Type: owner.Type, ID: owner.ID, Signal: owner.Signal}
	f.Flags |= uint32(async)
	return nil
}

// own lets the process that was told be told.
func own(f *image.File, p remote.Process, process *image.Process, number int) error {
	if f.Owner == nil {
		return nil
	}
	b := batch{process: p}
	if f.Owner.Signal != 0 {
		b.add(sysFcntl, uint64(number), fcntlSetSignal, uint64(f.Owner.Signal))
	}
	if f.Owner.ID != 0 {
		who := binary.NativeEndian.AppendUint32(nil, ownerProcess)
		id := f.Owner.ID
		if id == process.PID {
			id = p.PID()
		}
		who = binary.NativeEndian.AppendUint32(who, uint32(id))
		b.add(sysFcntl, uint64(number), fcntlSetOwnerEx, b.place(who))
	}
	if handle.Flags(f.Flags)&flagAsync != 0 {
		b.add(sysFcntl, uint64(number), fcntlSetFlags, uint64(f.Flags&settable)|uint64(flagAsync))
	}
	return b.run()
}
