package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Segment is System V shared memory: shmctl(2).
type Segment struct {
	ID       int
	Key      int32  // 0 where it is found by no key
	Size     uint64 // bytes
	Mode     uint32 // permissions, SegmentRemoved, SegmentLocked
	UID, GID uint32
	Attached uint64 // by how many mappings, of all processes
}

// Bits of Segment.Mode beside the permissions.
const (
	SegmentRemoved = 0o1000 // it ends when nobody is attached any more
	SegmentLocked  = 0o2000 // it stays in memory

	shmLock = 11 // SHM_LOCK
)

// StatSegment looks at a segment. Where there is none the error wraps fs.ErrNotExist.
func StatSegment(id int) (Segment, error) {
	var d unix.SysvShmDesc
	_, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Segment{}, fmt.Errorf("look at shared memory segment %d: %w", id, err)
	}
	return Segment{ID: id, Key: d.Perm.Key, Size: d.Segsz, Mode: d.Perm.Mode & 0o3777, UID: d.Perm.Uid, GID: d.Perm.Gid, Attached: d.Nattch}, nil
}

// FindSegment returns the id of the segment of a key. Where there is none the error wraps
// fs.ErrNotExist.
func FindSegment(key int32) (id int, err error) {
	if id, err = unix.SysvShmGet(int(key), 0, 0); err != nil {
		return 0, fmt.Errorf("find shared memory segment of key %#x: %w", uint32(key), err)
	}
	return id, nil
}

// MakeSegment makes a segment that is as s says, with its id, but does not mark it as
// removed. Where its id or key is taken the error wraps fs.ErrExist.
func MakeSegment(s Segment) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make shared memory segment %d: %w", s.ID, err)
		}
	}()
	const tries = 10
	for n := 1; ; n++ {
		// Whoever makes the next segment in this namespace gets the id.
		if err := os.WriteFile("/proc/sys/kernel/shm_next_id", []byte(strconv.Itoa(s.ID)), 0); err != nil {
			return err
		}
		id, err := unix.SysvShmGet(int(s.Key), int(s.Size), unix.IPC_CREAT|unix.IPC_EXCL|0o600)
		if err != nil {
			return err
		}
		if id == s.ID {
			break
		}
		if err := RemoveSegment(id); err != nil {
			return err
		}
		if n == tries {
			return fmt.Errorf("another segment is in its place: %w", fs.ErrExist)
		}
	}
	d := unix.SysvShmDesc{Perm: unix.SysvIpcPerm{Uid: s.UID, Gid: s.GID, Mode: s.Mode & 0o777}}
	_, err = unix.SysvShmCtl(s.ID, unix.IPC_SET, &d)
	if err == nil && s.Mode&SegmentLocked != 0 {
		_, err = unix.SysvShmCtl(s.ID, shmLock, nil)
	}
	if err != nil {
		return errors.Join(err, RemoveSegment(s.ID))
	}
	return nil
}

// RemoveSegment marks a segment as removed: it ends when nobody is attached any more.
func RemoveSegment(id int) error {
	if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
		return fmt.Errorf("remove shared memory segment %d: %w", id, err)
	}
	return nil
}

// OpenSegment attaches a segment to this process, and opens what it has, for reading and
// writing. The caller detaches it when no other process needs to find it there any more.
func OpenSegment(id int) (content *os.File, detach func() error, err error) {
	data, err := unix.SysvShmAttach(id, 0, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("attach shared memory segment %d: %w", id, err)
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	end := start + (uintptr(len(data))+pageBytes-1)&^(pageBytes-1)
	content, err = os.OpenFile(fmt.Sprintf("/proc/self/map_files/%x-%x", start, end), os.O_RDWR, 0)
	if err != nil {
		return nil, nil, errors.Join(err, unix.SysvShmDetach(data))
	}
	return content, func() error { return unix.SysvShmDetach(data) }, nil
}

const pageBytes = 4096

// Forget makes the first size bytes of a file in memory zeroes.
func Forget(file *os.File, size int64) error {
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil {
		return fmt.Errorf("clear %s: %w", file.Name(), err)
	}
	return nil
}
