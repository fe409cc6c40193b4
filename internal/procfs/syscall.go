package procfs

import (
	"bytes"
	"fmt"
	"strconv"
)

// A Syscall is what a thread is doing, by /proc/PID/task/TID/syscall
// (proc_pid_syscall(5)): running, in a system call, or blocked outside of one
// (a page fault, or stopped in user code).
type Syscall struct {
	Running   bool // nothing else is known
	InCall    bool
	Number    int // -1 outside of a call
	Args      [6]uint64
	StackPtr  uint64
	ProgramPC uint64
}

// Syscall tells what one thread is doing now. It needs the right to trace it.
func (p *Process) Syscall(tid int) (s Syscall, err error) {
	err = p.read("task/"+strconv.Itoa(tid)+"/syscall", func(text []byte) (err error) {
		s, err = ParseSyscall(text)
		return err
	})
	return s, err
}

// WaitChannel returns the name of the kernel's function in which one thread waits; "0" is
// none, or not told. It needs the right to trace it.
func (p *Process) WaitChannel(tid int) (name string, err error) {
	err = p.read("task/"+strconv.Itoa(tid)+"/wchan", func(text []byte) error {
		name = string(bytes.TrimSpace(text))
		return nil
	})
	return name, err
}

// ParseSyscall reads the text of a syscall file.
func ParseSyscall(text []byte) (Syscall, error) {
	if bytes.Equal(bytes.TrimSpace(text), []byte("running")) {
		return Syscall{Running: true, Number: -1}, nil
	}
	n := numbers{rest: text}
	s := Syscall{Number: int(n.signed())}
	if s.InCall = s.Number != -1; s.InCall {
		for i := range s.Args {
			s.Args[i] = n.address()
		}
	}
	s.StackPtr = n.address()
	s.ProgramPC = n.address()
	if n.err != nil {
		return Syscall{}, fmt.Errorf("parse syscall %.60q: %w", text, n.err)
	}
	return s, nil
}

// address takes a hexadecimal number with 0x before it.
func (n *numbers) address() uint64 {
	if n.err != nil {
		return 0
	}
	field := n.field()
	digits, prefixed := bytes.CutPrefix(field, []byte("0x"))
	v, ok := parseUnsigned(digits, 16)
	if !prefixed || !ok {
		n.err = fmt.Errorf("%.40q is not an address", field)
	}
	return v
}
