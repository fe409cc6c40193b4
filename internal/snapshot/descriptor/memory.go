package descriptor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A memory is a memfd, kept as an Object with all that is in it. One that is mapped,
// too, is the Object of the mappings.
type memory struct{}

const (
	sealSeal = 1    // F_SEAL_SEAL
	sealExec = 0x20 // F_SEAL_EXEC

	memfdSealable = 2 // MFD_ALLOW_SEALING
	memfdNoExec   = 8 // MFD_NOEXEC_SEAL

	hugeFileSystem = 0x958458f6 // HUGETLBFS_MAGIC
)

func (memory) look(l *looking, h *handle.Handle) []api.Refusal {
	if others := l.outside(h.Peers); len(others) > 0 {
		return []api.Refusal{refusal(codeShared, h, leadsTo(h)+", which "+holdersText(others)+" has open, too", inheritRemedy(h.FD))}
	}
	return nil
}

func (memory) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	if d.store.Mapped != nil {
		if i, ok := d.store.Mapped(h.Device, h.Inode); ok {
			f.Object = i
			return nil
		}
	}
	if i, ok := d.memories[h.Inode]; ok {
		f.Object = i
		return nil
	}
	if magic, err := raw.FileSystem(); err != nil || magic == hugeFileSystem {
		return errors.Join(err, refusal(codeKind, h, leadsTo(h)+" of huge pages, which is not kept", "close it, and try again"))
	}
	object, err := keepMemory(h, raw, d.store)
	if err != nil {
		return err
	}
	f.Object = d.store.Objects + len(d.kept.Objects)
	d.memories[h.Inode] = f.Object
	d.kept.Objects = append(d.kept.Objects, *object)
	return nil
}

func keepMemory(h *handle.Handle, raw kernel.Raw, store Store) (*image.Object, error) {
	stat, err := raw.Stat()
	if err != nil {
		return nil, err
	}
	seals, err := raw.Seals()
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(strings.TrimPrefix(h.Link, "/memfd:"), " (deleted)")
	object := &image.Object{Kind: "memfd", Name: name, Size: uint64(stat.Size), Mode: stat.Permissions}
	switch {
	case seals&sealExec != 0:
		object.Flags, object.Seals = memfdNoExec, uint32(seals)
	case seals != sealSeal: // the seal alone is there where sealing was never allowed
		object.Flags, object.Seals = memfdSealable, uint32(seals)
	}
	object.Pages, err = keepContent(raw, stat.Size, store)
	return object, err
}

func (memory) plan(*planning, int) []api.Refusal { return nil }

func (memory) open(o *Opened, i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	if o.Object == nil {
		return -1, errors.New("the memory of the image's objects is not there")
	}
	file, err := o.Object(f.Object)
	if err != nil {
		return -1, fmt.Errorf("object %d: %w", f.Object, err)
	}
	copied, err := kernel.CopyRaw(file)
	if err != nil {
		return -1, err
	}
	defer copied.Close()
	raw, err := copied.Reopen(int(f.Flags) & statusFlags)
	if err != nil {
		return -1, err
	}
	if err := raw.SetOffset(f.Offset); err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}
