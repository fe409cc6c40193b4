package module

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Successor is the file that takes an outdated module's place when the program
// is started afresh.
type Successor struct {
	// Path is where it is: at the module's path, or, for a library whose file
	// has the version in its name and is gone, at its soname beside that:
	// libfoo.so.1.2 is deleted, libfoo.so.1 leads to libfoo.so.1.3.
	Path    string
	BuildID string // "" where it has none, or is no ELF object
	Same    bool   // it holds the very bytes that are mapped
}

// Successor finds what took the place of an outdated module. It is nil where
// nothing did.
func (p *Process) Successor(m *Module) (*Successor, error) {
	at, now, err := p.successorFile(m)
	if now == nil || err != nil {
		return nil, err
	}
	s := &Successor{Path: at}
	object, err := now.read()
	switch {
	case err == nil:
		s.BuildID = object.BuildID
	case errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	if m.Object == nil || err != nil {
		return s, nil
	}
	mapped, err := p.files.open(p.Process, m.mapping)
	if err != nil {
		return s, err
	}
	if object.BuildID == m.Object.BuildID {
		s.Same, err = p.files.same(mapped, now)
	}
	return s, err
}

// SuccessorBuild opens what is at a module's path now as the build that is to
// take its place. Where nothing is, it is a refusal.
func (p *Process) SuccessorBuild(m *Module) (*Build, error) {
	if m.File.Change == procfs.FileUnknown {
		return nil, RefusePath(m)
	}
	at, now, err := p.successorFile(m)
	if err != nil {
		return nil, err
	}
	if now == nil {
		return nil, api.Refusal{Code: codeNoSuccessor, Subject: m.Name, Detail: "there is no file at " + m.Path + " now", Remedy: "name the build by --with"}
	}
	if now.stat.Mode.Type() != 0 {
		return nil, notRegularRefusal(at, now.stat.Mode)
	}
	return p.files.buildOf(at, now)
}

// successorFile opens what took the place of a module, and returns where it is;
// nil where nothing did.
func (p *Process) successorFile(m *Module) (string, *storedFile, error) {
	at := m.Path
	file, err := p.OpenAtPath(at, m.File)
	if absent(err) && m.Kind != Executable && m.Object != nil && m.Object.Soname != "" && path.Base(m.Object.Soname) == m.Object.Soname {
		at = path.Join(path.Dir(m.Path), m.Object.Soname)
		file, err = p.OpenAtPath(at, m.File)
	}
	switch {
	case absent(err) && !errors.Is(err, procfs.ErrGone):
		return "", nil, nil
	case err != nil:
		return "", nil, err
	}
	now, err := p.files.add(file)
	if err != nil {
		return "", nil, fmt.Errorf("look at %s: %w", at, err)
	}
	return at, now, nil
}

func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// A filePair is two files whose contents are compared, once for all processes.
type filePair struct{ a, b *storedFile }

// same reports whether two files hold the same bytes.
func (s *Store) same(a, b *storedFile) (bool, error) {
	if a == b {
		return true, nil
	}
	if a.stat.Size != b.stat.Size {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pair := filePair{a, b}
	if same, known := s.pairs[pair]; known {
		return same, nil
	}
	same, err := sameBytes(a.file, b.file, a.stat.Size)
	if err != nil {
		return false, fmt.Errorf("compare %s with %s: %w", a.file.Name(), b.file.Name(), err)
	}
	s.pairs[pair] = same
	return same, nil
}

func sameBytes(a, b *os.File, size int64) (bool, error) {
	const piece = 256 << 10
	one, other := make([]byte, piece), make([]byte, piece)
	for at := int64(0); at < size; at += piece {
		n := min(piece, size-at)
		for _, read := range [...]struct {
			file *os.File
			into []byte
		}{{a, one}, {b, other}} {
			if _, err := read.file.ReadAt(read.into[:n], at); errors.Is(err, io.EOF) {
				return false, nil // shorter by now
			} else if err != nil {
				return false, err
			}
		}
		if string(one[:n]) != string(other[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// IsObject reports whether a module is an ELF object for certain, or may be one
// but can't be read. Code that a program wrote into a file and deleted (a JIT's)
// is neither, and has no build that could be outdated.
func (m *Module) IsObject() bool {
	return m.Object != nil || !slices.ContainsFunc(m.Obstacles, func(r api.Refusal) bool { return r.Code == codeNotELF })
}

// RefuseFile is the refusal where the file that took a module's place can't be
// read.
func RefuseFile(m *Module, err error) api.Refusal {
	return api.Refusal{Code: codeUnreadable, Subject: m.Name, Detail: err.Error(), Remedy: "run vos as root"}
}

// RefusePath is the refusal where it can't be told what is at a module's path.
func RefusePath(m *Module) api.Refusal {
	r := api.Refusal{Code: codePath, Subject: m.Path, Remedy: "none is known"}
	if m.File.Why != nil {
		r.Detail = m.File.Why.Error()
	}
	if errors.Is(m.File.Why, fs.ErrPermission) {
		r.Remedy = "run vos as root"
	}
	return r
}
