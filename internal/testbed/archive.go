package testbed

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// An Archive is what the distribution's package mirror serves, unpacked into a
// cache that outlives the process. It asks apt, with package lists of its own:
// what is installed, and what apt knows otherwise, is neither used nor changed.
type Archive struct {
	folder  string
	offline bool
}

// listsAge is how old package lists may be: they name versions that the mirror
// has no longer after some time.
const listsAge = 24 * time.Hour

// OpenArchive opens the cache. Offline, only what it holds already is there.
func OpenArchive(offline bool) (*Archive, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	folder := filepath.Join(cache, "vos", "archive")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	return &Archive{folder, offline}, nil
}

// A Package is a binary package with the versions that the mirror serves.
type Package struct {
	Name     string
	Versions []string // oldest first
}

// Packages looks packages up. Those that the mirror does not serve are left out.
func (a *Archive) Packages(ctx context.Context, names ...string) ([]Package, error) {
	if err := a.updateLists(ctx); err != nil {
		return nil, err
	}
	out, err := a.apt(ctx, "", "apt-cache", append([]string{"madison"}, names...)...)
	if err != nil {
		return nil, err
	}
	var all []Package
	for line := range strings.Lines(out) {
		f := strings.Split(line, "|")
		if len(f) != 3 || strings.Contains(f[2], "Sources") {
			continue
		}
		name, version := strings.TrimSpace(f[0]), strings.TrimSpace(f[1])
		i := slices.IndexFunc(all, func(p Package) bool { return p.Name == name })
		if i < 0 {
			i = len(all)
			all = append(all, Package{Name: name})
		}
		if !slices.Contains(all[i].Versions, version) {
			all[i].Versions = append(all[i].Versions, version)
		}
	}
	for i := range all {
		slices.SortFunc(all[i].Versions, func(x, y string) int {
			if exec.CommandContext(ctx, "dpkg", "--compare-versions", x, "lt", y).Run() == nil {
				return -1
			}
			return 1
		})
	}
	return all, nil
}

// Unpacked returns the folder of a binary package's files.
func (a *Archive) Unpacked(ctx context.Context, name, version string) (string, error) {
	return a.keep(name+"_"+version, func(work string) error {
		if _, err := a.apt(ctx, work, "apt-get", "download", "-q", name+"="+version); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(work, "*.deb"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("%d files", len(files))
		}
		_, err = output(ctx, work, "dpkg-deb", "-x", files[0], "tree")
		return err
	})
}

// SourceOf returns the folder of the source package that a binary package was
// built from, with the distribution's patches, and its version. It may be read
// only: what is built is built in a copy.
func (a *Archive) SourceOf(ctx context.Context, name, version string) (folder, sourceVersion string, err error) {
	fields, err := a.apt(ctx, "", "apt-cache", "show", name+"="+version)
	if err != nil {
		return "", "", err
	}
	// Source: NAME (VERSION), each only where it differs.
	source, sourceVersion := name, version
	for line := range strings.Lines(fields) {
		if value, ok := strings.CutPrefix(line, "Source: "); ok {
			var other string
			source, other, _ = strings.Cut(strings.TrimSpace(value), " ")
			if other != "" {
				sourceVersion = strings.Trim(other, "()")
			}
		}
	}
	folder, err = a.keep(source+"_"+sourceVersion+"_source", func(work string) error {
		if _, err := a.apt(ctx, work, "apt-get", "source", "-q", "--download-only", source+"="+sourceVersion); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(work, "*.dsc"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("%d descriptions", len(files))
		}
		_, err = output(ctx, work, "dpkg-source", "-x", files[0], "tree")
		return err
	})
	return folder, sourceVersion, err
}

// keep returns the folder name of the cache. Where it isn't there, fill makes
// the folder tree in the folder work, which then becomes it.
func (a *Archive) keep(name string, fill func(work string) error) (string, error) {
	folder := filepath.Join(a.folder, name)
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	if a.offline {
		return "", fmt.Errorf("get %s from the archive: not in the cache", name)
	}
	unlock, err := a.lock()
	if err != nil {
		return "", fmt.Errorf("get %s from the archive: %w", name, err)
	}
	defer unlock()
	if _, err := os.Stat(folder); err == nil {
		return folder, nil // another process was faster
	}
	work, err := os.MkdirTemp(a.folder, "download-")
	if err != nil {
		return "", fmt.Errorf("get %s from the archive: %w", name, err)
	}
	defer os.RemoveAll(work)
	if err := fill(work); err != nil {
		return "", fmt.Errorf("get %s from the archive: %w", name, err)
	}
	if err := os.Rename(filepath.Join(work, "tree"), folder); err != nil {
		return "", fmt.Errorf("get %s from the archive: %w", name, err)
	}
	return folder, nil
}

// lock keeps other processes from changing the cache meanwhile.
func (a *Archive) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(a.folder, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// updateLists fetches package lists, of binary and source packages, from the
// mirrors that this machine uses for the distribution itself. Where that fails,
// those of before do.
func (a *Archive) updateLists(ctx context.Context) error {
	sources := filepath.Join(a.folder, "apt", "sources.list")
	info, err := os.Stat(sources)
	known := err == nil
	if known && (a.offline || time.Since(info.ModTime()) < listsAge) {
		return nil
	}
	if a.offline {
		return errors.New("update package lists: none are in the cache")
	}
	unlock, err := a.lock()
	if err != nil {
		return fmt.Errorf("update package lists: %w", err)
	}
	defer unlock()
	if info, err := os.Stat(sources); err == nil && time.Since(info.ModTime()) < listsAge {
		return nil // another process was faster
	}
	if err := a.fetchLists(ctx, sources); err != nil && !known {
		return fmt.Errorf("update package lists: %w (is the network there?)", err)
	}
	return nil
}

// expire makes the lists old, if they were not fetched just now, and tells
// whether it did: a version that the mirror does not have any more is no
// failure, but a reason to look again.
func (a *Archive) expire() bool {
	sources := filepath.Join(a.folder, "apt", "sources.list")
	info, err := os.Stat(sources)
	if err != nil || a.offline || time.Since(info.ModTime()) < 10*time.Minute {
		return false
	}
	return os.Chtimes(sources, time.Time{}, time.Now().Add(-2*listsAge)) == nil
}

func (a *Archive) fetchLists(ctx context.Context, sources string) error {
	if err := os.MkdirAll(filepath.Join(a.folder, "apt", "lists", "partial"), 0o755); err != nil {
		return err
	}
	// Where apt has no lists yet, it knows the mirrors but not whose they are.
	targets := []string{"indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"}
	out, err := output(ctx, "", "apt-get", append(targets, "Origin: Debian")...)
	if err == nil && out == "" {
		out, err = output(ctx, "", "apt-get", targets...)
	}
	if err != nil {
		return err
	}
	var list strings.Builder
	for line := range strings.Lines(out) {
		fmt.Fprintf(&list, "deb %sdeb-src %s", line, line)
	}
	if list.Len() == 0 {
		return errors.New("apt knows no mirror")
	}
	// The list counts as made when it has its name.
	fresh := sources + ".new"
	if err := os.WriteFile(fresh, []byte(list.String()), 0o644); err != nil {
		return err
	}
	if _, err := a.aptWith(ctx, "", fresh, "apt-get", "update", "-q", "--error-on=any"); err != nil {
		return err
	}
	return os.Rename(fresh, sources)
}

// apt runs an apt program on the archive's own lists.
func (a *Archive) apt(ctx context.Context, folder, name string, args ...string) (string, error) {
	return a.aptWith(ctx, folder, filepath.Join(a.folder, "apt", "sources.list"), name, args...)
}

func (a *Archive) aptWith(ctx context.Context, folder, sources, name string, args ...string) (string, error) {
	return output(ctx, folder, name, append(args,
		"-o", "Dir::Etc::sourcelist="+sources,
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists="+filepath.Join(a.folder, "apt", "lists"),
		"-o", "Dir::Cache::pkgcache="+filepath.Join(a.folder, "apt", "pkgcache.bin"),
		"-o", "Dir::Cache::srcpkgcache="+filepath.Join(a.folder, "apt", "srcpkgcache.bin"),
		"-o", "APT::Sandbox::User=root", // apt's own user can't write to a user's cache
	)...)
}

// Library returns the file of the shared library soname in a folder that holds
// an unpacked package.
func Library(folder, soname string) (string, error) {
	found := ""
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || found != "" || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".so") {
			return err
		}
		if name, err := soName(path); err == nil && name == soname {
			found = path
		}
		return nil
	})
	if err == nil && found == "" {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", fmt.Errorf("find %s in %s: %w", soname, filepath.Base(folder), err)
	}
	return found, nil
}

// soName returns the soname of an ELF file.
func soName(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 {
		return "", fmt.Errorf("%s has no soname: %w", path, err)
	}
	return names[0], nil
}

// output runs a program and returns what it printed; the error carries what it
// complained of.
func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(problem.String()))
	}
	return string(out), nil
}
