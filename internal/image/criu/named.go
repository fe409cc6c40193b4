package criu

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

// Types of files in files.img and fdinfo-N.img.
const (
	typeRegular  = 1
	typePipe     = 2
	typeFIFO     = 3
	typeInet     = 4
	typeUnix     = 5
	typeEventfd  = 6
	typeEpoll    = 7
	typeInotify  = 8
	typeSignalfd = 9
	typeTimerfd  = 17
	typeMemfd    = 18
)

// A name tells files apart that are known by their path.
type name struct {
	path          string
	device, inode uint64
}

// number is the next one for a file that is none of the image's.
func (x *export) number() uint32 {
	x.last++
	return x.last
}

// fileNumber is that of file i of the image.
func fileNumber(i int) uint32 { return uint32(i) + 1 }

// mapped is the number of a file that is mapped, or executed.
func (x *export) mapped(f *image.FileRef) uint32 {
	key := name{f.Path, f.Device, f.Inode}
	id, ok := x.named[key]
	if !ok {
		id = x.number()
		x.named[key] = id
		x.files = append(x.files, file{Type: typeRegular, ID: id, Regular: &regFile{ID: id, Name: f.Path, Size: new(uint64(f.Size)), BuildID: buildID(f.BuildID)}})
	}
	return id
}

// executable is the number of the file that a process runs.
func (x *export) executable(p *image.Process) uint32 {
	if p.Running != nil {
		return x.mappedObject(*p.Running)
	}
	return x.mapped(&p.Executable)
}

// mappedObject is the number of a deleted file that is mapped.
func (x *export) mappedObject(object int) uint32 {
	o := &x.img.Objects[object]
	key := name{path: "object", inode: uint64(object)}
	id, ok := x.named[key]
	if !ok {
		id = x.number()
		x.named[key] = id
		x.files = append(x.files, file{Type: typeRegular, ID: id, Regular: &regFile{ID: id, Flags: o.Flags, Name: o.File.Path, Size: &o.Size}})
		x.objectGhost(id, object)
	}
	return id
}

// directory is the number of a directory that a process is in.
func (x *export) directory(path string) uint32 {
	key := name{path: path}
	id, ok := x.named[key]
	if !ok {
		id = x.number()
		x.named[key] = id
		x.files = append(x.files, file{Type: typeRegular, ID: id, Regular: &regFile{ID: id, Name: path}})
	}
	return id
}

// mappedMemfd is the number of a memfd as it is mapped.
func (x *export) mappedMemfd(object int) uint32 {
	key := name{inode: uint64(object)}
	id, ok := x.named[key]
	if !ok {
		id = x.number()
		x.named[key] = id
		x.files = append(x.files, file{Type: typeMemfd, ID: id, Memory: &memoryFile{ID: id, Flags: syscall.O_RDWR, Inode: x.memfd(object)}})
	}
	return id
}

// memfd is the number of a memfd, which is added once with its pages.
func (x *export) memfd(object int) uint32 {
	added := x.shared[object]
	id := x.object(object)
	if !added {
		o := &x.img.Objects[object]
		e := memoryInode{Name: o.Name, Size: o.Size, Shared: id, Seals: o.Seals, Inode: uint64(id)}
		root := &x.img.Processes[0].Credentials
		e.UID, e.GID = root.UID[3], root.GID[3]
		if o.Mode != 0 {
			e.Mode = new(syscall.S_IFREG | o.Mode)
		}
		x.extend("memfd.img", magicMemfd, e)
	}
	return id
}

// buildID turns hexadecimal digits into CRIU's words.
func buildID(digits string) (words []uint32) {
	b, err := hex.DecodeString(digits)
	if err != nil || len(b)%4 != 0 {
		return nil
	}
	for word := range slices.Chunk(b, 4) {
		words = append(words, binary.LittleEndian.Uint32(word))
	}
	return words
}
