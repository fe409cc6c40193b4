package descriptor

import (
	"fmt"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A regular file or directory, or what is open by O_PATH, is kept by its path, as the
// program's root directory sees it, and what it was like; its content is not kept. It
// is opened again with the flags that it has, and gets its offset.
type regular struct{}

func (regular) look(l *looking, h *handle.Handle) (refusals []api.Refusal) {
	refusals = lookAtLocks(h)
	switch {
	case h.Deleted:
		return append(refusals, l.lookAtDeleted(h)...)
	case inProc(h.Path):
		return append(refusals, refusal(codeProc, h, leadsTo(h)+", which is about one process", "close it, and try again"))
	}
	return append(refusals, l.atPath(h)...)
}

// mayShare: who only appends does not need the offset.
func (regular) mayShare(h *handle.Handle) bool {
	return h.Kind == handle.KindPath || h.Flags.Access() == handle.AccessWrite && h.Flags&handle.FlagAppend != 0
}

const flagNoFollow handle.Flags = 0o400000

// inProc reports whether a path is in the folder of a process in /proc.
func inProc(path string) bool {
	rest, ok := strings.CutPrefix(path, "/proc/")
	return ok && len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9'
}

// atPath refuses what is not to be found under its path.
func (l *looking) atPath(h *handle.Handle) []api.Refusal {
	root, err := kernel.OpenDirectory("/")
	if err != nil {
		return []api.Refusal{refusal(codeHidden, h, fmt.Sprintf("%s, and the root directory can't be looked at: %v", leadsTo(h), err), "run vos as root")}
	}
	defer root.Close()
	stat, err := statInRoot(root, h.Path, h.Flags&flagNoFollow != 0)
	if err == nil && stat.Device == h.Device && stat.Inode == h.Inode {
		return nil
	}
	return []api.Refusal{refusal(codeHidden, h, leadsTo(h)+", but the path leads to something else", "close it, and try again")}
}

func statInRoot(root *kernel.Directory, path string, noFollow bool) (kernel.RawStat, error) {
	flags := kernel.PathOnly
	if noFollow {
		flags |= int(flagNoFollow)
	}
	raw, err := root.OpenRaw(path, flags)
	if err != nil {
		return kernel.RawStat{}, err
	}
	defer raw.Close()
	return raw.Stat()
}

func (regular) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	stat, err := raw.Stat()
	if err != nil {
		return err
	}
	f.Regular = &image.Regular{FileRef: reference(h.Path, stat), Mode: stat.Permissions}
	if err := d.keepLocks(h, f); err != nil || !h.Deleted {
		return err
	}
	return d.dumpDeleted(h, raw, f, stat)
}

func reference(path string, stat kernel.RawStat) image.FileRef {
	return image.FileRef{Path: path, Device: stat.Device, Inode: stat.Inode, Size: stat.Size, Modified: stat.Modified}
}

func (regular) plan(p *planning, i int) []api.Refusal {
	f := &p.image.Files[i]
	if f.Regular.Deleted {
		return p.planDeleted(i)
	}
	stat, err := statInRoot(p.root, p.at(f.Regular.Path), handle.Flags(f.Flags)&flagNoFollow != 0)
	if err != nil {
		return []api.Refusal{p.refusal(codeMissing, i, fmt.Sprintf("%s can't be opened: %v", f.Regular.Path, err), "put the file back")}
	}
	return p.changedRefusal(i, stat)
}

// changedRefusal refuses a file that is not as it was, or not of the type that it was.
func (p *planning) changedRefusal(i int, stat kernel.RawStat) []api.Refusal {
	f := &p.image.Files[i]
	if !sameType(f, stat) {
		return []api.Refusal{p.refusal(codeChanged, i, f.Regular.Path+" is of another type", "put the file back as it was")}
	}
	if detail := changed(f, stat); detail != "" && !p.Force && p.at(f.Regular.Path) == f.Regular.Path {
		return []api.Refusal{p.refusal(codeChanged, i, f.Regular.Path+" "+detail, "put the file back as it was, or take it as it is by --force-files")}
	}
	return nil
}

// sameType reports whether a file may be opened as what it was: another type may wait,
// or act. What O_PATH names is not opened.
func sameType(f *image.File, stat kernel.RawStat) bool {
	switch handle.Kind(f.Kind) {
	case handle.KindFile:
		return stat.Mode.IsRegular()
	case handle.KindDirectory:
		return stat.Mode.IsDir()
	}
	return true
}

// changed tells what a file is now that it was not, or "". Another inode is another
// file. A file must have its size and time of change, but for what only appends to
// it (a log): that it has grown since changes nothing for the program. Of a directory
// and of what is open by O_PATH only the inode counts, and of files of the kernel's
// own (/proc, /sys), which have no size, neither does the time.
func changed(f *image.File, stat kernel.RawStat) string {
	was := f.Regular
	appends := handle.Flags(f.Flags).Access() == handle.AccessWrite && handle.Flags(f.Flags)&handle.FlagAppend != 0
	major, _ := kernel.Device(stat.Device)
	switch {
	case stat.Inode != was.Inode:
		return "is another file"
	case f.Kind != string(handle.KindFile):
		return ""
	case stat.Size < was.Size, stat.Size > was.Size && !appends:
		return fmt.Sprintf("has %d bytes, and had %d", stat.Size, was.Size)
	case appends, major == 0 && was.Size == 0 && stat.Size == 0 && isKernels(was.Path):
		return ""
	case !stat.Modified.Equal(was.Modified):
		return fmt.Sprintf("was written at %s, after %s", stat.Modified.UTC().Format(timeFormat), was.Modified.UTC().Format(timeFormat))
	}
	return ""
}

const timeFormat = "2006-01-02T15:04:05.000000000Z"

func isKernels(path string) bool {
	return strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/")
}

func (regular) open(o *Opened, i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	open := o.openNamed
	if f.Regular.Deleted {
		open = o.openDeleted
	}
	raw, err := open(i)
	if err != nil || f.Kind == string(handle.KindPath) {
		return raw, err
	}
	if err := raw.SetOffset(f.Offset); err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}

// openFlags returns what a file is opened with. O_TMPFILE, which contains O_DIRECTORY, is
// of no meaning afterwards.
func openFlags(f *image.File) int {
	const directory = 0o200000
	flags := int(f.Flags) & statusFlags
	if f.Kind == string(handle.KindFile) {
		flags &^= directory
	}
	return flags
}

// openNamed opens a file by its path. It is looked at once more, before opening it may
// wait or act, and what was opened is looked at, too.
func (o *Opened) openNamed(i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	before, err := statInRoot(o.root, o.at(f.Regular.Path), handle.Flags(f.Flags)&flagNoFollow != 0)
	if err != nil {
		return -1, err
	}
	if refusals := o.changedRefusal(i, before); len(refusals) > 0 {
		return -1, joined(refusals)
	}
	raw, err := o.root.OpenRaw(o.at(f.Regular.Path), openFlags(f))
	if err != nil {
		return -1, err
	}
	after, err := raw.Stat()
	if err == nil && (after.Device != before.Device || after.Inode != before.Inode) {
		err = o.refusal(codeChanged, i, f.Regular.Path+" became another file meanwhile", "try again")
	}
	if err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}
