package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// ErrNoFile is wrapped where a mapping has no file to open.
var ErrNoFile = errors.New("mapping of no regular file")

// ErrUnmapped is wrapped where a mapping is no longer there.
var ErrUnmapped = errors.New("nothing is mapped there any more")

// A FileChange is what became of a mapped file's path.
type FileChange uint8

// What became of a mapped file's path.
const (
	FileUnknown  FileChange = iota // it may not be looked at; FileState.Why
	FileSame                       // the mapped file is at its path
	FileReplaced                   // another file is at the path
	FileDeleted                    // nothing is
	FileNone                       // there is no file: anonymous memory, the vDSO
)

func (c FileChange) String() string {
	return [...]string{"unknown", "same", "replaced", "deleted", "none"}[c]
}

// A FileState compares a mapped file with what is at its path now.
type FileState struct {
	Change FileChange
	// Modified is when the mapped file, not the one at the path, was last
	// written; the zero time where the mapped file can't be looked at.
	Modified time.Time
	Size     int64 // of the mapped file, in bytes, likewise
	// Born is when the mapped file was made; only of a file that was replaced or
	// deleted, and the zero time where the file system does not tell.
	Born time.Time
	Why  error // of FileUnknown
	// OwnRoot tells that the path was looked up from the root directory of this
	// process, not from that of the process it is mapped in.
	OwnRoot bool
}

// FileState tells what became of the file of a mapping: its path is looked up
// now from the process's own root directory, and files are compared by device
// and inode. A file that was renamed is mapped under its new name, so it is
// the same: the kernel keeps no former names.
//
// A process that moved to another root directory or mount namespace since has
// files mapped that its root does not lead to: chroot(2) of a server, the
// monitor of a sandbox. These are looked up where this process sees them, if it
// does; otherwise nothing can be said of them.
func (p *Process) FileState(m Mapping) FileState {
	if m.Inode == 0 {
		return FileState{Change: FileNone}
	}
	var state FileState
	mapped, mappedErr := p.openMapFile(&m)
	if mappedErr == nil {
		defer mapped.Close()
		if st, err := kernel.StatFile(mapped); err == nil {
			state.Modified, state.Size = st.Modified, st.Size
		}
	}
	if m.Kind != KindFile {
		state.Change = FileNone
		return state
	}
	p.compareAt(&state, &m, mapped, p.openAtPath)
	if state.Change != FileSame && mappedErr == nil {
		p.settleElsewhere(&state, &m, mapped)
	}
	return state
}

// compareAt compares the mapped file with what open finds at its path.
func (p *Process) compareAt(state *FileState, m *Mapping, mapped *os.File, open func(path string) (*os.File, error)) {
	state.Change, state.Why = FileUnknown, nil
	now, err := open(m.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		state.Change = FileDeleted
		return
	case err != nil:
		state.Why = p.failed("look up "+m.Path+" in", err)
		return
	}
	defer now.Close()
	same, err := isMapped(m, mapped, now)
	switch {
	case err != nil:
		state.Why = p.failed("compare "+m.Path+" in", err)
	case !same:
		state.Change = FileReplaced
	default:
		state.Change = FileSame
		if st, err := kernel.StatFile(now); err == nil {
			state.Modified, state.Size = st.Modified, st.Size
		}
	}
}

// OpenMapped opens the file that is mapped, for reading: its bytes are to be
// had though it was deleted or another one took its path. That goes through
// /proc/PID/map_files and needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN. A
// user without them gets the file at the mapping's path, or the process's
// executable, if that is the mapped one.
//
// A mapping without a regular file gives ErrNoFile; a missing right an error
// that wraps fs.ErrPermission and names it.
func (p *Process) OpenMapped(m Mapping) (*os.File, error) {
	verb := "open mapped " + m.Path + " of"
	// The inode of a System V segment is its id, and the first one's is 0.
	if m.Inode == 0 && m.Kind != KindSysV || m.Kind == KindAnonInode {
		return nil, p.failed(verb, ErrNoFile)
	}
	mapped, err := p.openMapFile(&m)
	if err == nil {
		defer mapped.Close()
		file, err := reopenMapped(&m, mapped)
		if err != nil {
			return nil, p.failed(verb, err)
		}
		return file, nil
	}
	if !errors.Is(err, fs.ErrPermission) && !isAbsence(err) {
		return nil, p.failed(verb, err)
	}
	why := fmt.Errorf("it is no longer at its path, and map_files needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: %w", fs.ErrPermission)
	if isAbsence(err) {
		why = fmt.Errorf("%x-%x: %w", m.Start, m.End, ErrUnmapped)
		if _, err := p.Auxv(); err != nil {
			return nil, p.failed(verb, err)
		}
		// A process whose main thread has ended has no map_files.
		if stat, err := p.Stat(); err != nil || !stat.Zombie() {
			return nil, p.failed(verb, why)
		}
	}
	for _, open := range []func() (*os.File, error){
		func() (*os.File, error) { return p.openAtPath(m.Path) },
		func() (*os.File, error) { return p.openMemoryFile("exe", kernel.PathOnly) },
	} {
		if candidate, openErr := open(); openErr == nil {
			same, _ := isMapped(&m, nil, candidate)
			var file *os.File
			if same {
				file, openErr = reopenRegular(candidate)
			}
			candidate.Close()
			if same && openErr == nil {
				return file, nil
			}
		}
	}
	return nil, p.failed(verb, why)
}

func (p *Process) openMapFile(m *Mapping) (*os.File, error) {
	return p.dir.Open(mapFile(m), kernel.PathOnly)
}

// reopenMapped opens what the magic link of m led to, unless something else is
// mapped there by now. On some kernels that also tells a file of an overlay
// that was copied up since: its new bytes are not those that are mapped.
func reopenMapped(m *Mapping, mapped *os.File) (*os.File, error) {
	file, err := reopenRegular(mapped)
	if err != nil {
		return nil, err
	}
	same, err := isMapped(m, nil, mapped)
	if err == nil && !same {
		err = fmt.Errorf("another file is at %x-%x by now", m.Start, m.End)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func reopenRegular(file *os.File) (*os.File, error) {
	st, err := kernel.StatFile(file)
	if err != nil {
		return nil, err
	}
	if st.Mode != 0 { // a device's open may do things
		return nil, ErrNoFile
	}
	return kernel.Reopen(file, syscall.O_RDONLY)
}

// openAtPath opens (O_PATH) what is at a mapped path now, as the process would
// find it. Maps writes paths from the root of the mount namespace; a process
// that was moved to another root directory finds them without its prefix.
func (p *Process) openAtPath(path string) (*os.File, error) {
	inside, err := p.PathInRoot(path)
	if err != nil {
		return nil, err
	}
	root, err := p.openRoot()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenInRoot(inside, kernel.PathOnly)
}

// isAtPath reports whether the mapped file is what its path leads to.
func (p *Process) isAtPath(m *Mapping) (bool, error) {
	now, err := p.openAtPath(m.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer now.Close()
	mapped, err := p.openMapFile(m)
	if err != nil {
		return isMapped(m, nil, now)
	}
	defer mapped.Close()
	return isMapped(m, mapped, now)
}

// isMapped reports whether candidate is the file of the mapping. With the
// mapped file at hand (from map_files; nil without the right to it) both are
// asked the same question. Otherwise there are only the numbers in maps, which
// on overlayfs and btrfs are not those of stat(2); then the candidate is
// mapped here, to see what maps says of it.
func isMapped(m *Mapping, mapped, candidate *os.File) (bool, error) {
	st, err := kernel.StatFile(candidate)
	if err != nil {
		return false, err
	}
	if mapped != nil {
		other, err := kernel.StatFile(mapped)
		if err != nil {
			return false, err
		}
		return st.Device == other.Device && st.Inode == other.Inode, nil
	}
	major, minor := kernel.Device(st.Device)
	if st.Inode == m.Inode && major == m.DevMajor && minor == m.DevMinor {
		return true, nil
	}
	if st.Mode != 0 { // neither a module nor safe to open
		return false, nil
	}
	own, err := ownMapping(candidate)
	if err != nil {
		return false, err
	}
	return own.Inode == m.Inode && own.DevMajor == m.DevMajor && own.DevMinor == m.DevMinor, nil
}

// ownMapping maps a page of the file for a moment and returns how maps
// describes it.
func ownMapping(candidate *os.File) (Mapping, error) {
	file, err := kernel.Reopen(candidate, syscall.O_RDONLY)
	if err != nil {
		return Mapping{}, err
	}
	defer file.Close()
	address, unmap, err := kernel.MapPage(file)
	if err != nil {
		return Mapping{}, err
	}
	defer unmap()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return Mapping{}, err
	}
	maps, err := ParseMaps(nil, text)
	if err != nil {
		return Mapping{}, err
	}
	for _, m := range maps {
		if m.Contains(address) {
			return m, nil
		}
	}
	return Mapping{}, fmt.Errorf("find the mapping of %s at %#x: it is not in maps", candidate.Name(), address)
}
