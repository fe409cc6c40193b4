package module

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Store keeps the objects of files open while one command works, so that a
// library that hundreds of processes map is read once. It may be used by
// several goroutines.
type Store struct {
	mu    sync.Mutex
	files map[fileID]*storedFile
	pairs map[filePair]bool // whether two hold the same bytes

	matches map[filePair]*matching
	taken   map[*dso.Object]func() (map[uint64]bool, error)
}

// fileID is a file's identity: while a Store has the file open, its inode number
// is not given to another.
type fileID struct{ device, inode uint64 }

// storedFile is a mapped file, and its object or why there is none.
type storedFile struct {
	file   *os.File
	stat   kernel.FileStat
	once   sync.Once
	object *dso.Object
	err    error
}

// NewStore returns an empty store. The caller closes it.
func NewStore() *Store {
	return &Store{files: make(map[fileID]*storedFile), pairs: make(map[filePair]bool), matches: make(map[filePair]*matching),
		taken: make(map[*dso.Object]func() (map[uint64]bool, error))}
}

// Close closes the files. Objects from the store can't be used afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.file.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

// open returns the file behind a mapping.
func (s *Store) open(p *procfs.Process, m procfs.Mapping) (*storedFile, error) {
	file, err := p.OpenMapped(m)
	if err != nil {
		return nil, err
	}
	return s.add(file)
}

// add takes over an open file, and returns it or the one that is known.
func (s *Store) add(file *os.File) (*storedFile, error) {
	stat, err := kernel.StatFile(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at %s: %w", file.Name(), err), file.Close())
	}
	id := fileID{stat.Device, stat.Inode}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.files[id]; known != nil {
		return known, file.Close()
	}
	f := &storedFile{file: file, stat: stat}
	s.files[id] = f
	return f, nil
}

// read returns the file's object.
func (f *storedFile) read() (*dso.Object, error) {
	f.once.Do(func() {
		f.object, f.err = dso.ReadFile(f.file, f.stat.Size)
		if f.err == nil {
			f.err = f.object.Check()
		}
	})
	return f.object, f.err
}
