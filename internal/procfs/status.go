package procfs

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// A SignalSet is a set of signals, bit n-1 for signal n.
type SignalSet uint64

// Has reports whether the signal is in the set.
func (s SignalSet) Has(signal int) bool {
	return signal >= 1 && signal <= 64 && s&(1<<(signal-1)) != 0
}

// Modes of seccomp(2), as Status.Seccomp has them.
const (
	SeccompDisabled = 0
	SeccompStrict   = 1
	SeccompFilter   = 2
)

// IDs are the user or group ids of a process, as the reader's user namespace
// sees them.
type IDs struct{ Real, Effective, Saved, Filesystem int }

// A Status is /proc/PID/status, proc_pid_status(5), or that of one thread.
// What the running kernel does not tell is 0, or nil.
type Status struct {
	Name           string
	State          byte
	TGID           int // the process's id, whichever thread was asked
	PID            int // the thread's
	PPID           int
	TracerPID      int // 0 where nobody traces it
	UIDs, GIDs     IDs
	Groups         []int // supplementary
	Slots          int   // FDSize: room in the descriptor table, as it is allocated
	NSPIDs         []int // its ids from the reader's pid namespace inwards
	Threads        int
	QueuedSignals  uint64 // SigQ: queued for its user, and how many may be
	QueueLimit     uint64
	Pending        SignalSet // SigPnd: for this thread
	SharedPending  SignalSet // ShdPnd: for the process
	Blocked        SignalSet
	Ignored        SignalSet
	Caught         SignalSet
	Umask          uint32
	CapInheritable uint64
	CapPermitted   uint64
	CapEffective   uint64
	CapBounding    uint64
	CapAmbient     uint64
	NoNewPrivs     bool
	Seccomp        int
	SeccompFilters int
	ThreadFeatures []string // x86_Thread_features: "shstk", "wrss"
	PeakResident   uint64   // VmHWM, bytes
	Resident       uint64   // VmRSS, bytes
	Waits          uint64   // voluntary_ctxt_switches: how often the thread gave the CPU up
	Locked         uint64   // VmLck, bytes: by mlock(2)
	PageTables     uint64   // VmPTE, bytes
}

// Status reads /proc/PID/status. Anyone may.
func (p *Process) Status() (Status, error) { return p.status("status") }

// ThreadStatus reads the status of one thread.
func (p *Process) ThreadStatus(tid int) (Status, error) {
	return p.status("task/" + strconv.Itoa(tid) + "/status")
}

func (p *Process) status(name string) (s Status, err error) {
	err = p.read(name, func(text []byte) (err error) {
		s, err = ParseStatus(text)
		return err
	})
	return s, err
}

// ParseStatus reads the text of a status file. A newline or backslash in the
// name is escaped there, so a line is what the kernel meant as one.
func ParseStatus(text []byte) (Status, error) {
	var s Status
	named := false
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		key, value, found := bytes.Cut(line, []byte(":"))
		if !found {
			continue
		}
		n := numbers{rest: value}
		switch string(key) {
		case "Name":
			s.Name, named = unescapeName(bytes.TrimPrefix(value, []byte("\t"))), true
		case "State":
			if state := n.field(); len(state) == 1 {
				s.State = state[0]
			}
		case "Tgid":
			s.TGID = int(n.signed())
		case "Pid":
			s.PID = int(n.signed())
		case "PPid":
			s.PPID = int(n.signed())
		case "TracerPid":
			s.TracerPID = int(n.signed())
		case "Uid":
			s.UIDs = n.ids()
		case "Gid":
			s.GIDs = n.ids()
		case "NSpid":
			for field := n.field(); len(field) > 0; field = n.field() {
				id, ok := parseUnsigned(field, 10)
				if !ok {
					n.err = fmt.Errorf("%.40q is not a number", field)
					break
				}
				s.NSPIDs = append(s.NSPIDs, int(id))
			}
		case "Threads":
			s.Threads = int(n.signed())
		case "SigQ":
			if i := bytes.IndexByte(n.rest, '/'); i >= 0 {
				limit := numbers{rest: n.rest[i+1:]}
				n.rest = n.rest[:i]
				s.QueueLimit = limit.unsigned(10)
				n.err = limit.err
			}
			s.QueuedSignals = n.unsigned(10)
		case "SigPnd":
			s.Pending = SignalSet(n.unsigned(16))
		case "FDSize":
			s.Slots = int(n.signed())
		case "Groups":
			for range strings.Fields(string(value)) {
				s.Groups = append(s.Groups, int(n.signed()))
			}
		case "ShdPnd":
			s.SharedPending = SignalSet(n.unsigned(16))
		case "SigBlk":
			s.Blocked = SignalSet(n.unsigned(16))
		case "SigIgn":
			s.Ignored = SignalSet(n.unsigned(16))
		case "SigCgt":
			s.Caught = SignalSet(n.unsigned(16))
		case "Umask":
			s.Umask = uint32(n.unsigned(8))
		case "CapInh":
			s.CapInheritable = n.unsigned(16)
		case "CapPrm":
			s.CapPermitted = n.unsigned(16)
		case "CapEff":
			s.CapEffective = n.unsigned(16)
		case "CapBnd":
			s.CapBounding = n.unsigned(16)
		case "CapAmb":
			s.CapAmbient = n.unsigned(16)
		case "NoNewPrivs":
			s.NoNewPrivs = n.unsigned(10) != 0
		case "Seccomp":
			s.Seccomp = int(n.signed())
		case "Seccomp_filters":
			s.SeccompFilters = int(n.signed())
		case "x86_Thread_features":
			s.ThreadFeatures = strings.Fields(string(value))
		case "VmHWM":
			s.PeakResident = n.kilobytes()
		case "VmRSS":
			s.Resident = n.kilobytes()
		case "voluntary_ctxt_switches":
			s.Waits = n.unsigned(10)
		case "VmLck":
			s.Locked = n.kilobytes()
		case "VmPTE":
			s.PageTables = n.kilobytes()
		}
		if n.err != nil {
			return Status{}, fmt.Errorf("parse status: %s: %w", key, n.err)
		}
	}
	if !named || s.PID == 0 {
		return Status{}, fmt.Errorf("parse status: no name or no pid")
	}
	return s, nil
}

func (n *numbers) ids() IDs {
	return IDs{int(n.signed()), int(n.signed()), int(n.signed()), int(n.signed())}
}

func (n *numbers) kilobytes() uint64 {
	v := n.unsigned(10)
	if v > (1<<64-1)/1024 {
		n.err = fmt.Errorf("%d kB is not a size", v)
		return 0
	}
	return v * 1024
}

// unescapeName undoes the kernel's string_escape_str of a process's name:
// \n is a newline and \\ a backslash, and nothing else is escaped.
func unescapeName(name []byte) string {
	if bytes.IndexByte(name, '\\') < 0 {
		return string(name)
	}
	plain := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '\\' && i+1 < len(name) && (name[i+1] == 'n' || name[i+1] == '\\') {
			i++
			if c = name[i]; c == 'n' {
				c = '\n'
			}
		}
		plain = append(plain, c)
	}
	return string(plain)
}
