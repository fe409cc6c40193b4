package vex

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A program in other namespaces than vos's is checkpointed and restored by a vos in these
// (inside.go). Where its checkpoint ends it they would end with it, so they are pinned:
// each is mounted to a file in a folder under pinFolder, which the image names, until the
// restore has entered them.

// pinFolder holds a folder for each program that was ended, until it is restored.
const pinFolder = "/run/vos/namespaces"

// pinnedFor is the file in such a folder that names the image.
const pinnedFor = "image"

var pinName = regexp.MustCompile("^[A-Z2-7]{26}$")

// namespaceFiles are the namespaces that a process without others' help can enter, that
// of mounts last: the names in /proc/PID/ns.
var namespaceFiles = []struct {
	name string
	of   func(procfs.Namespaces) uint64
}{
	{"cgroup", func(n procfs.Namespaces) uint64 { return n.Cgroup }},
	{"ipc", func(n procfs.Namespaces) uint64 { return n.IPC }},
	{"uts", func(n procfs.Namespaces) uint64 { return n.UTS }},
	{"net", func(n procfs.Namespaces) uint64 { return n.Net }},
	{"pid", func(n procfs.Namespaces) uint64 { return n.PID }},
	{"mnt", func(n procfs.Namespaces) uint64 { return n.Mount }},
}

// apart returns the namespaces of a process that are not vos's, in the order in which they
// are entered. There are none where one can't be, so that vos looks from outside, and
// refuses that one.
func apart(p *procfs.Process) (kinds []string, err error) {
	theirs, err := p.Namespaces()
	if err != nil {
		return nil, err
	}
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	own, err := self.Namespaces()
	if err := errors.Join(err, self.Close()); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 || theirs.User != own.User || theirs.Time != own.Time || theirs.PIDForChildren != theirs.PID {
		return nil, nil
	}
	for _, n := range namespaceFiles {
		if n.of(theirs) != n.of(own) {
			kinds = append(kinds, n.name)
		}
	}
	return kinds, nil
}

// errClosed is that a vos can't be started in namespaces: there is no /proc, or the first
// process of the pid namespace has ended.
var errClosed = errors.New("vos can't work there")

// A crossing is namespaces to be entered.
type crossing struct {
	files []*os.File
	pids  string // the pid namespace, as the links of /proc/PID/ns name it; "" is vos's own
}

// cross opens the namespaces in a folder: /proc/PID/ns, or one of pinFolder.
func cross(folder string, kinds []string) (_ *crossing, err error) {
	c := &crossing{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for _, n := range namespaceFiles {
		if !slices.Contains(kinds, n.name) {
			continue
		}
		file, err := os.Open(filepath.Join(folder, n.name))
		if err != nil {
			return nil, err
		}
		c.files = append(c.files, file)
		if n.name != "pid" {
			continue
		}
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		c.pids = fmt.Sprintf("pid:[%d]", info.Sys().(*syscall.Stat_t).Ino)
	}
	if len(c.files) != len(kinds) {
		return nil, fmt.Errorf("enter the namespaces %q: not all of these can be", kinds)
	}
	return c, nil
}

func (c *crossing) close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// ask lets a vos in the namespaces do something.
func (c *crossing) ask(ctx context.Context, r insideRequest, given []*os.File, emit func(insideAnswer) error) error {
	start := func(cmd *exec.Cmd) (err error) {
		kernel.OnOwnThread(func() {
			if err = kernel.EnterNamespaces(c.files); err == nil {
				err = cmd.Start()
			}
		})
		if err != nil {
			return fmt.Errorf("%w: %w", errClosed, err)
		}
		return nil
	}
	i, err := startInside(ctx, r, given, &syscall.SysProcAttr{Setsid: true}, start)
	if err != nil {
		return err
	}
	defer i.end(true)
	return i.answersTo(ctx, emit)
}

// here returns the id that a process of the namespaces has for vos.
func (c *crossing) here(within int) (int, error) {
	if c.pids == "" {
		return within, nil
	}
	return seenHere(c.pids, within)
}

// within returns a target that means a process in its own namespaces.
func within(p *procfs.Process) (api.Target, error) {
	status, err := p.Status()
	if err != nil {
		return api.Target{}, err
	}
	pid := p.PID()
	if n := len(status.NSPIDs); n > 0 {
		pid = status.NSPIDs[n-1]
	}
	return api.Target{Program: strconv.Itoa(pid)}, nil
}

// checkApart checks a process in its namespaces.
func checkApart(ctx context.Context, p *procfs.Process, kinds []string, r api.CheckRequest, emit func(api.Check) error) (err error) {
	c, err := cross(fmt.Sprintf("/proc/%d/ns", p.PID()), kinds)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if r.Target, err = within(p); err != nil {
		return err
	}
	return c.ask(ctx, insideRequest{Check: &r, Apart: &image.Apart{Kinds: kinds}}, nil, func(a insideAnswer) error {
		a.Check.PID = p.PID()
		a.Check.Notes = append(a.Check.Notes, "it is in namespaces of its own ("+strings.Join(kinds, ", ")+"), which are held, where its checkpoint ends it, until it is restored")
		return emit(*a.Check)
	})
}

// checkpointApart makes checkpoints of a process in its namespaces, which are pinned where
// it is to end.
func checkpointApart(ctx context.Context, p *procfs.Process, kinds []string, r api.CheckpointRequest, emit func(api.Snapshot) error) (err error) {
	c, err := cross(fmt.Sprintf("/proc/%d/ns", p.PID()), kinds)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	of := &image.Apart{Kinds: kinds}
	directory := r.Directory
	if !r.LeaveRunning && r.Every == 0 && !r.DryRun {
		var own *os.File
		if of.Pinned, own, err = pin(c.files, kinds, directory); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, own.Close()) }()
		defer func() {
			// With its image the program may have ended, whatever was said of it.
			if _, there := os.Stat(directory); there != nil {
				err = errors.Join(err, unpin(of.Pinned))
			}
		}()
	}
	if r.Every > 0 {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return fmt.Errorf("make folder of images: %w", err)
		}
	}
	if r.Target, err = within(p); err != nil {
		return err
	}
	if r.Directory, err = outsidePath(r.Directory); err != nil {
		return err
	}
	if r.Parent, err = outsidePath(r.Parent); err != nil {
		return err
	}
	if r.Identities, err = outsidePaths(r.Identities); err != nil {
		return err
	}
	return c.ask(ctx, insideRequest{Checkpoint: &r, Apart: of}, nil, func(a insideAnswer) error {
		a.Snapshot.PID = p.PID()
		if of.Pinned != "" && a.Snapshot.Outcome == api.Checkpointed {
			a.Snapshot.Residual = append(a.Snapshot.Residual, "its namespaces wait for the restore in "+filepath.Join(pinFolder, of.Pinned))
		}
		return emit(*a.Snapshot)
	})
}

// codeNamespaceGone is that the namespaces of an image's program are not there any more.
const codeNamespaceGone api.Code = "namespace_gone"

// restoreApart restores an image in the namespaces that its checkpoint has pinned.
func restoreApart(ctx context.Context, of *image.Apart, s api.Snapshot, r api.RestoreRequest, given map[int]*os.File) (_ api.Snapshot, err error) {
	gone := func(why string) error {
		return api.Refusal{Code: codeNamespaceGone, Subject: fmt.Sprintf("process %d", s.PID), Detail: "it was in namespaces of its own (" + strings.Join(of.Kinds, ", ") + "), " + why,
			Remedy: "--here restores it in those that vos is in (run vos in such as it needs), with --pid-any where its ids are taken"}
	}
	if of.Pinned == "" {
		return s, gone("which its checkpoint did not hold, as it went on")
	}
	if !pinName.MatchString(of.Pinned) {
		return s, fmt.Errorf("the image's namespaces can't be in a folder named %.100q", of.Pinned)
	}
	folder := filepath.Join(pinFolder, of.Pinned)
	c, err := cross(folder, of.Kinds)
	if errors.Is(err, fs.ErrNotExist) {
		return s, gone("which are not held any more: it was restored already, or the machine was started anew")
	} else if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	r.Here = true
	r, files, err := forInside(r, given)
	if err != nil {
		return s, err
	}
	err = c.ask(ctx, insideRequest{Restore: &r}, files, func(a insideAnswer) error { s = *a.Snapshot; return nil })
	if errors.Is(err, syscall.ENOMEM) && c.pids != "" {
		return s, gone("and the first process of its pid namespace has ended")
	}
	if err != nil || s.Outcome != api.Restored {
		return s, err
	}
	own := s.PID
	if pid, err := c.here(own); err != nil {
		s.Residual = append(s.Residual, err.Error())
	} else if s.PID = pid; own != pid {
		s.Residual = append(s.Residual, fmt.Sprintf("it has id %d in its pid namespace", own))
	}
	if err := unpin(of.Pinned); err != nil {
		s.Residual = append(s.Residual, err.Error())
	}
	return s, nil
}

// pin mounts namespaces to files of a new folder, and returns its name. It is not taken for
// one that was left behind as long as the file is open. Those are removed.
func pin(files []*os.File, kinds []string, directory string) (name string, own *os.File, err error) {
	if err := ownMount(pinFolder); err != nil {
		return "", nil, err
	}
	// One at a time makes a folder, or looks for those that were left behind.
	all, err := os.Open(pinFolder)
	if err == nil {
		err = syscall.Flock(int(all.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		return "", nil, fmt.Errorf("hold namespaces: %w", err)
	}
	defer func() { err = errors.Join(err, all.Close()) }()
	if err := unpinStale(); err != nil {
		return "", nil, err
	}
	if directory, err = filepath.Abs(directory); err != nil {
		return "", nil, err
	}
	name = rand.Text()
	folder := filepath.Join(pinFolder, name)
	if own, err = lockedFile(folder, directory); err != nil {
		return "", nil, fmt.Errorf("hold namespaces: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, own.Close(), unpin(name))
		}
	}()
	for i, kind := range kinds {
		at := filepath.Join(folder, kind)
		err := os.WriteFile(at, nil, 0o600)
		if err == nil {
			err = syscall.Mount(fmt.Sprintf("/proc/self/fd/%d", files[i].Fd()), at, "", syscall.MS_BIND, "")
		}
		if err != nil {
			return "", nil, fmt.Errorf("hold a namespace (%s) at %s: %w", kind, at, err)
		}
	}
	return name, own, nil
}

// lockedFile makes a folder with the file that names the image, and locks that one.
func lockedFile(folder, directory string) (_ *os.File, err error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, pinnedFor), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	_, err = file.WriteString(directory)
	if err == nil {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), os.RemoveAll(folder))
	}
	return file, nil
}

// ownMount makes a folder a mount of its own that no other mount namespace sees: one in
// which a namespace may be mounted.
func ownMount(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("hold namespaces: %w", err)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == folder {
			return nil
		}
	}
	if err := syscall.Mount(folder, folder, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("hold namespaces in %s: %w", folder, err)
	}
	if err := syscall.Mount("", folder, "", syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("hold namespaces in %s alone: %w", folder, err)
	}
	return nil
}

// unpin lets go of the namespaces that a folder holds.
func unpin(name string) error {
	folder := filepath.Join(pinFolder, name)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("let go of namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		at := filepath.Join(folder, e.Name())
		const detach = 2                                                                       // MNT_DETACH
		if err := syscall.Unmount(at, detach); err != nil && !errors.Is(err, syscall.EINVAL) { // nothing is mounted there
			errs = append(errs, err)
		}
		errs = append(errs, os.Remove(at))
	}
	if err := errors.Join(append(errs, os.Remove(folder))...); err != nil {
		return fmt.Errorf("let go of namespaces: %w", err)
	}
	return nil
}

// unpinStale lets go of namespaces whose images are gone: also those of a vos that was
// killed before it made one.
func unpinStale() error {
	entries, err := os.ReadDir(pinFolder)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !pinName.MatchString(e.Name()) {
			continue
		}
		stale, err := isStale(filepath.Join(pinFolder, e.Name(), pinnedFor))
		if err == nil && stale {
			err = unpin(e.Name())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isStale reports whether the image that a file names is gone, and nobody makes it.
func isStale(path string) (stale bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist), nil // it was killed at the begin
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return false, nil // it is being made
	}
	directory, err := io.ReadAll(file)
	if err != nil {
		return false, err
	}
	_, err = os.Stat(string(directory))
	return errors.Is(err, fs.ErrNotExist), nil
}
