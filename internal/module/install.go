package module

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

const sysMemfdCreate = 319

const (
	mfdCloexec        = 0x1
	mfdAllowSealing   = 0x2
	mfdExec           = 0x10 // Linux 6.3: wanted where vm.memfd_noexec is 1
	mapFixedNoReplace = 0x100000
)

// stageInto maps a planned generation, and the vIN where there is none yet, into
// the process: from one borrowed thread, while the others run. Nothing leads
// there yet.
//
// A memfd holds what is mapped, so nothing on a disk can be full or change, and
// the pages can be compared with it later. It is closed again.
func (p *Process) stageInto(ctx context.Context, r *Replacement) (tracee.Times, error) {
	files := []staged{{name: stagedPrefix + r.Module.Name, image: r.Image.File, start: r.Image.Start, size: r.Image.Size}}
	for _, m := range r.Image.Mappings {
		files[0].parts = append(files[0].parts, part{m.Start, m.Size, m.Offset, protection(m.Flags), m.Anonymous})
	}
	if r.before == nil {
		c := r.vin.Config()
		table, code := vin.Size(c.Entries, c.Slots)
		files = append(files, staged{name: vin.Name, runs: r.vin.Runs(), start: c.Base, size: table + code, parts: []part{
			{c.Base, table, 0, syscall.PROT_READ | syscall.PROT_WRITE, false},
			{c.Base + table, code, table, syscall.PROT_READ | syscall.PROT_EXEC, false},
		}})
	}
	return tracee.Do(ctx, p.Process, tracee.Options{Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		if err := s.Permits(stagingCalls(files)); err != nil {
			return err
		}
		if err := p.sweep(s); err != nil {
			return err
		}
		for i := range files {
			if err := p.mapStaged(s, &files[i]); err != nil {
				return errors.Join(err, discard(s, files[:i+1]))
			}
		}
		return nil
	})
}

// stagingCalls are calls like those that staging takes: some arguments are not
// known yet.
func stagingCalls(files []staged) []tracee.Call {
	calls := []tracee.Call{
		{Number: sysMemfdCreate, Args: [6]uint64{0, mfdCloexec | mfdAllowSealing | mfdExec}},
		{Number: syscall.SYS_CLOSE},
	}
	for _, f := range files {
		calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{f.start, f.size}},
			tracee.Call{Number: syscall.SYS_MMAP, Args: [6]uint64{f.start, f.size, syscall.PROT_NONE, syscall.MAP_PRIVATE | mapFixedNoReplace | syscall.MAP_NORESERVE}})
		for _, m := range f.parts {
			calls = append(calls, tracee.Call{Number: syscall.SYS_MMAP, Args: [6]uint64{m.start, m.size, m.protection, syscall.MAP_PRIVATE | syscall.MAP_FIXED, 0, m.offset}})
		}
	}
	return calls
}

// A staged is one memfd that is to be mapped.
type staged struct {
	name        string
	image       []byte       // from its begin on
	runs        []vin.Change // likewise, by process address
	start, size uint64       // the span
	parts       []part
	fd          uint64
	open        bool
	mapped      bool
}

// A part is one mapping of a staged file.
type part struct {
	start, size, offset uint64
	protection          uint64
	anonymous           bool
}

func protection(f elf.ProgFlag) uint64 {
	prot := uint64(0)
	for flag, bit := range map[elf.ProgFlag]uint64{elf.PF_R: syscall.PROT_READ, elf.PF_W: syscall.PROT_WRITE, elf.PF_X: syscall.PROT_EXEC} {
		if f&flag != 0 {
			prot |= bit
		}
	}
	return prot
}

// mapStaged creates the memfd, reserves its span, fills it and maps its parts.
func (p *Process) mapStaged(s *tracee.Session, f *staged) error {
	name, err := s.Data(append([]byte(f.name), 0))
	if err != nil {
		return err
	}
	f.fd, err = s.Call(sysMemfdCreate, name, mfdCloexec|mfdAllowSealing|mfdExec)
	if errors.Is(err, syscall.EINVAL) { // an older kernel
		f.fd, err = s.Call(sysMemfdCreate, name, mfdCloexec|mfdAllowSealing)
	}
	if err != nil {
		return stagingRefusal(f, "make a memfd", err)
	}
	f.open = true
	at, err := s.Call(syscall.SYS_MMAP, f.start, f.size, syscall.PROT_NONE, syscall.MAP_PRIVATE|mapFixedNoReplace|syscall.MAP_NORESERVE, f.fd, 0)
	if err == nil && at != f.start { // older than Linux 4.17: only a hint
		_, unmapErr := s.Call(syscall.SYS_MUNMAP, at, f.size)
		err = errors.Join(syscall.EEXIST, unmapErr)
	}
	if err != nil {
		return stagingRefusal(f, "reserve addresses", err)
	}
	f.mapped = true
	if err := p.fill(f); err != nil {
		return stagingRefusal(f, "fill the memfd", err)
	}
	calls := make([]tracee.Call, 0, len(f.parts)+1)
	for _, m := range f.parts {
		flags, fd := uint64(syscall.MAP_PRIVATE|syscall.MAP_FIXED), f.fd
		if m.anonymous {
			flags, fd = flags|syscall.MAP_ANONYMOUS, ^uint64(0)
		}
		calls = append(calls, tracee.Call{Number: syscall.SYS_MMAP, Args: [6]uint64{m.start, m.size, m.protection, flags, fd, m.offset}})
	}
	calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{f.fd}})
	results, err := s.Run(calls)
	if err != nil {
		return err
	}
	f.open = calls[len(calls)-1].Err(results[len(calls)-1]) != nil
	for i := range f.parts {
		if err := calls[i].Err(results[i]); err != nil {
			return stagingRefusal(f, fmt.Sprintf("map 0x%x-0x%x", f.parts[i].start, f.parts[i].start+f.parts[i].size), err)
		}
	}
	return nil
}

// fill writes the memfd from outside, and seals it.
func (p *Process) fill(f *staged) (err error) {
	file, err := p.OpenDescriptor(int(f.fd), syscall.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Truncate(int64(max(f.size, uint64(len(f.image))))); err != nil {
		return err
	}
	if _, err := file.WriteAt(f.image, 0); err != nil {
		return err
	}
	for _, r := range f.runs {
		if _, err := file.WriteAt(r.Bytes, int64(r.Address-f.start)); err != nil {
			return err
		}
	}
	return nil
}

func stagingRefusal(f *staged, what string, err error) error {
	return errors.Join(api.Refusal{Code: codeStaging, Subject: strings.TrimPrefix(f.name, stagedPrefix),
		Detail: fmt.Sprintf("the process can't %s: %v", what, err), Remedy: askRestart}, err)
}

// discard takes out what was mapped in vain.
func discard(s *tracee.Session, files []staged) error {
	var calls []tracee.Call
	for _, f := range files {
		if f.open {
			calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{f.fd}})
		}
		if f.mapped {
			calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{f.start, f.size}})
		}
	}
	if len(calls) == 0 {
		return nil
	}
	_, err := s.Run(calls)
	return err
}

// sweep takes out what a replacement left that was killed: mappings that nothing
// leads to, and descriptors.
func (p *Process) sweep(s *tracee.Session) error {
	var calls []tracee.Call
	for _, r := range p.leftover {
		calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{r.Start, r.End - r.Start}})
	}
	descriptors, err := p.Descriptors()
	if err != nil {
		return err
	}
	for fd, link := range descriptors {
		if strings.HasPrefix(link, memfd+ownPrefix) {
			calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
		}
	}
	if len(calls) == 0 {
		return nil
	}
	_, err = s.Run(calls)
	return err
}

// A Replaced is how a replacement went.
type Replaced struct {
	Times tracee.Times
	Total time.Duration
	Tries int // stops in which a thread stood where entries are to be written
}

// CommitReplacement carries out a plan without refusals, in this process alone.
// Where it returns an error, calls reach the generation that they reached before.
func (p *Process) CommitReplacement(ctx context.Context, r *Replacement) (done Replaced, err error) {
	begin := time.Now()
	defer func() { done.Total = time.Since(begin) }()
	if r.Empty() {
		return done, nil
	}
	if r.Generation > 0 {
		if err := p.Pin(ctx, r.Module); err != nil {
			return done, err
		}
	}
	if r.Image != nil {
		times, err := p.stageInto(ctx, r)
		done.Times.Borrow = times.Borrow
		if err != nil {
			return done, fmt.Errorf("stage %s in process %d: %w", r.Module.Name, p.PID(), err)
		}
	}
	if err := p.letUnwind(ctx, r); err != nil {
		return done, err
	}
	const tries, pause = 400, 5 * time.Millisecond
	for {
		times, err := p.switchTo(ctx, r)
		done.Times.Pause = max(done.Times.Pause, times.Pause)
		var busy *occupied
		if !errors.As(err, &busy) {
			return done, err
		}
		if done.Tries++; done.Tries == tries {
			return done, api.Refusal{Code: codeEntryInUse, Subject: r.Module.Name, Detail: busy.Error(), Remedy: "try again when the program is less busy"}
		}
		select {
		case <-ctx.Done():
			return done, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// occupied is a thread within the bytes of an entry.
type occupied struct{ tracee.Occupant }

func (o *occupied) Error() string {
	where := "is at"
	if o.Stack {
		where = "will come back to"
	}
	return fmt.Sprintf("thread %d %s 0x%x, within the first bytes of a function that is to be redirected", o.TID, where, o.Address)
}

// switchTo makes the generation of the plan the one that calls reach, with all
// threads stopped. The order is the law's: each write but the selector's leaves
// the program as it was, whoever dies when.
func (p *Process) switchTo(ctx context.Context, r *Replacement) (tracee.Times, error) {
	var avoid []tracee.Range
	for _, e := range r.vin.Entries() {
		avoid = append(avoid, tracee.Range{Start: e.Function, End: e.Function + uint64(len(e.Original))})
	}
	var changes []vin.Change
	if r.before != nil {
		var err error
		if changes, err = vin.Changes(r.before, r.vin); err != nil {
			return tracee.Times{}, err
		}
	}
	maps, err := p.Maps()
	if err != nil {
		return tracee.Times{}, err
	}
	return tracee.Do(ctx, p.Process, tracee.Options{Avoid: avoid, Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if r.Module.Opened {
			if err := p.stillMapped([]*Plan{{Module: r.Module}}); err != nil {
				return err
			}
		}
		writes, err := p.entryWrites(s, r)
		if err != nil {
			return err
		}
		if err := unoccupied(s, r, writes, maps); err != nil {
			return err
		}
		for _, c := range changes {
			if err := s.Write(c.Address, c.Bytes); err != nil {
				return err
			}
		}
		steps := []func() error{
			func() error { return writeEntries(s, writes) },
			func() error { return p.flip(s, r) },
		}
		if r.Generation == 0 {
			slices.Reverse(steps) // the entries are neutral while the selector leads there
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeEntries(s *tracee.Session, writes []Write) error {
	for _, w := range writes {
		if err := s.Write(w.Address, w.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func word(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
