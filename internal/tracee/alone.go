package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Solo is memory of the process in which one thread makes system calls while no
// other thread runs an instruction of the program, also if the tracer dies meanwhile.
// A stop alone does not give that: the end of the tracer lets all threads go on at
// once, with a call still under way.
//
// Before the first call every other thread gets registers that let it wait, within
// this memory, until the calls are made; the one that makes them gets its own last. A
// thread that finds that nobody has begun after a second calls it off and goes home:
// the tracer died in between. All go home by themselves, with the program's registers
// and signal mask, through code that uses no signal frame: what restart_syscall would
// go on with stays. Where the tracer lives the others do not run at all.
type Solo struct {
	code, data, end uint64
	threads, calls  int
}

// A SoloCall is a call of a solo. Where it fails and Target, an address of a page, is
// then not mapped any more, it is made again: what it was to put there is not lost.
type SoloCall struct {
	Call
	Target uint64
}

// MapSolo maps the memory of a solo for so many calls, by the borrowed thread, with
// all threads stopped. UnmapSolo takes it away.
func (s *Session) MapSolo(calls int) (*Solo, error) {
	threads := len(s.threads)
	code := soloCodeBytes(threads)
	data := (soloSaved + uint64(threads)*savedBytes + uint64(calls+soloMore)*soloCallBytes + pageSize - 1) &^ (pageSize - 1)
	at, err := s.Call(syscall.SYS_MMAP, 0, code+data, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return nil, fmt.Errorf("map memory to make calls alone in: %w", err)
	}
	solo := &Solo{code: at, data: at + code, end: at + code + data, threads: threads, calls: calls + soloMore}
	if _, err := s.Call(syscall.SYS_MPROTECT, at, code, syscall.PROT_READ|syscall.PROT_EXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("make code executable: %w", err), s.UnmapSolo(solo))
	}
	return solo, nil
}

// soloMore is how many calls RunAlone makes around those that it is given.
const soloMore = 2

// UnmapSolo gives the memory back, by the borrowed thread.
func (s *Session) UnmapSolo(solo *Solo) error {
	_, err := s.Call(syscall.SYS_MUNMAP, solo.code, solo.end-solo.code)
	return err
}

// soloCalls are what the code itself makes, with 0 for what does not matter.
var soloCalls = []Call{{Number: syscall.SYS_RT_SIGPROCMASK}, {Number: syscall.SYS_FUTEX}, {Number: syscall.SYS_MINCORE},
	{Number: sysRseq}}

// CheckSolo refuses a process whose threads, which are stopped, may not make what
// RunAlone needs, beside the given calls.
func (s *Session) CheckSolo(calls []Call) error {
	main, err := s.process.Status()
	if err != nil {
		return err
	}
	for tid, t := range s.threads {
		if t.regs.CS != userCodeSegment {
			return not64BitRefusal(s.process.PID())
		}
		if _, err := kernel.GetRseqConfiguration(tid); errors.Is(err, syscall.EIO) {
			return fmt.Errorf("%w: restartable sequences are told of from Linux 5.13 on", kernel.ErrNotSupported)
		} else if err != nil {
			return err
		}
		b := &borrowed{thread: t}
		if b.seccomp, err = readSeccomp(tid, main.Seccomp); err != nil {
			return err
		}
		for _, c := range slices.Concat(calls, soloCalls) {
			if err := s.checkSeccomp(b, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// RunAlone makes calls in one thread, while all others are barred, and returns their
// results. All threads are stopped, and none is borrowed. The restartable sequences of
// the thread are registered anew behind the calls, so that they may replace the memory
// in which the kernel notes its CPU. An error that does not wrap ErrNotBegun leaves
// threads that may be on their way home: the memory is not to be unmapped any more.
func (s *Session) RunAlone(solo *Solo, calls []SoloCall) ([]uint64, error) {
	if s.borrowed != nil || len(s.threads) > solo.threads || len(calls) > solo.calls-soloMore {
		return nil, fmt.Errorf("%w: %d calls among %d threads, the room is for %d and %d, and none may be borrowed",
			ErrNotBegun, len(calls), len(s.threads), solo.calls-soloMore, solo.threads)
	}
	p, err := s.layOut(solo, calls)
	if err == nil {
		err = s.barAll(p)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBegun, err)
	}
	if err := s.runSolo(p); err != nil {
		return nil, fmt.Errorf("make calls alone in process %d: %w", s.process.PID(), err)
	}
	for i, tid := range p.tids[1:] {
		if err := s.unbar(tid, &p.ways[1+i]); err != nil {
			return nil, err
		}
	}
	return s.soloResults(p)
}

// ErrNotBegun is that of the calls of a solo none was made, and no thread knows of it.
var ErrNotBegun = errors.New("no call was made alone")

// A performance is a solo as it stands in memory.
type performance struct {
	solo  *Solo
	code  soloCode
	tids  []int // the one that runs first
	ways  []soloWay
	calls []SoloCall
	table uint64 // address of the calls
	rseq  bool   // they are between two of its registration
}

// layOut writes code and data of a solo. No thread knows of it yet.
func (s *Session) layOut(solo *Solo, calls []SoloCall) (*performance, error) {
	p := &performance{solo: solo, calls: calls, tids: slices.Collect(maps.Keys(s.threads))}
	if i := slices.Index(p.tids, s.process.PID()); i > 0 {
		p.tids[0], p.tids[i] = p.tids[i], p.tids[0]
	}
	p.ways = make([]soloWay, len(p.tids))
	for i, tid := range p.tids {
		var err error
		if p.ways[i], err = s.soloWay(s.threads[tid]); err != nil {
			return nil, err
		}
	}
	q, err := kernel.GetRseqConfiguration(p.tids[0])
	if err != nil {
		return nil, err
	}
	if p.rseq = q.Pointer != 0; p.rseq {
		p.calls = slices.Concat([]SoloCall{rseqCall(q, rseqUnregister)}, calls, []SoloCall{rseqCall(q, q.Flags)})
	}
	code, data, err := assembleSolo(solo.code, solo.data, len(p.calls), p.ways)
	if err != nil {
		return nil, err
	}
	p.code, p.table = code, solo.data+uint64(len(data))
	for i := range p.calls {
		data = appendSoloCall(data, &p.calls[i])
	}
	if uint64(len(code.bytes)) > solo.data-solo.code || uint64(len(data)) > solo.end-solo.data {
		return nil, fmt.Errorf("make calls alone: %d threads and %d calls take %d and %d bytes", len(p.tids), len(p.calls), len(code.bytes), len(data))
	}
	if _, err := s.memory.WriteAt(code.bytes, int64(solo.code)); err != nil {
		return nil, err
	}
	_, err = s.memory.WriteAt(data, int64(solo.data))
	return p, err
}

// soloResults reads what the calls of a solo returned.
func (s *Session) soloResults(p *performance) ([]uint64, error) {
	table := make([]byte, len(p.calls)*soloCallBytes)
	if _, err := s.memory.ReadAt(table, int64(p.table)); err != nil {
		return nil, err
	}
	results := make([]uint64, len(p.calls))
	for i := range results {
		results[i] = binary.LittleEndian.Uint64(table[i*soloCallBytes+soloResult:])
	}
	if !p.rseq {
		return results, nil
	}
	last := len(results) - 1
	return results[1:last], errors.Join(p.calls[0].Err(results[0]), p.calls[last].Err(results[last]))
}

// soloWay is what a stopped thread goes home with by itself: an interrupted call is
// made again, or gone on with where the kernel knows the time that is left.
func (s *Session) soloWay(t *thread) (soloWay, error) {
	way := home{regs: homeRegisters(t.regs)}
	if restartBlocked(&t.regs) {
		way.regs.RAX = sysRestartSyscall
	}
	if err := s.abortRestartableSequence(&borrowed{thread: t, regs: t.regs}, &way); err != nil {
		return soloWay{}, err
	}
	mask, err := kernel.GetSignalMask(t.tid)
	return soloWay{way.regs, mask}, err
}

// barAll bars all threads. The one that runs comes last: nobody begins before all are
// barred.
func (s *Session) barAll(p *performance) error {
	for i := len(p.tids) - 1; i >= 0; i-- {
		if err := s.bar(p, i); err != nil {
			for ; i < len(p.tids); i++ {
				err = errors.Join(err, s.unbar(p.tids[i], &p.ways[i]))
			}
			return err
		}
	}
	return nil
}

const (
	sysRseq        = 334
	rseqUnregister = 1 // RSEQ_FLAG_UNREGISTER
)

func rseqCall(q kernel.RseqConfiguration, flags uint32) SoloCall {
	return SoloCall{Call: Call{Number: sysRseq, Args: [6]uint64{q.Pointer, uint64(q.Size), uint64(flags), uint64(q.Signature)}}}
}

func appendSoloCall(b []byte, c *SoloCall) []byte {
	b = binary.LittleEndian.AppendUint64(b, c.Number)
	for _, v := range c.Args {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, 0)
	return binary.LittleEndian.AppendUint64(b, c.Target)
}

// bar gives a stopped thread the registers with which it enters a solo. Its signals
// are blocked behind that: a tracer that dies in between leaves a thread that unblocks
// them on its way home.
func (s *Session) bar(p *performance, i int) error {
	tid, entry := p.tids[i], p.code.park
	if i == 0 {
		entry = p.code.run
	}
	regs := s.threads[tid].regs
	regs.RIP, regs.RBX, regs.R12 = entry, p.solo.data+soloSaved+uint64(i)*savedBytes, p.solo.data
	regs.OrigRAX = outsideSyscall
	regs.Flags &^= flagsToClear
	if err := kernel.SetRegisters(tid, &regs); err != nil {
		return err
	}
	return kernel.SetSignalMask(tid, everySignal)
}

// unbar gives a thread that has not run its own state back.
func (s *Session) unbar(tid int, way *soloWay) error {
	if err := kernel.SetSignalMask(tid, way.mask); err != nil {
		return err
	}
	return kernel.SetRegisters(tid, &s.threads[tid].regs)
}

// runSolo lets a thread make its calls, up to its way home, and gives it its own state
// back. Where the tracer gives up the thread goes on by itself.
func (s *Session) runSolo(p *performance) error {
	t, way := s.threads[p.tids[0]], &p.ways[0]
	b := &borrowed{thread: t, regs: t.regs, mask: way.mask, away: true}
	if int64(t.regs.OrigRAX) < 0 {
		b.regs.RIP = way.regs.RIP // out of a restartable sequence, if it is in one
	}
	s.borrowed = b
	defer func() { s.borrowed = nil }()
	var regs kernel.Registers
	for regs.RIP < p.code.home || regs.RIP >= p.code.home+homeBytes {
		if err := s.resumeUntil(kernel.ContinueToSyscall, kernel.WaitStatus.SyscallStop); err != nil {
			return err
		}
		if err := kernel.GetRegisters(t.tid, &regs); err != nil {
			return err
		}
	}
	return s.takeHome(b, func() bool { return s.borrowed == nil })
}

// homeBytes is more than the code from home up to its system call takes.
const homeBytes = 64
