package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A need is a file that the process maps or runs, and how it is to be opened.
type need struct {
	ref      *image.FileRef
	flags    int  // O_RDONLY or O_RDWR
	contents bool // whether it must not have been written since
}

// needs returns each file once. The executable is the last, if it was not deleted.
func needs(p *image.Process) []need {
	type key struct {
		path  string
		flags int
	}
	var list []need
	known := make(map[key]int)
	add := func(n need) {
		k := key{n.ref.Path, n.flags}
		if i, ok := known[k]; ok {
			list[i].contents = list[i].contents || n.contents
			return
		}
		known[k] = len(list)
		list = append(list, n)
	}
	for i := range p.Mappings {
		if m := &p.Mappings[i]; m.File != nil && (m.Kind == image.Private || m.Kind == image.SharedMap) {
			flags := int(m.OpenedFor) & syscall.O_ACCMODE
			// What the program writes to a file by its mapping changes the file.
			add(need{m.File, flags, flags == syscall.O_RDONLY})
		}
	}
	if p.Running != nil {
		return list
	}
	return append(list, need{&p.Executable, syscall.O_RDONLY, true})
}

// find returns the place of a mapping's file in what needs has returned.
func find(list []need, m *image.Mapping) int {
	for i, n := range list {
		if n.ref.Path == m.File.Path && n.flags == int(m.OpenedFor)&syscall.O_ACCMODE {
			return i
		}
	}
	return -1
}

// open opens a file below the root directory of the process and checks that it is the
// one that the image means. The error is a refusal where it is not.
func (o *Options) open(root *kernel.Directory, n need) (_ *os.File, err error) {
	path := o.mapped(n.ref.Path)
	file, err := root.OpenInRoot(path, n.flags|syscall.O_NONBLOCK|syscall.O_NOCTTY)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fileMissing(path, "there is no such file")
		}
		return nil, fileMissing(path, err.Error())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	stat, err := kernel.StatFile(file)
	if err != nil {
		return nil, err
	}
	if !stat.Mode.IsRegular() {
		return nil, fileChanged(path, "it is no regular file now")
	}
	if o.Force || path != n.ref.Path {
		return file, nil
	}
	if n.contents {
		return file, unchanged(file, path, stat, n.ref)
	}
	if stat.Size < n.ref.Size {
		return nil, fileChanged(path, fmt.Sprintf("it has %d bytes, and had %d", stat.Size, n.ref.Size))
	}
	return file, nil
}

// unchanged refuses a file that was written since: it has another size, or another time
// of its last change and no build-id that tells that it is the same build.
func unchanged(file *os.File, path string, stat kernel.FileStat, was *image.FileRef) error {
	if stat.Size != was.Size {
		return fileChanged(path, fmt.Sprintf("it has %d bytes, and had %d", stat.Size, was.Size))
	}
	if stat.Modified.Equal(was.Modified) {
		return nil
	}
	if was.BuildID != "" {
		object, err := dso.ReadFile(file, stat.Size)
		switch {
		case err == nil && object.BuildID == was.BuildID:
			return nil
		case err == nil:
			return fileChanged(path, fmt.Sprintf("its build-id is %q, and was %s", object.BuildID, was.BuildID))
		}
	}
	return fileChanged(path, fmt.Sprintf("it was written at %v, and before at %v", stat.Modified, was.Modified))
}

// mapped is where a path of the image is to be looked up.
func (o *Options) mapped(path string) string {
	best, to := "", path
	for from, other := range o.Map {
		from = strings.TrimSuffix(from, "/")
		rest, ok := strings.CutPrefix(path, from)
		if ok && len(from) >= len(best) && from != "" && (rest == "" || rest[0] == '/') {
			best, to = from, strings.TrimSuffix(other, "/")+rest
		}
	}
	return to
}

// refuseFiles returns what speaks against the files of a process.
func (o *Options) refuseFiles(root *kernel.Directory, p *image.Process) (refusals []api.Refusal, err error) {
	for _, n := range needs(p) {
		file, err := o.open(root, n)
		if err == nil {
			err = file.Close()
		}
		if err == nil {
			continue
		}
		found := api.Refusals(err)
		if found == nil {
			return nil, err
		}
		refusals = append(refusals, found...)
	}
	return refusals, nil
}
