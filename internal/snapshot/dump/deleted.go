package dump

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// addDeleted adds a mapping of a file that is not at its path any more: it was deleted,
// or another one took its place, as when a library is upgraded. An object keeps its
// content, whatever is mapped of it.
func (m *memory) addDeleted(p *procfs.Process, from procfs.Mapping, to image.Mapping) error {
	refuse := func(detail, remedy string) error {
		m.refuse(refused(codeDeleted, mappingSubject(p.PID(), from.Start, from.End), detail, remedy))
		return nil
	}
	to.Kind = image.InObject
	device := kernel.DeviceNumber(from.DevMajor, from.DevMinor)
	var known bool
	if to.Object, known = m.object(device, from.Inode); !known {
		file, err := p.OpenMapped(from)
		if errors.Is(err, procfs.ErrNoFile) {
			return refuse(from.Path+" was deleted or replaced, and is no regular file", "let it close what it has mapped")
		}
		if err != nil {
			return refuse(fmt.Sprintf("its file %s was deleted or replaced, and can't be read: %v", from.Path, err), "run vos as root")
		}
		o, links, err := deletedFile(file, from.Path)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if links > 0 && from.Perms&procfs.Shared != 0 && slices.Contains(to.VMFlags, "mw") {
			return refuse("its file "+from.Path+", which it may write to, has another name now, that is not known", "put it back to its path")
		}
		o.device, o.inode, o.mapping = device, from.Inode, from
		to.Object = len(m.objects)
		m.objects = append(m.objects, o)
	}
	o := &m.objects[to.Object]
	if from.Perms&procfs.Shared != 0 {
		o.shared = true
		if slices.Contains(to.VMFlags, "mw") {
			o.Flags = syscall.O_RDWR
		}
	}
	m.mappings = append(m.mappings, to)
	return nil
}

// deletedFile is the object of an open file, without its content.
func deletedFile(file *os.File, path string) (o object, links uint64, err error) {
	info, err := file.Stat()
	if err != nil {
		return o, 0, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return o, 0, fmt.Errorf("look at %s: the system does not tell whose it is", path)
	}
	o.Object = image.Object{Kind: "file", Name: path, Size: uint64(s.Size), UID: s.Uid, GID: s.Gid,
		File: &image.FileRef{Path: path, Device: s.Dev, Inode: s.Ino, Size: s.Size, Modified: info.ModTime().UTC().Round(time.Nanosecond)}}
	return o, uint64(s.Nlink), nil
}

// running finds the executable among the objects, where it was deleted.
func (m *memory) running(p *procfs.Process, b *image.Process) error {
	executable, err := p.Executable()
	if err != nil || !executable.Deleted {
		return err
	}
	file, err := p.OpenExecutable()
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	device, inode := identity(info)
	n, found := m.kept(device, inode)
	if !found {
		return refused(codeDeleted, processSubject(p.PID()), "its executable "+executable.Path+" was deleted or replaced, and is not mapped", "restart it, or put the file back")
	}
	b.Running = &n
	b.Executable = *m.objects[n].File
	return nil
}

// kept returns the place among the objects of an open file, by what stat(2) says of it.
func (m *memory) kept(device, inode uint64) (n int, ok bool) {
	n = slices.IndexFunc(m.objects, func(o object) bool { return o.is(device, inode) })
	return n, n >= 0
}

func (o *object) is(device, inode uint64) bool {
	if o.File != nil {
		return o.File.Device == device && o.File.Inode == inode
	}
	return o.device == device && o.inode == inode
}

// keptFiles are deleted files whose content is in the image, or in a parent of it, before
// the program is held.
type keptFiles []image.Object

// keepFiles keeps the deleted files that are mapped privately, as libraries are. A program
// that maps a file so takes it for one that does not change; whether it has is looked at
// when the program is held.
func (k *whole) keepFiles() error {
	var before []image.Object
	if parent := k.writer.Parent(); parent != nil {
		before = parent.Image().Objects
	}
	buffer := make([]byte, chunk)
	for _, c := range k.parts {
		for i := range c.memory.objects {
			o := &c.memory.objects[i]
			if o.File == nil || o.shared || k.files.of(o.File) != nil {
				continue
			}
			if older := keptFiles(before).of(o.File); older != nil {
				k.files = append(k.files, *older)
				last := &k.files[len(k.files)-1]
				last.Pages = slices.Clone(last.Pages)
				for n := range last.Pages {
					last.Pages[n].Place.Up++
				}
				continue
			}
			file, err := c.Process.OpenMapped(o.mapping)
			if err != nil {
				continue // it is mapped elsewhere by now: all will be looked at again
			}
			to, err := dumpObject(o.Object, file, k.writer, nil, buffer)
			if err := errors.Join(err, file.Close()); err != nil {
				return fmt.Errorf("keep %s: %w", o.Name, err)
			}
			k.files = append(k.files, to)
		}
	}
	return nil
}

// of returns what was kept of a file, or nil.
func (k keptFiles) of(f *image.FileRef) *image.Object {
	for i := range k {
		if was := k[i].File; was != nil && was.Path == f.Path && was.Device == f.Device && was.Inode == f.Inode &&
			was.Size == f.Size && was.Modified.Equal(f.Modified) {
			return &k[i]
		}
	}
	return nil
}

// find returns what was kept of an object, if its file is still what it was, and all that
// is mapped of it is private.
func (k keptFiles) find(o *object, file *os.File) (image.Object, bool) {
	if o.File == nil || o.shared {
		return image.Object{}, false
	}
	info, err := file.Stat()
	if err != nil || info.Size() != o.File.Size || !info.ModTime().Equal(o.File.Modified) {
		return image.Object{}, false
	}
	kept := k.of(o.File)
	if kept == nil {
		return image.Object{}, false
	}
	to := *kept
	to.Flags = o.Flags
	return to, true
}
