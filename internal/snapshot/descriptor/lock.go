package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
)

// Locks on files are kept, and taken again in the process: those of flock(2) and
// F_OFD_SETLK and leases, which are the description's, and those of F_SETLK, which are its
// own. In between anybody may take them, or open what a lease is on: then the restore is
// refused, as who opened it then has not waited for the program.

const (
	lockFlock = "flock"
	lockPOSIX = "posix"
	lockOFD   = "ofd"
	lockLease = "lease"

	lockRead     = 0 // F_RDLCK
	lockWrite    = 1 // F_WRLCK
	sysFlock     = 73
	fcntlLock    = 6  // F_SETLK
	fcntlLockOFD = 37 // F_OFD_SETLK
	fcntlLease   = 1024
	lockToEnd    = -1
	structLock   = 32
)

var lockKinds = map[string]string{"FLOCK": lockFlock, "POSIX": lockPOSIX, "OFDLCK": lockOFD, "LEASE": lockLease}

func lockOf(l handle.Lock) (lock image.Lock, ok bool) {
	lock = image.Lock{Kind: lockKinds[l.Type], Start: l.Start, End: l.End}
	switch l.Mode {
	case "READ":
		lock.Type = lockRead
	case "WRITE":
		lock.Type = lockWrite
	default:
		return lock, false
	}
	return lock, lock.Kind != "" && !l.Mandatory && !l.Breaking
}

// lookAtLocks refuses locks that are not kept.
func lookAtLocks(h *handle.Handle) (refusals []api.Refusal) {
	for _, l := range h.Locks {
		if _, ok := lockOf(l); !ok {
			refusals = append(refusals, refusal(codeLocks, h, fmt.Sprintf("a %s %s is held on it, %s", l.Type, l.Mode, leadsTo(h)), "try again when it is given back"))
		} else if l.Type == "LEASE" {
			refusals = append(refusals, lookAtLease(h, l)...)
		}
	}
	return refusals
}

// lookAtLease refuses a lease on what will be opened by a second description before it can
// be taken: a file that is deleted, or mapped.
func lookAtLease(h *handle.Handle, l handle.Lock) []api.Refusal {
	why := ""
	if h.Deleted {
		why = "is deleted"
	} else if maps, err := mappings(h.PID); err != nil {
		why = fmt.Sprintf("may be mapped: %v", err)
	} else if slices.ContainsFunc(maps, func(m procfs.Mapping) bool { return m.Inode == h.Inode && m.Kind == procfs.KindFile }) {
		why = "is mapped, too"
	}
	if why == "" {
		return nil
	}
	return []api.Refusal{refusal(codeLocks, h, fmt.Sprintf("a lease (%s) is held on it, %s, which %s", l.Mode, leadsTo(h), why), "try again when it is given back")}
}

func mappings(pid int) (_ []procfs.Mapping, err error) {
	p, err := procfs.Open(pid)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return p.Maps()
}

// keepLocks writes down those of a description, and of the process those that can be
// taken through it: the kernel shows them for each description of the file.
func (d *dumping) keepLocks(h *handle.Handle, f *image.File) error {
	for _, l := range h.Locks {
		lock, ok := lockOf(l)
		if !ok {
			return joined(lookAtLocks(h))
		}
		if lock.Kind != lockPOSIX {
			f.Locks = append(f.Locks, lock)
			continue
		}
		key := processLock{h.PID, fileID{h.Device, h.Inode}, lock.Type, lock.Start, lock.End}
		fits := h.Flags.Writable() || lock.Type == lockRead && h.Flags.Readable()
		if !d.locks[key] && fits {
			lock.PID = h.PID
			f.Locks = append(f.Locks, lock)
		}
		d.locks[key] = d.locks[key] || fits
	}
	return nil
}

// A processLock is a lock of F_SETLK.
type processLock struct {
	pid        int
	file       fileID
	kind       int
	start, end int64
}

// lostLocks refuses locks that no descriptor of the process can take.
func (d *dumping) lostLocks() error {
	for key, kept := range d.locks {
		if !kept {
			return api.Refusal{Code: codeLocks, Subject: fmt.Sprintf("process %d", key.pid),
				Detail: fmt.Sprintf("it has a lock on inode %d, and no descriptor of it through which it could be taken again", key.file.inode), Remedy: "try again when it is given back"}
		}
	}
	return nil
}

// lockTaken turns what a lock that others have returns into a refusal.
func (o *Opened) lockTaken(i int, l image.Lock, err error) error {
	if errors.Is(err, syscall.EAGAIN) && l.Kind == lockLease {
		return o.refusal(codeLocked, i, fmt.Sprintf("somebody else has opened %s, on which the program has a lease", o.image.Files[i].Regular.Path), "end what has it open")
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return o.refusal(codeLocked, i, fmt.Sprintf("somebody else has taken its %s lock on %s", l.Kind, o.image.Files[i].Regular.Path), "end what has it")
	}
	return err
}

// wire takes the locks of a description, or through it those of the process.
func (regular) wire(o *Opened, p remote.Process, i, number int, process *image.Process) error {
	for _, l := range o.image.Files[i].Locks {
		if l.Kind == lockPOSIX && l.PID != process.PID {
			continue
		}
		calls := batch{process: p}
		switch l.Kind {
		case lockFlock:
			how := uint64(syscall.LOCK_SH | syscall.LOCK_NB)
			if l.Type == lockWrite {
				how = syscall.LOCK_EX | syscall.LOCK_NB
			}
			calls.add(sysFlock, uint64(number), how)
		case lockOFD:
			calls.add(sysFcntl, uint64(number), fcntlLockOFD, calls.place(flock(l)))
		case lockPOSIX:
			calls.add(sysFcntl, uint64(number), fcntlLock, calls.place(flock(l)))
		case lockLease:
			calls.add(sysFcntl, uint64(number), fcntlLease, uint64(l.Type))
		default:
			return fmt.Errorf("the image has a lock of kind %.40q, which this vos can't take", l.Kind)
		}
		if err := calls.run(); err != nil {
			return o.lockTaken(i, l, err)
		}
	}
	return nil
}

// flock is struct flock: type, whence, start, length (0 is all to the end), pid.
func flock(l image.Lock) []byte {
	b := make([]byte, structLock)
	binary.NativeEndian.PutUint16(b, uint16(l.Type))
	binary.NativeEndian.PutUint64(b[8:], uint64(l.Start))
	if l.End != lockToEnd {
		binary.NativeEndian.PutUint64(b[16:], uint64(l.End-l.Start+1))
	}
	return b
}
