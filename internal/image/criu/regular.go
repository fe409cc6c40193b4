package criu

import (
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

// regular is what has a path, or had one; its locks are added.
func (x *export) regular(i int) *file {
	f, id := &x.img.Files[i], fileNumber(i)
	r := &regFile{ID: id, Flags: f.Flags, Position: uint64(f.Offset), Owner: x.owner(i), Name: f.Regular.Path}
	switch f.Kind {
	case "file":
		r.Size, r.Mode = new(uint64(f.Regular.Size)), new(syscall.S_IFREG|f.Regular.Mode)
	case "directory":
		r.Mode = new(syscall.S_IFDIR | f.Regular.Mode)
	case "device":
		r.Mode = new(syscall.S_IFCHR | f.Regular.Mode)
	}
	if f.Regular.Deleted {
		x.ghost(i)
	}
	x.locks(i)
	return &file{Regular: r}
}

const remapGhost = 1

// ghost adds the deleted file that file i is a description of.
func (x *export) ghost(i int) {
	f := &x.img.Files[i]
	if r := f.Regular; !r.Mapped {
		x.remap(fileNumber(i), name{device: r.FileRef.Device, inode: r.Inode}, x.deletedContent(r),
			ghost{UID: r.UID, GID: r.GID, Mode: syscall.S_IFREG | r.Mode, Size: uint64(r.Size)})
		return
	}
	x.objectGhost(fileNumber(i), f.Object)
}

// objectGhost adds a deleted file that was mapped, of which an object has the content.
func (x *export) objectGhost(id uint32, object int) {
	o := &x.img.Objects[object]
	x.remap(id, name{path: "object", inode: uint64(object)}, o.Pages, ghost{UID: o.UID, GID: o.GID, Mode: syscall.S_IFREG | o.Mode&0o7777, Size: o.Size})
}

// remap adds a file without a name, once, and that another one by its path is it.
func (x *export) remap(id uint32, key name, pages []image.Run, head ghost) {
	number, ok := x.ghosts[key]
	if !ok {
		number = uint32(len(x.ghosts)) + 1
		x.ghosts[key] = number
		head.Chunks = true
		x.content = append(x.content, content{name: fmt.Sprintf("ghost-file-%x.img", number), runs: runsOf(pages), ghost: &head})
	}
	x.extend("remap-fpath.img", magicRemap, remap{File: id, Ghost: number, Type: remapGhost})
}

// deletedContent is what a deleted file has, whichever description has it in the image.
func (x *export) deletedContent(was *image.Regular) []image.Run {
	for _, f := range x.img.Files {
		if r := f.Regular; r != nil && r.Deleted && r.FileRef.Device == was.FileRef.Device && r.Inode == was.Inode && len(r.Content) > 0 {
			return r.Content
		}
	}
	return nil
}

// lockKinds are CRIU's FL_….
var lockKinds = map[string]uint32{"posix": 1, "flock": 2, "ofd": 4}

// locks adds the locks on file i, each by a descriptor of who has it.
func (x *export) locks(i int) {
	for _, l := range x.img.Files[i].Locks {
		kind, ok := lockKinds[l.Kind]
		pid, number := x.holder(i, l)
		if !ok || number < 0 {
			x.refuseFile(i, "a lock of kind "+l.Kind+" is held on it")
			continue
		}
		e := fileLock{Kind: kind, Type: uint32(l.Type), PID: int32(pid), FD: int32(number), Start: l.Start}
		if l.End >= 0 {
			e.Length = l.End - l.Start + 1
		}
		x.extend("filelocks.img", magicLocks, e)
	}
}

// holder returns a process that has a lock, and its descriptor of the file, or -1.
func (x *export) holder(i int, l image.Lock) (pid, number int) {
	for p := range x.img.Processes {
		q := &x.img.Processes[p]
		for _, d := range q.Descriptors {
			if d.File == i && (l.PID == 0 || l.PID == q.PID) {
				return q.PID, d.Number
			}
		}
	}
	return 0, -1
}
