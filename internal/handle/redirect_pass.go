package handle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// socketPrefix begins the abstract names of the sockets by which descriptors come
// into a process. By it the next vOS finds those of one that was killed.
const socketPrefix = "vos-redirect-"

// Where things stand in the few bytes that system calls of a session can read.
const (
	passPair    = 0  // two descriptors
	passAddress = 16 // two addresses
	passHeader  = passAddress + 2*unixAddressBytes
	passVector  = passHeader + messageHeader
	passByte    = passVector + 16
	passControl = passByte + 8
	passBytes   = passControl + controlBytes
)

// makeSockets lets a process, whose threads are all stopped, make a pair of
// sockets, with names, at two numbers that are known beforehand. A thread that makes
// these calls one by one makes a marker first: a memfd whose name tells the numbers.
func makeSockets(s *tracee.Session, pid int, id [16]byte, next []int, in *placed) error {
	if s.AtOnce() != nil {
		if err := makeMarker(s, pid, next, in); err != nil {
			return err
		}
		next = next[1:]
	}
	at, err := s.Data(make([]byte, passBytes))
	if err != nil {
		return err
	}
	data := make([]byte, passBytes)
	var lengths [2]uint64
	for i := range lengths {
		name := fmt.Sprintf("\x00%s%d-%x-%d", socketPrefix, pid, id[:6], i)
		address := data[passAddress+i*unixAddressBytes:]
		binary.LittleEndian.PutUint16(address, afUnix)
		lengths[i] = uint64(2 + copy(address[2:unixAddressBytes], name))
	}
	if _, err := s.Data(data); err != nil {
		return err
	}
	calls := []tracee.Call{{Number: syscall.SYS_SOCKETPAIR, Args: [6]uint64{afUnix, sockSeqpacket | sockCloexec | sockNonblock, 0, at + passPair}}}
	for i, length := range lengths {
		calls = append(calls, tracee.Call{Number: syscall.SYS_BIND, Args: [6]uint64{uint64(next[i]), at + passAddress + uint64(i*unixAddressBytes), length}})
	}
	run := s.RunAtOnce
	if s.AtOnce() != nil {
		run = s.Run
	}
	results, err := run(calls)
	if err != nil {
		return err
	}
	if data, err = takeBack(s, at); err != nil {
		return err
	}
	if err := calls[0].Err(results[0]); err != nil {
		return callRefusal(pid, "make a pair of sockets", err)
	}
	pair := data[passPair:]
	for i := range in.sockets {
		in.sockets[i] = int(int32(binary.LittleEndian.Uint32(pair[4*i:])))
	}
	for i := range lengths {
		if err := calls[i+1].Err(results[i+1]); err != nil || in.sockets[i] != next[i] {
			return callRefusal(pid, "name a socket", errors.Join(err, errNumbers))
		}
	}
	return nil
}

// takeBack reads what system calls have written, and lets the session know that it is
// there: what it leaves in the program's memory it must know to the byte.
func takeBack(s *tracee.Session, at uint64) ([]byte, error) {
	data := make([]byte, passBytes)
	if _, err := s.Memory().ReadAt(data, int64(at)); err != nil {
		return nil, err
	}
	_, err := s.Data(data)
	return data, err
}

// makeMarker makes the marker of sockets, at the first number.
func makeMarker(s *tracee.Session, pid int, next []int, in *placed) error {
	at, err := s.Data(fmt.Appendf(nil, "%s%d-%d\x00", socketPrefix, next[1], next[2]))
	if err != nil {
		return err
	}
	fd, err := s.Call(sysMemfdCreate, at, mfdCloexec)
	if err != nil {
		return callRefusal(pid, "make a memfd", err)
	}
	if in.marker = int(fd); in.marker != next[0] {
		return callRefusal(pid, "make a memfd", errNumbers)
	}
	return nil
}

var errNumbers = errors.New("descriptors got other numbers than expected")

// pass brings the record and the new description into the process, at two numbers
// that are known beforehand: want has them.
func pass(s *tracee.Session, m *member, record, description *os.File, want, in *placed) error {
	socket, err := kernel.TakeDescriptor(m.pidfd, in.sockets[1])
	if err != nil {
		return err
	}
	err = kernel.SendDescriptors(socket, record, description)
	if err = errors.Join(err, socket.Close()); err != nil {
		return err
	}
	at, err := s.Data(make([]byte, passBytes))
	if err != nil {
		return err
	}
	data := make([]byte, passBytes)
	put := func(offset int, v uint64) { binary.LittleEndian.PutUint64(data[offset:], v) }
	put(passHeader+16, at+passVector)
	put(passHeader+24, 1)
	put(passHeader+32, at+passControl)
	put(passHeader+40, controlBytes)
	put(passVector, at+passByte)
	put(passVector+8, 1)
	if _, err := s.Data(data); err != nil {
		return err
	}
	_, err = s.Call(syscall.SYS_RECVMSG, uint64(in.sockets[0]), at+passHeader, syscall.MSG_DONTWAIT|msgCmsgCloexec)
	data, backErr := takeBack(s, at)
	if err != nil {
		return callRefusal(m.pid, "receive a descriptor", err)
	}
	if backErr != nil {
		return backErr
	}
	control := data[passControl:]
	le := binary.LittleEndian
	got := 0
	if le.Uint32(control[8:]) == syscall.SOL_SOCKET && le.Uint32(control[12:]) == scmRights {
		got = (int(min(le.Uint64(control[:]), controlBytes)) - 16) / 4
	}
	for i, at := range []*int{&in.record, &in.staged} {
		if i < got {
			*at = int(int32(le.Uint32(control[16+4*i:])))
		}
	}
	if in.record != want.record || in.staged != want.staged {
		return callRefusal(m.pid, "receive a descriptor", errNumbers)
	}
	return nil
}

// permits refuses an exchange that a seccomp filter of the process would not allow.
func permits(s *tracee.Session, m *member) error {
	fd := uint64(0)
	if len(m.bound) > 0 {
		fd = uint64(m.bound[0].fd)
	}
	calls := []tracee.Call{
		{Number: syscall.SYS_SOCKETPAIR, Args: [6]uint64{afUnix, sockSeqpacket | sockCloexec | sockNonblock}},
		{Number: sysMemfdCreate, Args: [6]uint64{0, mfdCloexec}}, {Number: syscall.SYS_BIND}, {Number: syscall.SYS_RECVMSG}, {Number: syscall.SYS_CLOSE},
		{Number: syscall.SYS_FCNTL, Args: [6]uint64{fd, fDupFDCloexec}},
		{Number: sysDup3, Args: [6]uint64{fd, fd}}, {Number: sysDup3, Args: [6]uint64{fd, fd, syscall.O_CLOEXEC}},
	}
	for _, r := range m.registered {
		calls = append(calls,
			tracee.Call{Number: syscall.SYS_EPOLL_CTL, Args: [6]uint64{uint64(r.epoll), epollCtlDel, uint64(r.fd)}},
			tracee.Call{Number: syscall.SYS_EPOLL_CTL, Args: [6]uint64{uint64(r.epoll), epollCtlAdd, uint64(r.fd)}})
	}
	return s.Permits(calls)
}

// atOnce refuses, before anything is touched, what needs a thread that makes several
// calls by itself, where there is none.
func atOnce(pid int, err error) error {
	if !errors.Is(err, tracee.ErrNotAtOnce) {
		return err
	}
	return api.Refusal{Code: codeNotAtOnce, Subject: fmt.Sprintf("process %d", pid),
		Detail: "the program waits for the descriptor by epoll, and none of its threads can make the needed calls in one go",
		Remedy: "try again when its threads do something else than sleep"}
}
