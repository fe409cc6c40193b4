package procfs

import (
	"bytes"
	"fmt"
	"strconv"
)

// kernelThreadFlag is PF_KTHREAD of the kernel's linux/sched.h.
const kernelThreadFlag = 0x00200000

// ClockTicks is the number of ticks a second in which the kernel tells times:
// USER_HZ, 100 on x86-64.
const ClockTicks = 100

// A Stat is /proc/PID/stat, proc_pid_stat(5), or that of one thread.
type Stat struct {
	PID         int
	Command     string // of at most 15 bytes (kernel threads longer), any byte but NUL
	State       byte   // R S D T t Z X I …
	PPID        int
	ProcessGrp  int
	Session     int
	Terminal    int // device number of the controlling terminal; 0 is none
	Flags       uint64
	MinorFaults uint64
	MajorFaults uint64
	UserTicks   uint64 // CPU time, in ClockTicks a second
	SystemTicks uint64
	Threads     int
	StartTicks  uint64 // after boot, in ClockTicks a second
	VirtualSize uint64 // bytes
	ResidentSet uint64 // pages; Status is more exact
	ExitSignal  int    // that its parent gets when it ends
	ExitStatus  int    // as wait(2) has it, of one that has ended; 0 where it may not be read
}

// KernelThread reports whether it is a thread of the kernel.
func (s *Stat) KernelThread() bool { return s.Flags&kernelThreadFlag != 0 }

// Zombie reports whether it has ended and is not yet waited for. The main
// thread of a process whose other threads still run looks the same; then
// Threads is more than 1.
func (s *Stat) Zombie() bool { return s.State == 'Z' || s.State == 'X' }

// Stat reads /proc/PID/stat. Anyone may.
func (p *Process) Stat() (Stat, error) { return p.stat("stat") }

// ThreadStat reads the stat file of one thread.
func (p *Process) ThreadStat(tid int) (Stat, error) {
	return p.stat("task/" + strconv.Itoa(tid) + "/stat")
}

// stat does not go through Process.read: failed asks for the stat itself.
func (p *Process) stat(name string) (Stat, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	text, err := p.dir.ReadFile(name, *buf)
	if err == nil {
		*buf = text
		var s Stat
		if s, err = ParseStat(text); err == nil {
			return s, nil
		}
	}
	if isAbsence(err) {
		err = ErrGone
	}
	return Stat{}, fmt.Errorf("read %s of process %d: %w", name, p.pid, err)
}

// ParseStat reads the text of a stat file. The command stands between the
// first "(" and the last ")": it may hold both, and newlines, and what follows
// it never does.
func ParseStat(text []byte) (Stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return Stat{}, fmt.Errorf("parse stat: no command in %.60q", text)
	}
	s := Stat{Command: string(text[open+1 : end])}
	fields := numbers{rest: text[:open]}
	s.PID = int(fields.signed())
	fields.rest = text[end+1:]
	state := fields.field()
	if len(state) != 1 {
		return Stat{}, fmt.Errorf("parse stat: no state in %.60q", text)
	}
	s.State = state[0]
	s.PPID = int(fields.signed())
	s.ProcessGrp = int(fields.signed())
	s.Session = int(fields.signed())
	s.Terminal = int(fields.signed())
	fields.field() // tpgid
	s.Flags = fields.unsigned(10)
	s.MinorFaults = fields.unsigned(10)
	fields.field() // cminflt
	s.MajorFaults = fields.unsigned(10)
	fields.field() // cmajflt
	s.UserTicks = fields.unsigned(10)
	s.SystemTicks = fields.unsigned(10)
	for range 4 { // cutime, cstime, priority, nice
		fields.field()
	}
	s.Threads = int(fields.signed())
	fields.field() // itrealvalue
	s.StartTicks = fields.unsigned(10)
	s.VirtualSize = fields.unsigned(10)
	s.ResidentSet = fields.unsigned(10)
	for range 13 { // rsslim to cnswap
		fields.field()
	}
	s.ExitSignal = int(fields.signed())
	for range 13 { // processor to env_end
		fields.field()
	}
	s.ExitStatus = int(fields.signed())
	if fields.err != nil {
		return Stat{}, fmt.Errorf("parse stat: %w", fields.err)
	}
	return s, nil
}

// numbers takes numbers from a line, one after the other, separated by spaces
// and tabs. The first failure stays in err, and what follows is 0.
type numbers struct {
	rest []byte
	err  error
}

func (n *numbers) field() []byte {
	i := 0
	for i < len(n.rest) && isBlank(n.rest[i]) {
		i++
	}
	start := i
	for i < len(n.rest) && !isBlank(n.rest[i]) {
		i++
	}
	field := n.rest[start:i]
	n.rest = n.rest[i:]
	return field
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' }

func (n *numbers) unsigned(base int) uint64 {
	if n.err != nil {
		return 0
	}
	field := n.field()
	v, ok := parseUnsigned(field, uint64(base))
	if !ok {
		n.err = fmt.Errorf("%.40q is not a number", field)
	}
	return v
}

func (n *numbers) signed() int64 {
	if n.err != nil {
		return 0
	}
	field := n.field()
	digits, negative := bytes.CutPrefix(field, []byte("-"))
	v, ok := parseUnsigned(digits, 10)
	switch {
	case !ok || v > 1<<63-1:
		n.err = fmt.Errorf("%.40q is not a number", field)
		return 0
	case negative:
		return -int64(v)
	default:
		return int64(v)
	}
}

// parseUnsigned reads a whole field of digits in base 8, 10 or 16, without the
// string that strconv would want.
func parseUnsigned(field []byte, base uint64) (v uint64, ok bool) {
	if len(field) == 0 {
		return 0, false
	}
	for _, c := range field {
		digit := uint64(16)
		switch {
		case c >= '0' && c <= '9':
			digit = uint64(c - '0')
		case c >= 'a' && c <= 'f':
			digit = uint64(c-'a') + 10
		case c >= 'A' && c <= 'F':
			digit = uint64(c-'A') + 10
		}
		if digit >= base || v > (1<<64-1-digit)/base {
			return 0, false
		}
		v = v*base + digit
	}
	return v, true
}
