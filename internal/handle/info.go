package handle

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// An info is the text of an fdinfo file, proc_pid_fdinfo(5).
type info struct {
	offset   int64
	flags    Flags
	mount    int
	inode    uint64
	hasInode bool // not before Linux 5.14
	locks    []Lock
	terminal int // the number of a pseudo terminal's master; -1 is none

	kind    Kind // of which there is a line; "" where all lines are any file's
	epoll   []Registration
	event   Event
	timer   Timer
	signals procfs.SignalSet
	process Target
	watches []Watch
	ring    Ring
}

// maxEntries bounds the lists of one descriptor: registrations, watches, locks.
const maxEntries = 1 << 20

var errEntries = errors.New("it has more entries than the kernel allows by default")

// parseInfo reads an fdinfo file. Lines that it does not know are passed over:
// drivers add their own.
func parseInfo(text []byte) (*info, error) {
	in := &info{mount: -1, terminal: -1}
	seen := map[string]bool{}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		key, value, found := bytes.Cut(line, []byte(":"))
		if !found || len(key) == 0 {
			continue
		}
		value = bytes.TrimSpace(value)
		var err error
		switch k := string(key); k {
		case "pos", "flags", "mnt_id", "ino":
			// These come first; a driver's line of this name changes nothing.
			if !seen[k] {
				seen[k] = true
				err = in.common(k, string(value))
			}
		case "lock":
			err = in.addLock(string(value))
		case "tty-index":
			in.terminal, err = strconv.Atoi(string(value))
		default:
			err = in.special(k, line, string(value))
		}
		if err != nil {
			return nil, fmt.Errorf("parse fdinfo %.80q: %w", line, err)
		}
	}
	// The kernel's order is that of addresses.
	slices.SortStableFunc(in.epoll, func(a, b Registration) int { return a.FD - b.FD })
	if !seen["pos"] || !seen["flags"] {
		return nil, fmt.Errorf("parse fdinfo: no offset or no flags")
	}
	return in, nil
}

func (in *info) common(key, value string) (err error) {
	switch key {
	case "pos":
		in.offset, err = strconv.ParseInt(value, 10, 64)
	case "flags":
		var flags uint64
		flags, err = strconv.ParseUint(value, 8, 64)
		in.flags = Flags(flags)
	case "mnt_id":
		in.mount, err = strconv.Atoi(value)
	case "ino":
		in.hasInode = true
		in.inode, err = strconv.ParseUint(value, 10, 64)
	}
	return err
}

// special reads a line that only files of one kind have.
func (in *info) special(key string, line []byte, value string) (err error) {
	switch key {
	case "tfd":
		in.kind = KindEpoll
		err = in.addRegistration(string(line))
	case "eventfd-count":
		in.kind = KindEventfd
		in.event.Count, err = strconv.ParseUint(value, 16, 64)
	case "eventfd-semaphore":
		in.event.Semaphore = value != "0"
	case "clockid":
		in.kind = KindTimerfd
		in.timer.Clock, err = strconv.Atoi(value)
	case "ticks":
		in.timer.Ticks, err = strconv.ParseUint(value, 10, 64)
	case "settime flags":
		in.timer.Flags, err = strconv.ParseUint(value, 8, 32)
	case "it_value":
		in.timer.Remaining, err = parseTimespec(value)
	case "it_interval":
		in.timer.Interval, err = parseTimespec(value)
	case "sigmask":
		in.kind = KindSignalfd
		var set uint64
		set, err = strconv.ParseUint(value, 16, 64)
		in.signals = procfs.SignalSet(set)
	case "Pid":
		in.kind = KindPidfd
		in.process.PID, err = strconv.Atoi(value)
	case "SqMask":
		in.kind = KindIOUring
		in.ring.Submission, err = parseMask(value)
	case "CqMask":
		in.ring.Completion, err = parseMask(value)
	case "UserFiles":
		in.ring.Files, err = strconv.Atoi(value)
	case "UserBufs":
		in.ring.Buffers, err = strconv.Atoi(value)
	default:
		if bytes.HasPrefix(line, []byte("inotify wd:")) {
			in.kind = KindInotify
			err = in.addWatch(string(line))
		}
	}
	return err
}

// parseTimespec reads "(seconds, nanoseconds)".
func parseTimespec(text string) (time.Duration, error) {
	var seconds, nanoseconds int64
	if _, err := fmt.Sscanf(text, "(%d, %d)", &seconds, &nanoseconds); err != nil {
		return 0, err
	}
	const most = int64(1<<63-1) / int64(time.Second)
	if seconds < 0 || seconds >= most || nanoseconds < 0 || nanoseconds >= int64(time.Second) {
		return 0, fmt.Errorf("%.60q is no time", text)
	}
	return time.Duration(seconds)*time.Second + time.Duration(nanoseconds), nil
}

// parseMask reads the mask of a ring and returns its number of entries.
func parseMask(value string) (uint64, error) {
	mask, err := strconv.ParseUint(value, 0, 32)
	return mask + 1, err
}
