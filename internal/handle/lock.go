package handle

import (
	"fmt"
	"strconv"
	"strings"
)

// A Lock is held on a file: by the description (FLOCK, OFDLCK, LEASE) or by the
// process (POSIX).
type Lock struct {
	Type       string // FLOCK, POSIX, OFDLCK, LEASE, …
	Mode       string // READ, WRITE, …
	Mandatory  bool
	Breaking   bool  // of a lease: somebody waits for its end
	PID        int   // that took it; -1 of OFDLCK
	Start, End int64 // bytes of the file, End included; -1 is to its end
}

// addLock reads "1: POSIX  ADVISORY  WRITE 14638 fe:00:9977940 5 14".
func (in *info) addLock(value string) error {
	if len(in.locks) == maxEntries {
		return errEntries
	}
	fields := strings.Fields(value)
	if len(fields) != 8 {
		return fmt.Errorf("%d fields, want 8", len(fields))
	}
	l := Lock{Type: fields[1], Mandatory: fields[2] == "MANDATORY", Breaking: fields[2] == "BREAKING", Mode: fields[3], End: -1}
	var err error
	if l.PID, err = strconv.Atoi(fields[4]); err != nil {
		return err
	}
	if l.Start, err = strconv.ParseInt(fields[6], 10, 64); err != nil {
		return err
	}
	if fields[7] != "EOF" {
		l.End, err = strconv.ParseInt(fields[7], 10, 64)
	}
	if err == nil {
		in.locks = append(in.locks, l)
	}
	return err
}
