package tracee

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A blocking transfer that has moved a part of its bytes returns their number
// when its thread is stopped, as it would for a signal. A program that handles no
// signals may count on the whole, and nothing can be put right afterwards. So
// threads are not stopped within such a call: one that is in it is waited for,
// and if that takes too long the session is refused.

const (
	// transferPatience is how long a transfer is waited for.
	transferPatience = 100 * time.Millisecond
	// transferLooks is how often in a row a program that was seen in a transfer
	// must be found out of any, transferLook apart: one that writes in a loop is
	// out of its call for microseconds.
	transferLooks = 12
	transferLook  = 200 * time.Microsecond
)

// cutShort reports whether a stop could make the system call return less than it
// was asked for. Pipes and sockets take up to a page as a whole.
func cutShort(c procfs.Syscall) bool {
	const (
		msgWaitAll = 0x100
		small      = 4096
	)
	switch c.Number {
	case syscall.SYS_WRITE, syscall.SYS_SENDTO:
		return c.Args[2] > small
	case syscall.SYS_WRITEV, syscall.SYS_SENDMSG, sysSendmmsg, syscall.SYS_SENDFILE, syscall.SYS_SPLICE, syscall.SYS_VMSPLICE:
		return true
	case syscall.SYS_RECVFROM, syscall.SYS_RECVMMSG:
		return c.Args[3]&msgWaitAll != 0
	case syscall.SYS_RECVMSG:
		return c.Args[2]&msgWaitAll != 0
	}
	return false
}

// awaitTransfers returns when none of the threads is in a call that a stop would
// cut short. One that enters its first such call right afterwards has not yet
// waited in it, but for microseconds.
func (s *Session) awaitTransfers(tids []int) error {
	seen, quiet := 0, 0 // a thread that was in such a call; looks since then
	for end := time.Now().Add(transferPatience); ; time.Sleep(transferLook) {
		if busy := s.transferring(tids); busy != 0 {
			seen, quiet = busy, 0
		} else if quiet++; seen == 0 || quiet >= transferLooks {
			return nil
		}
		if time.Now().After(end) {
			return api.Refusal{Code: codeTransfer, Subject: fmt.Sprintf("thread %d of process %d", seen, s.process.PID()),
				Detail: "it waits in a write or receive of which a part may be done: a stop would cut it short",
				Remedy: "try again when the other side has caught up"}
		}
	}
}

// transferring returns the id of a thread that is in a call that a stop would cut
// short, or 0.
func (s *Session) transferring(tids []int) int {
	var busy atomic.Int64
	_ = procfs.Abreast(len(tids), func(i int) error { // it returns no error
		if c, err := s.process.Syscall(tids[i]); err == nil && c.InCall && cutShort(c) {
			busy.Store(int64(tids[i]))
		}
		return nil
	})
	return int(busy.Load())
}
