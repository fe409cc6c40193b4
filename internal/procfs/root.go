package procfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// PathInRoot returns a mapped path as the process itself would write it: without
// the path of its root directory. A path outside of that wraps fs.ErrInvalid.
func (p *Process) PathInRoot(path string) (string, error) {
	link, err := p.readSharedLink("root")
	if isAbsence(err) { // not the file is missing, but the process
		return "", ErrGone
	}
	if err != nil || link == "/" {
		return path, err
	}
	inside, found := strings.CutPrefix(path, link)
	if !found || !strings.HasPrefix(inside, "/") {
		return "", fmt.Errorf("%s is outside of its root directory %s: %w", path, link, fs.ErrInvalid)
	}
	return inside, nil
}

func (p *Process) openRoot() (root *kernel.Directory, err error) {
	err = p.anyThread("root", func(name string) (err error) {
		root, err = p.dir.Directory(name)
		return err
	})
	if isAbsence(err) {
		err = ErrGone
	}
	return root, err
}

// A Root is a process's root directory, with the mounts that the process sees.
// It is a file system in the sense of io/fs; symbolic links mean what they mean
// to the process. It stays usable when the process has ended.
//
// Its files are the program's, and so may be anything: only regular files and
// directories are opened, and of a file no more is read than its size. Those of
// /proc, which may wait for ever or take what is read from others, claim to be
// empty, and are.
type Root struct {
	dir *kernel.Directory
	id  RootID
}

// A RootID tells root directories apart: two processes of the same one see the
// same files.
type RootID struct{ Namespace, Device, Inode uint64 }

// OpenRoot opens the process's root directory. The caller closes it.
func (p *Process) OpenRoot() (*Root, error) {
	namespaces, err := p.Namespaces()
	if err != nil {
		return nil, err
	}
	dir, err := p.openRoot()
	if err != nil {
		return nil, p.failed("open root directory of", err)
	}
	stat, err := dir.Stat(".")
	if err != nil {
		dir.Close()
		return nil, p.failed("open root directory of", err)
	}
	return &Root{dir, RootID{namespaces.Mount, stat.Device, stat.Inode}}, nil
}

// ID returns what root directory it is.
func (r *Root) ID() RootID { return r.id }

// Close lets go of the directory.
func (r *Root) Close() error { return r.dir.Close() }

// Open opens a regular file or a directory for reading. It implements fs.FS.
func (r *Root) Open(name string) (fs.File, error) {
	failed := func(err error) error { return &fs.PathError{Op: "open", Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return nil, failed(fs.ErrInvalid)
	}
	found, err := r.dir.OpenInRoot(name, kernel.PathOnly)
	if err != nil {
		return nil, failed(err)
	}
	defer found.Close()
	stat, err := kernel.StatFile(found)
	if err != nil {
		return nil, failed(err)
	}
	switch stat.Mode {
	case 0:
		file, err := kernel.Reopen(found, syscall.O_RDONLY)
		if err != nil {
			return nil, failed(err)
		}
		return &rootFile{file, io.LimitReader(file, stat.Size)}, nil
	case fs.ModeDir:
		dir, err := kernel.Reopen(found, syscall.O_RDONLY|syscall.O_DIRECTORY)
		if err != nil {
			return nil, failed(err)
		}
		return dir, nil
	}
	return nil, failed(ErrNoFile)
}

// OpenFile opens a name with flags of open(2), whatever it is: the caller asks not
// to wait (O_NONBLOCK), and looks at what it got.
func (r *Root) OpenFile(name string, flags int) (*os.File, error) {
	return r.dir.OpenInRoot(name, flags)
}

// Create makes a regular file where there is none of that name (O_EXCL), and opens
// it, likewise.
func (r *Root) Create(name string, flags int, permissions uint32) (*os.File, error) {
	return r.dir.CreateInRoot(name, flags|syscall.O_EXCL, permissions)
}

// Remove removes a file that Create has made, unless another one has its name now.
func (r *Root) Remove(name string, file *os.File) error {
	now, err := r.OpenFile(name, kernel.PathOnly|syscall.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer now.Close()
	own, err := kernel.StatFile(file)
	if err != nil {
		return err
	}
	if other, err := kernel.StatFile(now); err != nil || other.Inode != own.Inode || other.Device != own.Device {
		return err
	}
	folder, err := r.OpenFile(path.Dir(name), kernel.PathOnly|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer folder.Close()
	return kernel.RemoveIn(folder, path.Base(name))
}

// A rootFile is read no further than its size was.
type rootFile struct {
	file    *os.File
	content io.Reader
}

func (f *rootFile) Stat() (fs.FileInfo, error)   { return f.file.Stat() }
func (f *rootFile) Read(buf []byte) (int, error) { return f.content.Read(buf) }
func (f *rootFile) Close() error                 { return f.file.Close() }

// OpenAtPath opens the regular file that is at a mapped path now, or at another
// beside it, for reading: where the path was looked up for the file's state.
func (p *Process) OpenAtPath(path string, state FileState) (*os.File, error) {
	open := p.openAtPath
	if state.OwnRoot {
		open = openAtOwnPath
	}
	now, err := open(path)
	if err != nil {
		return nil, p.failed("open "+path+" in", err)
	}
	defer now.Close()
	file, err := reopenRegular(now)
	if err != nil {
		return nil, p.failed("open "+path+" in", err)
	}
	return file, nil
}
