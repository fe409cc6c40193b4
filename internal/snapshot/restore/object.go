package restore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Kinds of image.Object.
const (
	objectShared = "shared"
	objectMemfd  = "memfd"
	objectSysV   = "sysv"
	objectFile   = "file"
)

// makeObjects makes the memory that mappings or descriptors share, as open files of vOS
// with all pages, and returns how many bytes these are.
func (p *process) makeObjects(source Source, objects []image.Object) (files []*os.File, total uint64, err error) {
	for i := range objects {
		file, bytes, err := p.makeObject(source, &objects[i])
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("restore shared memory %q: %w", objects[i].Name, err), closeAll(files))
		}
		files = append(files, file)
		total += bytes
	}
	return files, total, nil
}

func (p *process) makeObject(source Source, o *image.Object) (_ *os.File, total uint64, err error) {
	open := p.openShared
	switch o.Kind {
	case objectMemfd:
		open = openMemfd
	case objectFile:
		open = openDeleted
	case objectSysV:
		open = func(o *image.Object) (*os.File, error) { return p.openSegment(o, source.Image().Machine.BootID) }
	}
	file, err := open(o)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	buffer := make([]byte, pieceBytes)
	for _, run := range o.Pages {
		place := run.Place
		for at, left := run.Start, run.Count*pageSize; left > 0; {
			b := buffer[:min(left, pieceBytes)]
			if err := source.ReadPages(place, b); err != nil {
				return nil, 0, fmt.Errorf("read pages of the image: %w", err)
			}
			n := uint64(len(b))
			within := b[:min(n, o.Size-min(at, o.Size))] // the last page may be a part of one
			if _, err := file.WriteAt(within, int64(at)); err != nil {
				return nil, 0, err
			}
			at, left, total = at+n, left-n, total+n
			place.Offset += n
		}
	}
	if o.Kind == objectFile {
		settled, err := settleDeleted(o, file)
		return settled, total, err
	}
	return file, total, nil
}

// sealObjects seals those that were: when they are mapped.
func sealObjects(objects []image.Object, files []*os.File) error {
	for i, o := range objects {
		if o.Seals != 0 {
			if err := kernel.AddSeals(files[i], int(o.Seals)); err != nil {
				return err
			}
		}
	}
	return nil
}

const allowSealing = 0x2 // MFD_ALLOW_SEALING

func openMemfd(o *image.Object) (_ *os.File, err error) {
	flags := int(o.Flags)
	if o.Seals != 0 {
		flags |= allowSealing
	}
	file, err := kernel.MemoryFile(o.Name, flags)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := file.Truncate(int64(o.Size)); err != nil {
		return nil, err
	}
	if o.Mode != 0 {
		return file, file.Chmod(os.FileMode(o.Mode & 0o777))
	}
	return file, nil
}

// openShared makes shared anonymous memory. Only mapping it makes it, so the process
// does that, at any place, and vOS opens what it got.
func (p *process) openShared(o *image.Object) (*os.File, error) {
	b := p.batch()
	size := (o.Size + pageSize - 1) &^ (pageSize - 1)
	b.add("map shared memory", syscall.SYS_MMAP, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_SHARED|syscall.MAP_ANONYMOUS|mapNoReserve, noFile, 0)
	results, err := b.run()
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(fmt.Sprintf("/proc/%d/map_files/%x-%x", p.pid, results[0], results[0]+size), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	b.add("unmap shared memory", syscall.SYS_MUNMAP, results[0], size)
	if _, err := b.run(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
