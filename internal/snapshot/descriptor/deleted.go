package descriptor

import (
	"errors"
	"fmt"
	"path"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A file that no name leads to any more is kept with its content, and made again as a
// file without a name in the folder where it was, with the same owner, permissions and
// size. Descriptions of one file get one file again.

// lookAtDeleted returns what speaks against keeping such a file.
func (l *looking) lookAtDeleted(h *handle.Handle) []api.Refusal {
	if h.Kind != handle.KindFile {
		return []api.Refusal{refusal(codeDeleted, h, leadsTo(h)+", which no name leads to any more", "close it, and try again")}
	}
	if others := l.outside(h.Peers); len(others) > 0 {
		return []api.Refusal{refusal(codeShared, h, leadsTo(h)+", deleted, which "+holdersText(others)+" has open, too", inheritRemedy(h.FD))}
	}
	file, err := l.process(h.PID).DescriptorFile(h.FD)
	if err == nil && file.Stat.Links > 0 {
		return []api.Refusal{refusal(codeDeleted, h, leadsTo(h)+", which has another name now, that is not known", "close it, and try again")}
	}
	return nil
}

func (d *dumping) dumpDeleted(h *handle.Handle, raw kernel.Raw, f *image.File, stat kernel.RawStat) error {
	f.Regular.Deleted, f.Regular.UID, f.Regular.GID = true, stat.UID, stat.GID
	if d.store.Mapped != nil {
		if f.Object, f.Regular.Mapped = d.store.Mapped(stat.Device, stat.Inode); f.Regular.Mapped {
			return nil
		}
		f.Object = 0
	}
	id := fileID{stat.Device, stat.Inode}
	if d.deleted[id] {
		return nil
	}
	var err error
	f.Regular.Content, err = keepContent(raw, stat.Size, d.store)
	d.deleted[id] = true
	return err
}

// A fileID tells files of one machine apart.
type fileID struct{ device, inode uint64 }

func (p *planning) planDeleted(i int) []api.Refusal {
	f := p.image.Files[i].Regular
	if f.Mapped {
		return nil
	}
	raw, err := p.root.OpenUnnamed(path.Dir(p.at(f.Path)), f.Mode)
	if err == nil {
		err = raw.Close()
	}
	if err != nil {
		return []api.Refusal{p.refusal(codeMissing, i, fmt.Sprintf("a file without a name can't be made in %s: %v", path.Dir(f.Path), err), "make a folder there that takes one")}
	}
	return nil
}

func (o *Opened) openDeleted(i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	if f.Regular.Mapped {
		return o.openMapped(f)
	}
	id := fileID{f.Regular.FileRef.Device, f.Regular.Inode} // Regular.Device is that of a device node
	file, ok := o.deleted[id]
	if !ok {
		var err error
		if file, err = o.root.OpenUnnamed(path.Dir(o.at(f.Regular.Path)), f.Regular.Mode); err != nil {
			return -1, err
		}
		o.scaffold, o.deleted[id] = append(o.scaffold, file), file
		if err := o.fillDeleted(file, f.Regular); err != nil {
			return -1, err
		}
	}
	return file.Reopen(openFlags(f))
}

// openMapped opens what is in the image's objects, as it is mapped, too.
func (o *Opened) openMapped(f *image.File) (kernel.Raw, error) {
	if o.Object == nil {
		return -1, errors.New("the memory of the image's objects is not there")
	}
	file, err := o.Object(f.Object)
	if err != nil {
		return -1, err
	}
	copied, err := kernel.CopyRaw(file)
	if err != nil {
		return -1, err
	}
	defer copied.Close()
	return copied.Reopen(openFlags(f))
}

// fillDeleted gives a file what that of the image had, whichever description it was
// written down for.
func (o *Opened) fillDeleted(file kernel.Raw, was *image.Regular) error {
	var content []image.Run
	for _, f := range o.image.Files {
		if r := f.Regular; r != nil && r.Deleted && r.FileRef.Device == was.FileRef.Device && r.Inode == was.Inode && len(r.Content) > 0 {
			content = r.Content
		}
	}
	if len(content) > 0 && o.ReadPages == nil {
		return errors.New("the image's pages are not there")
	}
	if err := o.putContent(file, was.Size, content); err != nil {
		return err
	}
	return file.SetOwnership(was.UID, was.GID, was.Mode)
}
