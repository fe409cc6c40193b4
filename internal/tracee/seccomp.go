package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// seccompState is what restricts the system calls of the borrowed thread.
type seccompState struct {
	strict  bool
	filters [][]kernel.FilterInstruction
}

// readSeccomp reads the filters of a stopped thread, whose mode was read before
// it stopped: it may have got its first filter since.
func readSeccomp(tid, mode int) (seccompState, error) {
	state := seccompState{strict: mode == procfs.SeccompStrict}
	if mode != procfs.SeccompFilter && !kernel.HasSeccompFilter(tid) {
		return state, nil
	}
	for i := 0; ; i++ {
		filter, err := kernel.SeccompFilter(tid, i)
		if errors.Is(err, syscall.ENOENT) {
			return state, nil
		}
		if err != nil {
			return state, api.Refusal{Code: codeSeccomp, Subject: fmt.Sprintf("thread %d", tid),
				Detail: fmt.Sprintf("its seccomp filters cannot be read: %v", err),
				Remedy: "run vos as root, outside of a container"}
		}
		state.filters = append(state.filters, filter)
	}
}

// checkSeccomp refuses a system call that the thread's filters would not let
// pass. What they decide is computed, not tried: trying may kill.
func (s *Session) checkSeccomp(b *borrowed, c Call) error {
	return s.checkSeccompAt(b, c, s.gadgets.Syscall)
}

// checkSeccompAt is checkSeccomp of a call by the instruction at an address.
func (s *Session) checkSeccompAt(b *borrowed, c Call, at uint64) error {
	allowed := !b.seccomp.strict || c.Number == sysRTSigreturn
	for _, filter := range b.seccomp.filters {
		verdict, err := runFilter(filter, seccompData(c, at+syscallInstrLen))
		if err != nil {
			return fmt.Errorf("evaluate seccomp filter of process %d: %w", s.process.PID(), err)
		}
		action := verdict & seccompActionMask
		allowed = allowed && (action == seccompAllow || action == seccompLog)
	}
	if allowed {
		return nil
	}
	return api.Refusal{Code: codeSeccomp, Subject: fmt.Sprintf("process %d", s.process.PID()),
		Detail: fmt.Sprintf("its seccomp filter forbids system call %d, which is needed inside it", c.Number),
		Remedy: "allow madvise and rt_sigreturn in its filter, or restart the program"}
}

const (
	seccompActionMask = 0xffff0000 // SECCOMP_RET_ACTION_FULL
	seccompAllow      = 0x7fff0000
	seccompLog        = 0x7ffc0000
	auditArchX86_64   = 0xc000003e
)

// seccompData is struct seccomp_data of linux/seccomp.h.
func seccompData(c Call, instruction uint64) []byte {
	data := binary.LittleEndian.AppendUint32(nil, uint32(c.Number))
	data = binary.LittleEndian.AppendUint32(data, auditArchX86_64)
	data = binary.LittleEndian.AppendUint64(data, instruction)
	for _, a := range c.Args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	return data
}

var errFilter = errors.New("malformed filter")

// runFilter runs a classic BPF program as seccomp does: words are loaded in the
// machine's byte order, from the 64 bytes of struct seccomp_data alone.
// Everything that the kernel would not have accepted is an error.
func runFilter(program []kernel.FilterInstruction, data []byte) (uint32, error) {
	var a, x uint32
	var scratch [16]uint32
	for pc := 0; pc < len(program); pc++ {
		in := program[pc]
		operand := in.K
		if in.Code&0x08 != 0 { // BPF_X
			operand = x
		}
		switch in.Code & 0x07 {
		case 0x00, 0x01: // BPF_LD, BPF_LDX
			v, err := loadWord(in, data, &scratch)
			if err != nil {
				return 0, err
			}
			if in.Code&0x07 == 0 {
				a = v
			} else {
				x = v
			}
		case 0x02, 0x03: // BPF_ST, BPF_STX
			if in.K >= uint32(len(scratch)) {
				return 0, errFilter
			}
			scratch[in.K] = a
			if in.Code&0x07 == 3 {
				scratch[in.K] = x
			}
		case 0x04: // BPF_ALU
			v, err := compute(in.Code&0xf0, a, operand)
			if err != nil {
				return 0, err
			}
			a = v
		case 0x05: // BPF_JMP
			if in.Code&0xf0 == 0x00 {
				if in.K > uint32(len(program)) {
					return 0, errFilter
				}
				pc += int(in.K)
				continue
			}
			taken, err := compare(in.Code&0xf0, a, operand)
			if err != nil {
				return 0, err
			}
			if taken {
				pc += int(in.JT)
			} else {
				pc += int(in.JF)
			}
		case 0x06: // BPF_RET
			if in.Code&0x18 == 0x10 {
				return a, nil
			}
			return in.K, nil
		case 0x07: // BPF_MISC
			if in.Code&0xf8 == 0x80 {
				a = x
			} else {
				x = a
			}
		}
	}
	return 0, errFilter
}

// loadWord returns what BPF_LD and BPF_LDX load; modes as of linux/filter.h.
func loadWord(in kernel.FilterInstruction, data []byte, scratch *[16]uint32) (uint32, error) {
	switch in.Code & 0xe0 {
	case 0x00: // BPF_IMM
		return in.K, nil
	case 0x20: // BPF_ABS
		if in.K > uint32(len(data)-4) || in.K&3 != 0 {
			return 0, errFilter
		}
		return binary.LittleEndian.Uint32(data[in.K:]), nil
	case 0x60: // BPF_MEM
		if in.K < uint32(len(scratch)) {
			return scratch[in.K], nil
		}
	case 0x80: // BPF_LEN
		return uint32(len(data)), nil
	}
	return 0, errFilter
}

func compute(op uint16, a, v uint32) (uint32, error) {
	switch op {
	case 0x00:
		return a + v, nil
	case 0x10:
		return a - v, nil
	case 0x20:
		return a * v, nil
	case 0x30:
		if v == 0 {
			return 0, errFilter
		}
		return a / v, nil
	case 0x40:
		return a | v, nil
	case 0x50:
		return a & v, nil
	case 0x60:
		return a << (v & 31), nil
	case 0x70:
		return a >> (v & 31), nil
	case 0x80:
		return -a, nil
	case 0xa0:
		return a ^ v, nil
	}
	return 0, errFilter
}

func compare(op uint16, a, v uint32) (bool, error) {
	switch op {
	case 0x10:
		return a == v, nil
	case 0x20:
		return a > v, nil
	case 0x30:
		return a >= v, nil
	case 0x40:
		return a&v != 0, nil
	}
	return false, errFilter
}

// Permits refuses calls that a seccomp filter of the borrowed thread would not
// let through. Arguments count: filters look at them.
func (s *Session) Permits(calls []Call) error {
	if s.borrowed == nil {
		return errThreadLost
	}
	for _, c := range calls {
		if err := s.checkSeccomp(s.borrowed, c); err != nil {
			return err
		}
	}
	return nil
}
