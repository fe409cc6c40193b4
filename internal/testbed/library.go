package testbed

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A LibraryBuild is one build of a shared library.
type LibraryBuild struct {
	Soname  string
	Version string // of its package
	Path    string
}

// LibraryBuilds returns the builds of a library that the package mirror serves,
// the oldest first: two or more, otherwise it is an error.
func LibraryBuilds(ctx context.Context, name, soname string) ([]LibraryBuild, error) {
	archive, err := OpenArchive(false)
	if err != nil {
		return nil, fmt.Errorf("find builds of %s: %w", soname, err)
	}
	builds, err := archive.builds(ctx, name, soname)
	if err != nil && archive.expire() {
		builds, err = archive.builds(ctx, name, soname)
	}
	if err == nil && len(builds) < 2 {
		err = fmt.Errorf("the mirror serves %d versions of %s, not two", len(builds), name)
	}
	if err != nil {
		return nil, fmt.Errorf("find builds of %s: %w", soname, err)
	}
	return builds, nil
}

func (a *Archive) builds(ctx context.Context, name, soname string) ([]LibraryBuild, error) {
	packages, err := a.Packages(ctx, name)
	if err != nil {
		return nil, err
	}
	var builds []LibraryBuild
	for _, p := range packages {
		for _, version := range p.Versions {
			folder, err := a.Unpacked(ctx, p.Name, version)
			if err != nil {
				return nil, err
			}
			path, err := Library(folder, soname)
			if err != nil {
				return nil, err
			}
			builds = append(builds, LibraryBuild{soname, version, path})
		}
	}
	return builds, nil
}

// MustLibraryBuilds is [LibraryBuilds] for tests: it ends the test on an error.
func MustLibraryBuilds(tb TB, name, soname string) []LibraryBuild {
	tb.Helper()
	builds, err := LibraryBuilds(tb.Context(), name, soname)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return builds
}

// InstalledLibrary returns the build of a library that is installed on this
// machine by the package name.
func InstalledLibrary(ctx context.Context, name, soname string) (LibraryBuild, error) {
	version, err := output(ctx, "", "dpkg-query", "-W", "-f", "${Version}", name)
	if err != nil {
		return LibraryBuild{}, fmt.Errorf("find the installed %s: %w", soname, err)
	}
	files, err := output(ctx, "", "dpkg-query", "-L", name)
	if err != nil {
		return LibraryBuild{}, fmt.Errorf("find the installed %s: %w", soname, err)
	}
	for file := range strings.Lines(files) {
		file = strings.TrimSuffix(file, "\n")
		if strings.Contains(filepath.Base(file), ".so") {
			path, err := filepath.EvalSymlinks(file)
			if err != nil {
				continue
			}
			if found, err := soName(path); err == nil && found == soname {
				return LibraryBuild{soname, version, path}, nil
			}
		}
	}
	return LibraryBuild{}, fmt.Errorf("find the installed %s: package %s has no such library", soname, name)
}

// Libraries is a private folder in which the loader looks first, for programs
// that are to run with certain builds from their start and see them upgraded.
type Libraries struct{ folder string }

// NewLibraries makes a folder with the given libraries. The caller removes it.
func NewLibraries(builds ...LibraryBuild) (*Libraries, error) {
	folder, err := os.MkdirTemp("", "vos-libraries-")
	if err != nil {
		return nil, err
	}
	l := &Libraries{folder}
	// Programs also run as other users.
	if err := os.Chmod(folder, 0o755); err != nil {
		l.Remove()
		return nil, err
	}
	for _, b := range builds {
		if err := l.Install(b); err != nil {
			l.Remove()
			return nil, err
		}
	}
	return l, nil
}

// RunLibraries is [NewLibraries] for the length of a test.
func RunLibraries(tb TB, builds ...LibraryBuild) *Libraries {
	tb.Helper()
	l, err := NewLibraries(builds...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := l.Remove(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return l
}

// Install puts a build into the folder in the way of a package upgrade: the new
// file is written beside the old one and renamed over it. Programs that run go
// on with the old one, whose file then has no name.
func (l *Libraries) Install(b LibraryBuild) error {
	fresh := l.Path(b.Soname) + ".dpkg-new"
	err := copyFile(fresh, b.Path)
	if err == nil {
		err = os.Rename(fresh, l.Path(b.Soname))
	}
	if err != nil {
		return fmt.Errorf("install %s %s: %w", b.Soname, b.Version, err)
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// Path returns the file of a library in the folder.
func (l *Libraries) Path(soname string) string { return filepath.Join(l.folder, soname) }

// Env makes the loader look into the folder first.
func (l *Libraries) Env() []string { return []string{"LD_LIBRARY_PATH=" + l.folder} }

// Remove removes the folder.
func (l *Libraries) Remove() error { return os.RemoveAll(l.folder) }

// MappedFiles returns the paths of the files that process pid has mapped with
// the base name name, as /proc/PID/maps has them: " (deleted)" follows those
// that have no name any more.
func MappedFiles(pid int, name string) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("find mapped files: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		_, path, ok := strings.Cut(line, "/")
		path = "/" + strings.TrimSuffix(path, "\n")
		base, _ := strings.CutSuffix(filepath.Base(path), " (deleted)")
		if ok && base == name && !slices.Contains(all, path) {
			all = append(all, path)
		}
	}
	return all, nil
}
