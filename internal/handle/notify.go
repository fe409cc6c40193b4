package handle

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// An Event is the state of an eventfd.
type Event struct {
	Count     uint64
	Semaphore bool // EFD_SEMAPHORE; not told before Linux 6.5
}

// A Timer is the state of a timerfd.
type Timer struct {
	Clock     int           // of clock_gettime(2)
	Ticks     uint64        // that were not read yet
	Flags     uint64        // of timerfd_settime(2)
	Remaining time.Duration // until it fires next; 0 is never
	Interval  time.Duration // from one time to the next; 0 is once
}

var clockNames = map[int]string{
	0: "CLOCK_REALTIME", 1: "CLOCK_MONOTONIC", 7: "CLOCK_BOOTTIME",
	8: "CLOCK_REALTIME_ALARM", 9: "CLOCK_BOOTTIME_ALARM",
}

// ClockName returns the clock by its name, or its number where that is new.
func (t Timer) ClockName() string {
	if name, ok := clockNames[t.Clock]; ok {
		return name
	}
	return fmt.Sprint(t.Clock)
}

// A Target is the process behind a pidfd.
type Target struct {
	PID int // 0 if it is not in the reader's pid namespace, -1 if it has been reaped
}

// A Watch is one file or directory that an inotify instance watches.
type Watch struct {
	Number        int
	Device, Inode uint64 // of the file, as stat(2) has it
	Events        uint32 // IN_MODIFY, …

	// FileHandle is that of name_to_handle_at(2), where the file system has them.
	FileHandle     []byte
	FileHandleType int
}

// addWatch reads "inotify wd:1 ino:3c4a3 sdev:fe00000 mask:2 ignored_mask:0 …", all
// hexadecimal.
func (in *info) addWatch(line string) error {
	if len(in.watches) == maxEntries {
		return errEntries
	}
	var w Watch
	var device uint64
	if _, err := fmt.Sscanf(line, "inotify wd:%x ino:%x sdev:%x mask:%x", &w.Number, &w.Inode, &device, &w.Events); err != nil {
		return err
	}
	w.Device = kernelDevice(device)
	if _, rest, ok := strings.Cut(line, " fhandle-bytes:"); ok {
		var size int
		var text string
		if _, err := fmt.Sscanf(rest, "%x fhandle-type:%x f_handle:%s", &size, &w.FileHandleType, &text); err != nil {
			return err
		}
		var err error
		if w.FileHandle, err = hex.DecodeString(text); err != nil || len(w.FileHandle) != size {
			return fmt.Errorf("a file handle of %d bytes: %.60q", size, text)
		}
	}
	in.watches = append(in.watches, w)
	return nil
}

var watchNames = []string{
	"IN_ACCESS", "IN_MODIFY", "IN_ATTRIB", "IN_CLOSE_WRITE", "IN_CLOSE_NOWRITE", "IN_OPEN",
	"IN_MOVED_FROM", "IN_MOVED_TO", "IN_CREATE", "IN_DELETE", "IN_DELETE_SELF", "IN_MOVE_SELF",
}

// EventNames returns what is watched for, by the names of inotify(7).
func (w Watch) EventNames() []string {
	names := []string{}
	for bit, name := range watchNames {
		if w.Events&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// A Ring is an io_uring.
type Ring struct {
	Submission, Completion uint64 // entries of the queues
	Files, Buffers         int    // that are registered
}
