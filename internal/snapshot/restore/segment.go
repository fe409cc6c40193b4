package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A segment of System V shared memory stays when its program ends, as a file does. So
// there may be one already: it is taken, and gets the content of the image, if it is the
// one of the image, and nobody is attached. One that others had attached at the time of
// the checkpoint has to be there, and keeps its content.

const (
	shmReadOnly = 0o10000 // SHM_RDONLY
	shmExecute  = 0o100000

	mremapMayMove = 1
	mremapFixed   = 2
)

func segmentOf(o *image.Object) kernel.Segment {
	return kernel.Segment{ID: int(o.ID), Key: o.Key, Size: o.Size, Mode: o.Mode, UID: o.UID, GID: o.GID}
}

// foundSegment looks for the segment of the image. The error is a refusal where another one is
// in its place.
func foundSegment(o *image.Object, boot string) (there bool, err error) {
	refuse := func(detail, remedy string) error {
		return api.Refusal{Code: codeSegment, Subject: fmt.Sprintf("shared memory segment %d", o.ID), Detail: detail, Remedy: remedy}
	}
	const remove = "remove it, by ipcrm -m, if nothing needs it"
	now, err := kernel.StatSegment(int(o.ID))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if o.Outside {
			return false, refuse("others had it attached, and it is gone", "checkpoint them together")
		}
		if o.Key == 0 {
			return false, nil
		}
		if id, err := kernel.FindSegment(o.Key); err == nil {
			return false, refuse(fmt.Sprintf("its key %#x leads to segment %d", uint32(o.Key), id), remove)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		return false, nil
	case err != nil:
		return false, err
	}
	here, err := thisMachine()
	if err != nil {
		return false, err
	}
	switch {
	case now.Key != o.Key || now.Size != o.Size || here.bootID != boot:
		return false, refuse("another one has its id", remove)
	case !o.Outside && now.Attached > 0:
		return false, refuse("somebody is attached to it, and nobody was", "end who is (lsof, or /proc/PID/maps)")
	}
	return true, nil
}

// refuseSegments returns what speaks against attaching the image's segments.
func refuseSegments(img *image.Image) (refusals []api.Refusal, err error) {
	for i := range img.Objects {
		if img.Objects[i].Kind != objectSysV {
			continue
		}
		if _, err := foundSegment(&img.Objects[i], img.Machine.BootID); err != nil {
			found := api.Refusals(err)
			if found == nil {
				return nil, err
			}
			refusals = append(refusals, found...)
		}
	}
	return refusals, nil
}

// openSegment makes a segment, or takes the one that is there, and opens its content. It
// stays attached to vOS until the process is.
func (p *process) openSegment(o *image.Object, boot string) (*os.File, error) {
	there, err := foundSegment(o, boot)
	if err != nil {
		return nil, err
	}
	if !there {
		if err := kernel.MakeSegment(segmentOf(o)); err != nil {
			return nil, err
		}
		p.unmake = append(p.unmake, func() error {
			if _, err := kernel.StatSegment(int(o.ID)); errors.Is(err, fs.ErrNotExist) {
				return nil // it was to end with the process
			}
			return kernel.RemoveSegment(int(o.ID))
		})
	}
	file, detach, err := kernel.OpenSegment(int(o.ID))
	if err != nil {
		return nil, err
	}
	p.release = append(p.release, detach)
	if there && !o.Outside {
		err = kernel.Forget(file, int64((o.Size+pageSize-1)&^(pageSize-1)))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// removeSegments marks those segments as removed that were, when the process is attached.
func removeSegments(objects []image.Object) error {
	for i := range objects {
		if o := &objects[i]; o.Kind == objectSysV && o.Mode&kernel.SegmentRemoved != 0 && !o.Outside {
			if err := kernel.RemoveSegment(int(o.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// releaseAll lets go of what vOS holds.
func (p *process) releaseAll() error {
	var errs []error
	for _, release := range p.release {
		errs = append(errs, release())
	}
	p.release = nil
	return errors.Join(errs...)
}

// unmakeAll removes what was made for a process that has ended.
func (p *process) unmakeAll() error {
	var errs []error
	for _, unmake := range p.unmake {
		errs = append(errs, unmake())
	}
	p.unmake = nil
	return errors.Join(errs...)
}

// attachSegment adds the calls that map a part of a segment, where nothing else is mapped.
// All of it is attached in a gap first, as that is how the kernel attaches; the part is
// moved to its place.
func (p *process) attachSegment(b *batch, m *image.Mapping, o *image.Object, gap uint64) {
	size, part := (o.Size+pageSize-1)&^(pageSize-1), m.End-m.Start
	flags, protection := uint64(0), uint32(syscall.PROT_READ|syscall.PROT_WRITE)
	if !slices.Contains(m.VMFlags, "mw") {
		flags, protection = shmReadOnly, syscall.PROT_READ
	}
	if m.Protection&syscall.PROT_EXEC != 0 {
		flags, protection = flags|shmExecute, protection|syscall.PROT_EXEC
	}
	b.addAt("attach a shared memory segment at", gap, syscall.SYS_SHMAT, uint64(o.ID), gap, flags)
	b.addAt("move a part of it to", m.Start, syscall.SYS_MREMAP, gap+m.Offset, part, part, mremapMayMove|mremapFixed, m.Start)
	b.addAt("detach it at", gap, syscall.SYS_MUNMAP, gap, size)
	if m.Protection != protection {
		b.addAt("protect memory at", m.Start, syscall.SYS_MPROTECT, m.Start, part, uint64(m.Protection))
	}
}

// room returns where as many bytes are free of the mappings and of the arena.
func (p *process) room(mappings []image.Mapping, size uint64) (uint64, error) {
	at := uint64(lowestAddress)
	arena := image.Mapping{Start: p.main.arena.start, End: p.main.arena.end}
	for {
		free := true
		for _, m := range append([]image.Mapping{arena}, mappings...) {
			if at < m.End && m.Start < at+size {
				at, free = m.End, false
			}
		}
		switch {
		case at > addressLimit || size > addressLimit-at:
			return 0, fmt.Errorf("build process %d: no gap of %d KiB in its address space", p.pid, size>>10)
		case free:
			return at, nil
		}
	}
}
