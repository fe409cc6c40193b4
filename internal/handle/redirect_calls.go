package handle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// System calls and constants of x86-64 that package syscall lacks.
const (
	sysDup3          = 292
	fDupFDCloexec    = 1030 // F_DUPFD_CLOEXEC
	msgCmsgCloexec   = 0x40000000
	afUnix           = 1
	sockSeqpacket    = 5
	sockCloexec      = 0x80000
	sockNonblock     = 0x800
	epollCtlAdd      = 1
	epollCtlDel      = 2
	epollEventBytes  = 12 // struct epoll_event is packed on x86-64
	scmRights        = 1
	sysMemfdCreate   = 319
	mfdCloexec       = 1
	messageHeader    = 56 // struct msghdr
	controlBytes     = 24 // CMSG_SPACE of two descriptors
	maxEventsAtOnce  = 30
	unixAddressBytes = 48
)

// rebindCalls are the calls that bind descriptors to what descriptor to is bound
// to: registrations with epolls are taken out before, and put in anew behind, with
// the same events and data. They are to be made at once: epoll knows a registration
// by number and description, so there is no order in which one of them stands at
// any time.
//
// asyncFlags, if not -1, are the status flags with readiness by signal: it is
// turned off at the old description, and on at the new one.
func rebindCalls(all []bound, registrations []registered, to int, asyncFlags int, events uint64) []tracee.Call {
	var calls []tracee.Call
	for _, r := range registrations {
		calls = append(calls, tracee.Call{Number: syscall.SYS_EPOLL_CTL, Args: [6]uint64{uint64(r.epoll), epollCtlDel, uint64(r.fd)}})
	}
	flag := func(flags int) {
		if asyncFlags >= 0 {
			calls = append(calls, tracee.Call{Number: syscall.SYS_FCNTL, Args: [6]uint64{uint64(all[0].fd), syscall.F_SETFL, uint64(flags)}})
		}
	}
	flag(asyncFlags &^ syscall.O_ASYNC)
	for _, b := range all {
		flags := uint64(0)
		if b.cloexec {
			flags = syscall.O_CLOEXEC
		}
		calls = append(calls, tracee.Call{Number: sysDup3, Args: [6]uint64{uint64(to), uint64(b.fd), flags}})
	}
	flag(asyncFlags)
	for i, r := range registrations {
		calls = append(calls, tracee.Call{Number: syscall.SYS_EPOLL_CTL, Args: [6]uint64{uint64(r.epoll), epollCtlAdd, uint64(r.fd), events + uint64(i*epollEventBytes)}})
	}
	return calls
}

// rebind makes rebindCalls in a session, and reports the first that failed, but not
// that a registration to take out is not there.
func rebind(s *tracee.Session, pid int, all []bound, registrations []registered, to, asyncFlags int) error {
	if len(all) == 0 {
		return nil
	}
	var events []byte
	for _, r := range registrations {
		events = binary.LittleEndian.AppendUint32(events, r.events)
		events = binary.LittleEndian.AppendUint64(events, r.data)
	}
	at := uint64(0)
	if len(registrations) > maxEventsAtOnce {
		return tooManyRefusal(pid, len(all), len(registrations))
	}
	if len(registrations) > 0 {
		var err error
		if at, err = s.Data(events); err != nil {
			return err
		}
	}
	calls := rebindCalls(all, registrations, to, asyncFlags, at)
	run := s.Run
	if len(registrations) > 0 || asyncFlags >= 0 {
		if len(calls) > tracee.MaxAtOnce {
			return tooManyRefusal(pid, len(all), len(registrations))
		}
		run = s.RunAtOnce
	}
	results, err := run(calls)
	if err != nil {
		return err
	}
	for i, c := range calls {
		err := c.Err(results[i])
		if err != nil && !(c.Number == syscall.SYS_EPOLL_CTL && c.Args[1] == epollCtlDel && errors.Is(err, syscall.ENOENT)) {
			return callRefusal(pid, "bind its descriptor anew", err)
		}
	}
	return nil
}

func tooManyRefusal(pid, descriptors, registrations int) error {
	return api.Refusal{Code: codeTooMany, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("%d descriptors and %d registrations with epolls are more than can be exchanged at once", descriptors, registrations),
		Remedy: "restart the program with another setting instead"}
}

// closeCalls close descriptors, in order; -1 is none.
func closeCalls(fds ...int) (calls []tracee.Call) {
	for _, fd := range fds {
		if fd >= 0 {
			calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
		}
	}
	return calls
}

// duplicateCall gives a descriptor another number, if that is free, or the next
// above it.
func duplicateCall(fd, to int) tracee.Call {
	return tracee.Call{Number: syscall.SYS_FCNTL, Args: [6]uint64{uint64(fd), fDupFDCloexec, uint64(to)}}
}

// placed is what an exchange has put into a process; -1 is nothing.
type placed struct {
	record, staged int    // as they came in
	sockets        [2]int // by which they came
	marker         int    // that tells of the sockets, before they have names
	kept, previous int
	recordAt       int // where the record ends up, or where one stands already
}

var nothingPlaced = placed{-1, -1, [2]int{-1, -1}, -1, -1, -1, -1}

// finishCalls leave the process with the new binding. The record comes to stand
// where another one may stand; with back set there is none any more. The record
// that came in goes last but the sockets: as long as it is there, there is
// something to finish.
func (p *placed) finishCalls(back, standing bool) []tracee.Call {
	calls := closeCalls(p.staged)
	if p.previous != p.kept {
		calls = append(calls, closeCalls(p.previous)...)
	}
	switch {
	case p.recordAt < 0 && !back: // it is there already
	case back:
		calls = append(calls, closeCalls(p.kept, p.recordAt)...)
	case standing:
		calls = append(calls, tracee.Call{Number: sysDup3, Args: [6]uint64{uint64(p.record), uint64(p.recordAt), syscall.O_CLOEXEC}})
	default:
		calls = append(calls, duplicateCall(p.record, p.recordAt))
	}
	return append(calls, closeCalls(p.record, p.sockets[0], p.sockets[1], p.marker)...)
}

// undoCalls take out all that the exchange has put in, once the old binding is
// there again. What was kept before stays.
func (p *placed) undoCalls(standing bool) []tracee.Call {
	calls := closeCalls(p.staged)
	if p.previous != p.kept {
		calls = append(calls, closeCalls(p.previous)...)
	}
	if !standing {
		calls = append(calls, closeCalls(p.kept)...)
	}
	return append(calls, closeCalls(p.record, p.sockets[0], p.sockets[1], p.marker)...)
}
