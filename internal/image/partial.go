package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Partial is a directory that is being written, beside its place. It appears there as a
// whole or not at all.
type Partial struct {
	Path string // where its files are written to

	dir  string
	lock *os.File // held while this process lives: what isn't locked is left of a killed one
}

// NewPartial begins directory dir, which must not be there yet. What killed processes have
// left of directories of the same name goes away.
func NewPartial(dir string) (_ *Partial, err error) {
	p := &Partial{dir: filepath.Clean(dir)}
	if _, err := os.Lstat(p.dir); err == nil {
		return nil, fmt.Errorf("%w: name another directory, or remove this one", fs.ErrExist)
	}
	if err := removeLeftovers(p.dir); err != nil {
		return nil, err
	}
	if p.Path, err = os.MkdirTemp(filepath.Dir(p.dir), partialPrefix(p.dir)+"*"); err != nil {
		return nil, err
	}
	if p.lock, err = os.Open(p.Path); err == nil {
		_, err = kernel.TryLock(p.lock)
	}
	if err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

func partialPrefix(dir string) string { return "." + filepath.Base(dir) + ".partial-" }

// removeLeftovers removes partial directories of the same name whose writer has died.
func removeLeftovers(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), partialPrefix(dir)) {
			continue
		}
		path := filepath.Join(filepath.Dir(dir), e.Name())
		if err := removeLeftover(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what is left of an image: %w", err)
		}
	}
	return nil
}

func removeLeftover(path string) error {
	folder, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	if free, err := kernel.TryLock(folder); err != nil || !free {
		return err // its writer is at work
	}
	return os.RemoveAll(path)
}

// Appear lets the directory, whose files are on the disk, appear under its name. After an
// error it is not there; what Remove removes may be.
func (p *Partial) Appear() error {
	if err := p.lock.Sync(); err != nil {
		return err
	}
	if err := kernel.RenameNew(p.Path, p.dir); err != nil {
		return err
	}
	p.Path = p.dir
	parent, err := os.Open(filepath.Dir(p.dir))
	if err != nil {
		return err
	}
	if err := errors.Join(parent.Sync(), parent.Close()); err != nil {
		return err
	}
	return p.lock.Close()
}

// Remove removes the directory, and ends its writing.
func (p *Partial) Remove() error {
	err := os.RemoveAll(p.Path)
	if p.lock != nil {
		err = errors.Join(err, p.lock.Close())
	}
	return err
}
