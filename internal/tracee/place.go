package tracee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A CallPlace says where a thread may not be borrowed for a function call: where
// it might hold a lock that the function needs, or be in the middle of a change
// to what the function works on.
type CallPlace struct {
	// Unsafe is the code of the loader, of all that allocates memory, of the C
	// library, of the unwinder and of the vDSO.
	Unsafe []Range
	// Wrappers is the part of it that makes system calls for everybody, the C
	// library: a thread that waits there in a call of waitsSafely may be borrowed.
	Wrappers []Range
	// Waits are the system calls in which it may wait there, where not all of
	// waitsSafely will do: a thread that does not wait in one is not stopped.
	Waits []uint64
	// State is the address of the loader's r_debug.r_state; 0 where there is none.
	State uint64
	// Errno is the address of the function __errno_location, by which the
	// thread's errno is kept; 0 where there is none.
	Errno uint64
}

const (
	safePatience = 2 * time.Second
	safePause    = time.Millisecond
	// triedAtOnce is how many running threads are stopped for a look, one after
	// another, between two pauses.
	triedAtOnce = 4
	// maxStackScan is how much of a stack is looked at for signal frames.
	maxStackScan = 8 << 20

	sysRestartSyscall = 219
	// The loader's list is whole: RT_CONSISTENT of link.h.
	loaderConsistent = 0
)

// waitsSafely tells the system calls in which a thread waits for something from
// outside: neither an allocator nor the loader makes them while it holds a lock.
// A futex may be such a lock.
func waitsSafely(nr uint64) bool {
	switch nr {
	case syscall.SYS_EPOLL_WAIT, syscall.SYS_EPOLL_PWAIT, sysEpollPwait2,
		syscall.SYS_POLL, syscall.SYS_PPOLL, syscall.SYS_SELECT, syscall.SYS_PSELECT6,
		syscall.SYS_NANOSLEEP, syscall.SYS_CLOCK_NANOSLEEP,
		syscall.SYS_PAUSE, syscall.SYS_RT_SIGSUSPEND, syscall.SYS_RT_SIGTIMEDWAIT,
		syscall.SYS_ACCEPT, syscall.SYS_ACCEPT4,
		syscall.SYS_READ, syscall.SYS_READV, syscall.SYS_RECVFROM, syscall.SYS_RECVMSG, syscall.SYS_RECVMMSG,
		syscall.SYS_WAIT4, syscall.SYS_WAITID, syscall.SYS_SEMOP, syscall.SYS_SEMTIMEDOP, syscall.SYS_MSGRCV:
		return true
	}
	return false
}

// BorrowForCall stops a thread at a place where a function can be called in it,
// and prepares its way home, as Borrow does. It tries one thread after another,
// those that wait first, for two seconds. The session must not have stopped the
// others: they may hold what the function waits for.
func (s *Session) BorrowForCall(place CallPlace) error {
	switch {
	case s.borrowed != nil || len(s.threads) > 0:
		return fmt.Errorf("borrow a thread of process %d for a call: the session has stopped threads already", s.process.PID())
	case !s.gadgets.Complete():
		return api.Refusal{Code: codeNoGadget, Subject: fmt.Sprintf("process %d", s.process.PID()),
			Detail: "its code has no instructions that store a result", Remedy: "restart the program instead"}
	}
	area, err := findScratch(s.process)
	if err != nil {
		return err
	}
	search := safeSearch{Session: s, place: place, area: area, trampolines: make(map[uint64]bool)}
	if search.maps, err = s.process.Maps(); err != nil {
		return err
	}
	reason := error(noSafePointRefusal(s.process.PID(), "no thread could be stopped"))
	for end := time.Now().Add(safePatience); ; time.Sleep(safePause) {
		tids, err := search.candidates()
		if err != nil {
			return err
		}
		for _, tid := range tids {
			obstacle, err := search.try(tid)
			if err != nil {
				return err
			}
			if obstacle == nil {
				return nil
			}
			reason = obstacle
		}
		if time.Now().After(end) {
			return reason
		}
	}
}

// A safeSearch is the search for a thread to call a function in.
type safeSearch struct {
	*Session
	place       CallPlace
	area        scratch
	maps        []procfs.Mapping
	trampolines map[uint64]bool // addresses that were looked at
}

// candidates returns the threads to try, the likely ones first.
func (s *safeSearch) candidates() ([]int, error) {
	tids, err := s.process.Threads()
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(tids), func(i, j int) { tids[i], tids[j] = tids[j], tids[i] })
	var waiting, restarted, running []int
	for _, tid := range tids {
		call, err := s.process.Syscall(tid)
		switch {
		case err != nil, call.InCall && cutShort(call):
		case call.InCall && call.Number == sysRestartSyscall:
			restarted = append(restarted, tid)
		case call.InCall && s.waitsIn(uint64(call.Number)):
			waiting = append(waiting, tid)
		case len(s.place.Waits) > 0:
		case call.Running || call.InCall && !s.unsafe(call.ProgramPC):
			running = append(running, tid)
		}
	}
	if len(running) > triedAtOnce {
		running = running[:triedAtOnce]
	}
	return slices.Concat(waiting, restarted, running), nil
}

// try stops a thread, and lets it go on where it can't be borrowed for a call:
// the obstacle says why not.
func (s *safeSearch) try(tid int) (obstacle, err error) {
	b, err := s.describe(tid)
	if err != nil {
		return s.lost(tid, err)
	}
	status, err := s.process.ThreadStatus(tid)
	if err != nil {
		return s.lost(tid, err)
	}
	// Threads that SIGSTOP has stopped may hold locks, and would not go on.
	if strings.IndexByte("DTtZX", status.State) >= 0 {
		return noSafePointRefusal(s.process.PID(), fmt.Sprintf("thread %d is in state %c", tid, status.State)), nil
	}
	// A thread that is started meanwhile is not traced: it would wait for the end
	// of the session.
	if err := s.seizeWith(tid, kernel.TraceSysGood|kernel.TraceExec); err != nil {
		return s.lost(tid, err)
	}
	if b.thread, err = s.stopLender(tid); err != nil {
		return s.lost(tid, err)
	}
	if obstacle, err = s.obstacle(b.thread); err != nil {
		return nil, err
	}
	if obstacle == nil {
		err := s.prepare(b, s.area)
		if err == nil {
			b.callable, b.place = true, s.place
			return nil, nil
		}
		if len(api.Refusals(err)) == 0 {
			return nil, err
		}
		obstacle = err
	}
	delete(s.threads, tid)
	if err := kernel.Detach(tid, 0); err != nil && !gone(err) {
		return nil, err
	}
	return obstacle, nil
}

// lost passes over a thread that has ended; the whole process is another matter.
func (s *safeSearch) lost(tid int, err error) (obstacle, failure error) {
	if !s.process.Alive() || s.execed || s.process.HasThread(tid) && !errors.Is(err, errDeadThread) && !gone(err) {
		return nil, err
	}
	if err := s.checkIdentity(); err != nil {
		return nil, err
	}
	delete(s.threads, tid)
	return noSafePointRefusal(s.process.PID(), fmt.Sprintf("thread %d has ended", tid)), nil
}

// obstacle tells why a function can't be called in a stopped thread as it is now.
func (s *safeSearch) obstacle(t *thread) (error, error) {
	no := func(format string, args ...any) (error, error) {
		return noSafePointRefusal(s.process.PID(), fmt.Sprintf("thread %d ", t.tid)+fmt.Sprintf(format, args...)), nil
	}
	if t.regs.CS != userCodeSegment {
		return not64BitRefusal(s.process.PID()), nil
	}
	// Code that was compiled for threads finds its block at %fs:0, which holds its
	// own address: psABI, "Thread-Local Storage", variant II.
	var self [1]uint64
	if err := s.readWords(t.regs.FSBase, self[:]); err != nil || self[0] != t.regs.FSBase {
		return no("is none of the C library's")
	}
	switch waits := within(s.place.Wrappers, t.regs.RIP) && s.waits(&t.regs); {
	case waits:
	case len(s.place.Waits) > 0:
		return no("does not wait in one of the system calls in which it may be borrowed")
	case s.unsafe(t.regs.RIP):
		return no("is within the loader, the allocator or the C library at %#x", t.regs.RIP)
	}
	if consistent, err := s.loaderConsistent(s.place.State); err != nil {
		return nil, err
	} else if !consistent {
		return no("is at a safe place, but the loader is loading or unloading a module")
	}
	handling, err := s.handlesSignal(t.regs.RSP)
	if err != nil {
		return nil, err
	}
	if handling {
		return no("handles a signal")
	}
	return nil, nil
}

func (s *safeSearch) unsafe(pc uint64) bool { return within(s.place.Unsafe, pc) }

func within(ranges []Range, address uint64) bool {
	return slices.ContainsFunc(ranges, func(r Range) bool { return address >= r.Start && address < r.End })
}

// waits reports whether a thread was stopped in a call of waitsSafely. Of one that
// goes on by restart_syscall the number stands before its system call instruction,
// where that is the wrapper's own.
func (s *safeSearch) waits(regs *kernel.Registers) bool {
	if regs.OrigRAX != sysRestartSyscall {
		return int64(regs.OrigRAX) >= 0 && s.waitsIn(regs.OrigRAX)
	}
	code := make([]byte, 7) // mov $number, %eax; syscall
	if _, err := s.memory.ReadAt(code, int64(regs.RIP)-int64(len(code))); err != nil {
		return false
	}
	return code[0] == 0xb8 && bytes.HasSuffix(code, syscallBytes) && s.waitsIn(uint64(binary.LittleEndian.Uint32(code[1:])))
}

// waitsIn reports whether a thread that waits in a system call may be borrowed.
func (s *safeSearch) waitsIn(nr uint64) bool {
	return waitsSafely(nr) && (len(s.place.Waits) == 0 || slices.Contains(s.place.Waits, nr))
}

// loaderConsistent reports whether no thread is changing the loader's list.
func (s *Session) loaderConsistent(at uint64) (bool, error) {
	if at == 0 {
		return true, nil
	}
	state := make([]byte, 4)
	if _, err := s.memory.ReadAt(state, int64(at)); err != nil {
		return false, err
	}
	return binary.LittleEndian.Uint32(state) == loaderConsistent, nil
}

// handlesSignal reports whether a signal frame lies on the stack of a handler that
// has interrupted an unsafe place. Each such frame begins with the address of the
// code that calls rt_sigreturn; that code has popped it.
func (s *safeSearch) handlesSignal(stack uint64) (bool, error) {
	maps, err := s.process.AppendMaps(s.maps[:0])
	if err != nil {
		return false, err
	}
	s.maps = maps
	i, found := slices.BinarySearchFunc(s.maps, stack, compareMapping)
	if !found {
		return true, nil // on no stack at all
	}
	start := max(stack&^7-8, s.maps[i].Start)
	end := min(s.maps[i].End, stack&^(pageSize-1)+maxStackScan)
	touched, err := s.pagemap.TouchedPages(nil, start&^(pageSize-1), end)
	if err != nil {
		return false, err
	}
	buf := make([]byte, 64<<10)
	for _, r := range touched {
		for at := max(r.Start, start); at < r.End; {
			part := buf[:min(uint64(len(buf)), r.End-at)]
			if _, err := s.memory.ReadAt(part, int64(at)); err != nil {
				return false, err
			}
			for ; len(part) >= 8; part, at = part[8:], at+8 {
				if s.trampoline(binary.LittleEndian.Uint64(part)) && s.signalFrame(at+8) && !s.interruptedSafely(at+8) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// signalFrame reports whether a frame may be at an address, and not only the rest
// of one that was used: no handler changes the code segment in it.
func (s *safeSearch) signalFrame(at uint64) bool {
	selectors := make([]byte, 2)
	_, err := s.memory.ReadAt(selectors, int64(at+contextSelectors))
	return err == nil && binary.LittleEndian.Uint16(selectors) == userCodeSegment
}

// interruptedSafely reports whether the signal frame at an address is of a handler
// that interrupted code in which a function could be called, as that of the
// postmaster of PostgreSQL does, which starts its processes from one.
func (s *safeSearch) interruptedSafely(at uint64) bool {
	var words [2]uint64
	if s.readWords(at+contextRAX, words[:1]) != nil || s.readWords(at+contextRIP, words[1:]) != nil {
		return false
	}
	rax, pc := words[0], words[1]
	if len(s.place.Waits) == 0 && !s.unsafe(pc) {
		return true
	}
	code := make([]byte, 9) // mov $number, %eax; syscall, which pc is at, or behind
	if _, err := s.memory.ReadAt(code, int64(pc)-7); !within(s.place.Wrappers, pc) || err != nil {
		return false
	}
	if bytes.HasSuffix(code, syscallBytes) {
		return s.waitsIn(rax) // to be made again
	}
	return code[0] == 0xb8 && bytes.Equal(code[5:7], syscallBytes) && s.waitsIn(uint64(binary.LittleEndian.Uint32(code[1:])))
}

func compareMapping(m procfs.Mapping, at uint64) int {
	switch {
	case m.End <= at:
		return -1
	case m.Start > at:
		return 1
	}
	return 0
}

// trampoline reports whether rt_sigreturn is called at an address.
func (s *safeSearch) trampoline(address uint64) bool {
	if is, known := s.trampolines[address]; known {
		return is
	}
	i, found := slices.BinarySearchFunc(s.maps, address, compareMapping)
	if !found || s.maps[i].Perms&procfs.Exec == 0 || s.maps[i].Kind == procfs.KindVsyscall {
		return false
	}
	code := make([]byte, len(sigreturnLong))
	n, _ := s.memory.ReadAt(code, int64(address)) // less at the end of a mapping
	is := bytes.HasPrefix(code[:n], sigreturnLong) || bytes.HasPrefix(code[:n], sigreturnShort)
	s.trampolines[address] = is
	return is
}
