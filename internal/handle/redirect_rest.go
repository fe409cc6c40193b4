package handle

import (
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// restAfter is how long ago a connection's user must have sent something, so that it
// waits for an answer by now, if it wants one.
const restAfter = 15 * time.Millisecond

// System calls that package syscall lacks.
const (
	sysEpollPwait2 = 441
	sysPpoll       = 271
	sysPselect6    = 270
	sysRecvmmsg    = 299
)

// errBusy is that a connection is in the middle of something.
var errBusy = fmt.Errorf("the connection is in use: %w", errChanging)

// rest is how long nothing has happened on a connection.
type rest struct{ kernel.Rest }

// answered reports whether the last that happened is that something came.
func (r rest) answered() bool { return r.Timed && r.Received < r.Sent }

// busy reports whether something is under way for certain, or may just be.
func (r rest) busy() bool {
	return r.Unread > 0 || r.Unsent > 0 || r.Timed && !r.answered() && r.Sent < restAfter
}

// checkRest returns errBusy unless nothing is under way on the connection, as far as
// can be told: nothing is unread or unsent; and either the last that happened was
// that something came, or what was sent is a while ago and no thread waits for an
// answer. All threads of the process are stopped.
func (m *member) checkRest(d *description) error {
	now, err := kernel.RestOf(d.file)
	if err != nil {
		return err
	}
	if r := (rest{now}); r.busy() {
		return errBusy
	} else if r.answered() {
		return nil
	}
	tids, err := m.p.Threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		call, err := m.p.Syscall(tid)
		if err == nil && call.InCall && m.waits(call.Number, call.Args[0]) {
			return errBusy
		}
	}
	return nil
}

// waits reports whether a system call may wait for something to come.
func (m *member) waits(number int, first uint64) bool {
	switch number {
	case syscall.SYS_READ, syscall.SYS_READV, syscall.SYS_RECVFROM, syscall.SYS_RECVMSG, sysRecvmmsg:
		for _, b := range m.bound {
			if uint64(b.fd) == first {
				return true
			}
		}
	case syscall.SYS_POLL, sysPpoll, syscall.SYS_SELECT, sysPselect6, syscall.SYS_EPOLL_WAIT, syscall.SYS_EPOLL_PWAIT, sysEpollPwait2:
		return true
	}
	return false
}

func busyRefusal(pid, fd int) error {
	return api.Refusal{Code: codeInUse, Subject: subject(pid, fd),
		Detail: "the program is sending, or waits for an answer", Remedy: "try again when it does not, or without --at-rest"}
}
