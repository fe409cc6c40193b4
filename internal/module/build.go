package module

import (
	"bytes"
	"debug/dwarf"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
)

// A Build is a file that may take a module's place.
type Build struct {
	Path   string
	Object *dso.Object
	Owner  uint32 // of the file
	Mode   os.FileMode

	file  *storedFile
	bytes []byte // the whole file
}

// maxBuild bounds the files that are read as a whole.
const maxBuild = 1 << 30

// OpenBuild opens a file that is to take a module's place. The file is opened
// once, and what it holds now is what is used, whatever happens at its path. A
// refusal says why it can't be one.
func (s *Store) OpenBuild(path string) (*Build, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold it up
	if err != nil {
		return nil, fmt.Errorf("open the build: %w", err)
	}
	return s.build(path, file)
}

func notRegularRefusal(path string, mode os.FileMode) api.Refusal {
	return api.Refusal{Code: codeNotRegular, Subject: path, Detail: fmt.Sprintf("it is no regular file (%v)", mode.Type()), Remedy: "name the file of the other build"}
}

// DebugOptions opens the debug files of the running and the new build; "" is
// none.
func (s *Store) DebugOptions(old, new string) (opt match.Options, err error) {
	for _, side := range []struct {
		path   string
		object **dso.Object
		types  **dwarf.Data
	}{{old, &opt.OldDebug, &opt.OldTypes}, {new, &opt.NewDebug, &opt.NewTypes}} {
		if side.path == "" {
			continue
		}
		file, err := os.Open(side.path)
		if err != nil {
			return opt, fmt.Errorf("open the debug file: %w", err)
		}
		f, err := s.add(file)
		if err != nil {
			return opt, err
		}
		if *side.object, err = dso.ReadFile(f.file, f.stat.Size); err != nil {
			return opt, api.Refusal{Code: codeNotELF, Subject: side.path, Detail: err.Error(), Remedy: "give the debug file of the library"}
		}
		if *side.types, err = match.ReadTypes(f.file); err != nil {
			return opt, fmt.Errorf("read the debug file %s: %w", side.path, err)
		}
	}
	return opt, nil
}

// build takes over the open file at path.
func (s *Store) build(path string, file *os.File) (*Build, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if !info.Mode().IsRegular() {
		return nil, errors.Join(notRegularRefusal(path, info.Mode()), file.Close())
	}
	f, err := s.add(file)
	if err != nil {
		return nil, err
	}
	return s.buildOf(path, f)
}

func (s *Store) buildOf(path string, f *storedFile) (*Build, error) {
	if f.stat.Size > maxBuild {
		return nil, api.Refusal{Code: codeNotELF, Subject: path, Detail: fmt.Sprintf("it has %d bytes, more than %d", f.stat.Size, maxBuild), Remedy: restart}
	}
	info, err := f.file.Stat()
	if err != nil {
		return nil, err
	}
	b := &Build{Path: path, Mode: info.Mode(), file: f, bytes: make([]byte, f.stat.Size)}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		b.Owner = stat.Uid
	}
	if _, err := f.file.ReadAt(b.bytes, 0); err != nil {
		return nil, fmt.Errorf("read the build %s: %w", path, err)
	}
	b.Object, err = dso.ReadFile(bytes.NewReader(b.bytes), int64(len(b.bytes)))
	if err == nil {
		err = b.Object.Check()
	}
	if err != nil {
		return nil, api.Refusal{Code: codeNotELF, Subject: path, Detail: err.Error(), Remedy: "give the whole file of a shared library for x86-64"}
	}
	return b, nil
}

// trust refuses a file that others than root and the program's user could have
// written.
func (b *Build) trust(user int) *api.Refusal {
	const writableByOthers = 0o022
	detail := ""
	switch {
	case b.Owner != 0 && int(b.Owner) != user:
		detail = fmt.Sprintf("it belongs to user %d, neither root nor the program's user (%d)", b.Owner, user)
	case b.Mode.Perm()&writableByOthers != 0:
		detail = fmt.Sprintf("others than its owner may write to it (%v)", b.Mode.Perm())
	default:
		return nil
	}
	return &api.Refusal{Code: codeUntrusted, Subject: b.Path, Detail: detail, Remedy: "chown root and chmod go-w the file, if it can be trusted"}
}

// A matching is two files matched, once for all processes.
type matching struct {
	once  sync.Once
	match *match.Match
	err   error
}

// match matches the mapped file of a module with a build.
func (s *Store) match(old *storedFile, b *Build, opt match.Options) (*match.Match, error) {
	s.mu.Lock()
	pair := filePair{old, b.file}
	m := s.matches[pair]
	if m == nil {
		m = &matching{}
		s.matches[pair] = m
	}
	s.mu.Unlock()
	m.once.Do(func() {
		o, err := old.read()
		if err != nil {
			m.err = err
			return
		}
		m.match, m.err = match.Compare(o, b.Object, opt)
	})
	return m.match, m.err
}
