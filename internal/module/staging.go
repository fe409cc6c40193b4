package module

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

const sysMemfdCreate = 319

const (
	mfdCloexec        = 0x1
	mfdAllowSealing   = 0x2
	mfdExec           = 0x10 // Linux 6.3: wanted where vm.memfd_noexec is 1
	mapFixedNoReplace = 0x100000
	madvWipeOnFork    = 18 // Linux 4.14
)

// stageInto maps a planned generation, and the vIN where there is none yet, into
// the process: from one thread, borrowed twice for some microseconds, while the
// others run, or are stopped where they keep the processors busy. Nothing leads
// there yet. The times are of the longer one.
//
// A memfd holds what is mapped, so nothing on a disk can be full or change, and
// the pages can be compared with it later. It is closed again.
func (p *Process) stageInto(ctx context.Context, r *Replacement) (tracee.Times, error) {
	files := []staged{{name: stagedPrefix + r.Module.Name, image: r.Image.File, start: r.Image.Start, size: r.Image.Size}}
	for _, m := range r.Image.Mappings {
		files[0].parts = append(files[0].parts, part{start: m.Start, size: m.Size, offset: m.Offset, protection: protection(m.Flags), anonymous: m.Anonymous})
	}
	if r.before == nil {
		c := r.vin.Config()
		table, code := vin.Size(c.Entries, c.Slots)
		files = append(files, staged{name: vin.Name, runs: r.vin.Runs(), start: c.Base, size: table + code, parts: []part{
			{start: c.Base, size: table, protection: syscall.PROT_READ | syscall.PROT_WRITE},
			{start: c.Base + table, size: code, offset: table, protection: syscall.PROT_READ | syscall.PROT_EXEC},
		}})
	}
	return p.stageFiles(ctx, files)
}

// stageFiles maps files into the process.
func (p *Process) stageFiles(ctx context.Context, files []staged) (tracee.Times, error) {
	worst := tracee.Times{}
	busy := p.busy()
	session := func(ctx context.Context, f func(*tracee.Session) error) error {
		times, err := tracee.Do(ctx, p.Process, tracee.Options{Identity: p.identity}, func(s *tracee.Session) error {
			if busy {
				if err := s.StopAll(); err != nil {
					return err
				}
			}
			if err := s.Borrow(); err != nil {
				return err
			}
			return f(s)
		})
		worst.Borrow, worst.Pause = max(worst.Borrow, times.Borrow), max(worst.Pause, times.Pause)
		return err
	}
	left, err := p.leftCalls()
	if err != nil {
		return worst, err
	}
	err = session(ctx, func(s *tracee.Session) error {
		if err := s.Permits(stagingCalls(files)); err != nil {
			return err
		}
		if len(left) > 0 {
			if _, err := s.Run(left); err != nil {
				return err
			}
		}
		return openStaged(s, files)
	})
	if err == nil {
		err = p.fill(files)
	}
	if err == nil {
		err = session(ctx, func(s *tracee.Session) error {
			if err := p.stillOpen(files); err != nil {
				return err
			}
			return mapStaged(s, files)
		})
	}
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		undo, undoErr := p.stagedCalls(files)
		if len(undo) > 0 { // also where the request was cancelled
			undoErr = session(context.WithoutCancel(ctx), func(s *tracee.Session) error { _, err := s.Run(undo); return err })
		}
		err = errors.Join(err, undoErr)
	}
	return worst, err
}

// stagedCalls are the calls that take out what has come into the process of files:
// a call that was cut short may have been made.
func (p *Process) stagedCalls(files []staged) ([]tracee.Call, error) {
	maps, err := p.Maps()
	if err != nil {
		return nil, err
	}
	calls, err := p.openCalls()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		own := func(m procfs.Mapping) bool {
			return m.Start < f.start+f.size && f.start < m.End && strings.HasPrefix(m.Path, memfd+ownPrefix)
		}
		if slices.ContainsFunc(maps, own) {
			calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{f.start, f.size}})
		}
	}
	return calls, nil
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
			if m.wiped {
				calls = append(calls, wipeOnFork(m))
			}
		}
	}
	return calls
}

// wipeOnFork lets a child find a part empty.
func wipeOnFork(m part) tracee.Call {
	return tracee.Call{Number: syscall.SYS_MADVISE, Args: [6]uint64{m.start, m.size, madvWipeOnFork}}
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
	wiped               bool // in a child
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

// openStaged creates the memfds.
func openStaged(s *tracee.Session, files []staged) error {
	var names []byte
	var offsets []uint64
	for _, f := range files {
		offsets = append(offsets, uint64(len(names)))
		names = append(append(names, f.name...), 0)
	}
	at, err := s.Data(names)
	if err != nil {
		return err
	}
	for _, flags := range []uint64{mfdCloexec | mfdAllowSealing | mfdExec, mfdCloexec | mfdAllowSealing} {
		var calls []tracee.Call
		for _, offset := range offsets {
			calls = append(calls, tracee.Call{Number: sysMemfdCreate, Args: [6]uint64{at + offset, flags}})
		}
		results, err := s.Run(calls)
		if err != nil {
			return err
		}
		older := false
		for i := range files {
			switch err := calls[i].Err(results[i]); {
			case errors.Is(err, syscall.EINVAL):
				older = true // than the flag
			case err != nil:
				return stagingRefusal(&files[i], "make a memfd", err)
			default:
				files[i].fd, files[i].open = results[i], true
			}
		}
		if !older {
			return nil
		}
	}
	return stagingRefusal(&files[0], "make a memfd", syscall.EINVAL)
}

// mapStaged reserves the spans, maps the parts and closes the memfds.
func mapStaged(s *tracee.Session, files []staged) error {
	var reserve, parts []tracee.Call
	for _, f := range files {
		reserve = append(reserve, tracee.Call{Number: syscall.SYS_MMAP, Args: [6]uint64{f.start, f.size, syscall.PROT_NONE, syscall.MAP_PRIVATE | mapFixedNoReplace | syscall.MAP_NORESERVE, f.fd}})
		for _, m := range f.parts {
			flags, fd := uint64(syscall.MAP_PRIVATE|syscall.MAP_FIXED), f.fd
			if m.anonymous {
				flags, fd = flags|syscall.MAP_ANONYMOUS, ^uint64(0)
			}
			if m.wiped { // most of it is never touched
				flags |= syscall.MAP_NORESERVE
			}
			parts = append(parts, tracee.Call{Number: syscall.SYS_MMAP, Args: [6]uint64{m.start, m.size, m.protection, flags, fd, m.offset}})
			if m.wiped {
				parts = append(parts, wipeOnFork(m))
			}
		}
	}
	results, err := s.Run(reserve)
	if err != nil {
		return err
	}
	var errs []error
	for i := range files {
		err := reserve[i].Err(results[i])
		if err == nil && results[i] != files[i].start { // older than Linux 4.17: only a hint
			_, unmapErr := s.Call(syscall.SYS_MUNMAP, results[i], files[i].size)
			err = errors.Join(syscall.EEXIST, unmapErr)
		}
		if err != nil {
			errs = append(errs, stagingRefusal(&files[i], "reserve addresses", err))
		}
		files[i].mapped = err == nil
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	closing := len(parts)
	for _, f := range files {
		parts = append(parts, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{f.fd}})
	}
	if results, err = s.Run(parts); err != nil {
		return err
	}
	for i := range parts {
		switch err := parts[i].Err(results[i]); {
		case i >= closing:
			files[i-closing].open = err != nil
		case err != nil:
			return stagingRefusal(&files[0], fmt.Sprintf("map or advise 0x%x-0x%x", parts[i].Args[0], parts[i].Args[0]+parts[i].Args[1]), err)
		}
	}
	return nil
}

// errReused is that the program has closed a descriptor that it does not know.
var errReused = errors.New("the program has closed its descriptor meanwhile")

// stillOpen checks that the descriptors lead to the memfds.
func (p *Process) stillOpen(files []staged) error {
	for i := range files {
		f := &files[i]
		if link, err := p.Descriptor(int(f.fd)); err != nil || !strings.HasPrefix(link, memfd+f.name) {
			f.open = false
			return stagingRefusal(f, "map the memfd", errors.Join(errReused, err))
		}
	}
	return nil
}

// fill writes the memfds from outside, while the program runs.
func (p *Process) fill(files []staged) error {
	for i := range files {
		if err := p.fillOne(&files[i]); err != nil {
			return stagingRefusal(&files[i], "get the build into its memfd", err)
		}
	}
	return nil
}

func (p *Process) fillOne(f *staged) (err error) {
	file, err := p.OpenDescriptor(int(f.fd), syscall.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd())); err != nil || !strings.HasPrefix(link, memfd+f.name) {
		f.open = false
		return errors.Join(errReused, err)
	}
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
	if errors.Is(err, procfs.ErrGone) {
		return err
	}
	remedy := askRestart
	if errors.Is(err, syscall.EEXIST) { // the program has mapped something there meanwhile
		remedy = "try again"
	}
	return errors.Join(api.Refusal{Code: codeStaging, Subject: strings.TrimPrefix(f.name, stagedPrefix),
		Detail: fmt.Sprintf("the process can't %s: %v", what, err), Remedy: remedy}, err)
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

// leftCalls are the calls that take out what a replacement left that was killed:
// mappings that nothing leads to, and descriptors.
func (p *Process) leftCalls() ([]tracee.Call, error) {
	var calls []tracee.Call
	for _, r := range p.leftover {
		calls = append(calls, tracee.Call{Number: syscall.SYS_MUNMAP, Args: [6]uint64{r.Start, r.End - r.Start}})
	}
	open, err := p.openCalls()
	return append(calls, open...), err
}

// openCalls are the calls that close what a replacement has opened in the process;
// vOS may have opened other things there.
func (p *Process) openCalls() ([]tracee.Call, error) {
	descriptors, err := p.Descriptors()
	if err != nil {
		return nil, err
	}
	var calls []tracee.Call
	for fd, link := range descriptors {
		if strings.HasPrefix(link, memfd+stagedPrefix) || strings.HasPrefix(link, memfd+vin.Name) || strings.HasPrefix(link, memfd+intercept.Name) {
			calls = append(calls, tracee.Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
		}
	}
	return calls, nil
}

// unstage takes out what was staged for a switch that did not come about. What
// the program's unwinder knows of has to stay.
func (p *Process) unstage(ctx context.Context, r *Replacement) error {
	state, err := p.readWord(r.Image.Start + r.Image.Size - procfs.PageSize + unwindState)
	if err != nil || state != unwindUntold {
		return err
	}
	if reached, err := p.reached(r); err != nil || reached {
		return err
	}
	files := []staged{{start: r.Image.Start, size: r.Image.Size, mapped: true}}
	if r.before == nil {
		c := r.vin.Config()
		table, code := vin.Size(c.Entries, c.Slots)
		files = append(files, staged{start: c.Base, size: table + code, mapped: true})
	}
	_, err = tracee.Do(ctx, p.Process, tracee.Options{Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		return discard(s, files)
	})
	return err
}

// reached reports whether anything in the program may lead to what was staged: an
// error can come after the switch, when threads are let go.
func (p *Process) reached(r *Replacement) (bool, error) {
	selector, err := p.readWord(r.vin.SelectorAddress())
	if err != nil || selector == r.vin.SelectorFor(r.Generation) {
		return true, err
	}
	if r.before != nil {
		return false, nil // the vIN stays
	}
	memory, err := p.openMemory()
	if err != nil {
		return true, err
	}
	entries := r.vin.Entries()
	for i, e := range entries {
		if jump, ok := r.vin.Veneer(i); ok {
			found := make([]byte, len(jump))
			if _, err := memory.ReadAt(found, int64(e.Function)); err != nil || bytes.Equal(found, jump[:]) {
				return true, err
			}
		}
	}
	for _, slot := range r.vin.Slots() {
		// A slot whose module is gone leads nowhere.
		if found, err := p.readWord(slot.Address); err == nil && found == entries[slot.Entry].Stub {
			return true, nil
		}
	}
	return false, nil
}
