package module

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/vin"
)

const (
	codeInterceptor  api.Code = "interceptor_corrupt"
	codeInterceptors api.Code = "too_many_interceptors"
	codeNoImports    api.Code = "no_imports"
)

// maxInterceptors bounds what a program that opens libraries again and again gets.
const maxInterceptors = 16

// sampleInterval is the mean number of bytes between two sampled blocks.
const sampleInterval = 512 << 10

// AttachOptions say what is to be counted.
type AttachOptions struct {
	Memory bool // what functions that allocate and free do, by module

	// Pointers also counts calls by pointers that the loader stored, and by slots
	// whose value is used as a pointer. The program may copy and compare them: all
	// modules get the same stub for a function, and it stays when vOS detaches.
	Pointers bool
}

// An Attachment is the plan by which the calls of a process come to be counted.
type Attachment struct {
	Options     AttachOptions
	Interceptor *intercept.Interceptor // that is to be mapped; nil if the process has all
	Writes      []SlotWrite            // by ascending address
	Left        []LeftSlot             // what is not counted, and why
	Refusals    []api.Refusal          // if any, nothing of the rest counts

	dead []*intercept.Interceptor // of modules that are gone
}

// A SlotWrite changes what an import slot holds.
type SlotWrite struct {
	Address, From, To uint64
	alone             bool // what lies beside it may be anything
}

// A LeftSlot is an imported function whose calls are not counted, or not wholly.
type LeftSlot struct {
	Module string
	Name   string
	Why    string
}

// Empty reports whether there is nothing to do.
func (a *Attachment) Empty() bool {
	return len(a.Refusals) == 0 && len(a.Writes) == 0 && len(a.dead) == 0
}

// PlanAttach plans to count the calls of all modules that import functions. Nobody
// is stopped and nothing is changed. An error means that the process is gone or that
// something could not be read.
func (p *Process) PlanAttach(opt AttachOptions) (*Attachment, error) {
	a := &Attachment{Options: opt}
	if r := p.interceptorRefusal(); r != nil {
		a.Refusals = append(a.Refusals, *r)
		return a, nil
	}
	slots, err := p.importSlots()
	if errors.Is(err, procfs.ErrUnmapped) || err == nil && len(slots) == 0 {
		a.Refusals = append(a.Refusals, api.Refusal{Code: codeNoImports, Subject: p.Name,
			Detail: "no module imports a function: the program is linked statically, or has no loader that vos knows", Remedy: "none is known"})
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	var memory *allocator
	if opt.Memory {
		var refusal *api.Refusal
		if memory, refusal = p.findAllocator(slots); refusal != nil {
			a.Refusals = append(a.Refusals, *refusal)
			return a, nil
		}
	}
	p.planOld(a)
	d := newDesign(p, a, memory)
	for i := range slots {
		d.add(&slots[i])
	}
	if len(d.functions) > 0 {
		if err := p.planNew(a, d); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(a.Writes, func(a, b SlotWrite) int { return cmp.Compare(a.Address, b.Address) })
	return a, nil
}

// interceptorRefusal refuses to go on where there is something that vOS doesn't know.
func (p *Process) interceptorRefusal() *api.Refusal {
	if len(p.interceptorErrors) == 0 {
		return nil
	}
	return &api.Refusal{Code: codeInterceptor, Subject: p.Name, Detail: errors.Join(p.interceptorErrors...).Error(), Remedy: restart}
}

// planOld lets slots lead to stubs again that the process has, but which a detach
// left, and finds interceptors whose modules are all gone.
func (p *Process) planOld(a *Attachment) {
	for _, in := range p.interceptors {
		if p.dead(in) {
			a.dead = append(a.dead, in)
			continue
		}
		if a.Options.Memory != countsMemory(in) {
			continue
		}
		for _, s := range in.Slots() {
			value, err := p.readWord(s.Address)
			// The loader may have been binding it when it was led to the stub.
			if err == nil && (value == s.Before || value == in.Function(s.Function).Target) {
				a.Writes = append(a.Writes, SlotWrite{s.Address, value, in.Stub(s.Function), s.Taken})
			}
		}
	}
}

// dead reports whether nothing can lead to an interceptor any more, as its modules are
// gone, and others don't need it.
func (p *Process) dead(in *intercept.Interceptor) bool {
	if c := in.Config(); c.Interval != 0 && c.Samples == 0 {
		return false // others may use its table of samples
	}
	for _, s := range in.Slots() {
		if s.Taken {
			return false
		}
	}
	for _, m := range in.Modules() {
		if now := p.moduleAt(m.Start); now != nil && now.start == m.Start && now.BuildID() == m.BuildID {
			return false
		}
	}
	return true
}

// A design is what an interceptor is to be made of.
type design struct {
	p      *Process
	a      *Attachment
	memory *allocator

	modules   []intercept.Module
	functions []intercept.Function
	slots     []intercept.Slot

	module   map[*Module]int
	function map[functionKey]int
	done     map[uint64]bool // slots that are counted already, or will be
}

// Functions of one key have one stub.
type functionKey struct {
	importer *Module // nil where several share it
	name     string
	target   uint64
}

func newDesign(p *Process, a *Attachment, memory *allocator) *design {
	d := &design{p: p, a: a, memory: memory, module: make(map[*Module]int), function: make(map[functionKey]int), done: make(map[uint64]bool)}
	for _, w := range a.Writes {
		d.done[w.Address] = true
	}
	return d
}

// unsuited are functions that are called by rules of their own: before the caller's
// prologue, with registers that others may change.
var unsuited = map[string]bool{"mcount": true, "_mcount": true, "__fentry__": true, "__mcount_internal": true}

// add adds a slot, or notes why not.
func (d *design) add(s *ImportSlot) {
	left := func(why string) {
		d.a.Left = append(d.a.Left, LeftSlot{Module: s.Importer.Name, Name: symbolKey(s.Symbol), Why: why})
	}
	kind, aid := intercept.Count, uint64(0)
	allocates := false
	if d.memory != nil {
		_, allocates = allocating[s.Symbol.Name]
	}
	switch {
	case d.done[s.Address] || !s.Lazy && s.Target != s.Value && d.p.intercepted(s.Value):
		return
	case unsuited[s.Symbol.Name]:
		left("it is called by rules of its own")
		return
	case s.Target == 0:
		left("it has not been called yet, and what the loader will bind it to is not certain")
		return
	case s.Taken && !d.a.Options.Pointers && !allocates:
		left("its address is used as a pointer")
		return
	}
	if allocates && s.Target != 0 {
		var why string
		if kind, aid, why = d.memory.kind(s, d.p); why != "" {
			left("its calls are counted, not its memory: " + why)
		}
	}
	if s.Taken && kind == intercept.Count && !d.a.Options.Pointers {
		left("its address is used as a pointer")
		return
	}
	key := functionKey{s.Importer, symbolKey(s.Symbol), s.Target}
	if s.Taken && kind == intercept.Count {
		key.importer = nil
	}
	n, ok := d.function[key]
	if !ok {
		n = len(d.functions)
		d.function[key] = n
		d.functions = append(d.functions, intercept.Function{
			Name: key.name, Importer: d.importer(key.importer), Target: s.Target, Kind: kind, Aid: aid,
		})
	}
	d.slots = append(d.slots, intercept.Slot{Address: s.Address, Before: s.Value, Function: n, Taken: s.Taken})
}

// importer returns the number of a module, or of all that share a stub.
func (d *design) importer(m *Module) int {
	n, ok := d.module[m]
	if !ok {
		n = len(d.modules)
		d.module[m] = n
		record := intercept.Module{Name: SharedImporter, Start: 1, End: 2}
		if m != nil {
			record = intercept.Module{Name: m.Name, BuildID: m.BuildID(), Bias: m.Bias, Start: m.start, End: m.end}
		}
		d.modules = append(d.modules, record)
	}
	return n
}

// SharedImporter is the name under which calls by pointers are counted, which may be
// any module's.
const SharedImporter = api.ByPointer

// intercepted reports whether an address is that of an interceptor's stub.
func (p *Process) intercepted(address uint64) bool {
	return slices.ContainsFunc(p.interceptors, func(in *intercept.Interceptor) bool {
		n, ok := in.Find(address)
		return ok && in.Stub(n) == address
	})
}

// planNew makes the interceptor for what the process has none for yet.
func (p *Process) planNew(a *Attachment, d *design) error {
	if len(p.interceptors)-len(a.dead) >= maxInterceptors {
		a.Refusals = append(a.Refusals, api.Refusal{Code: codeInterceptors, Subject: p.Name,
			Detail: fmt.Sprintf("it has %d interceptors: it has opened libraries again and again", len(p.interceptors)), Remedy: "vos detach, then attach again"})
		return nil
	}
	processors, err := possibleProcessors()
	if err != nil {
		return err
	}
	c := intercept.Config{Base: procfs.PageSize, Processors: processors}
	if c.Rseq, err = p.rseq(); err != nil {
		return err
	}
	if d.memory != nil {
		c.Allocator, c.Interval = d.memory.how, sampleInterval
		for _, in := range p.interceptors {
			if at := in.SamplesAddress(); at != 0 && in.Config().Samples == 0 {
				c.Samples = at
			}
		}
	}
	sized, err := intercept.New(c, d.modules, d.functions, d.slots)
	if err != nil {
		return err
	}
	anchor := p.Modules[len(p.Modules)-1]
	for _, m := range p.Modules {
		if m.Kind == Library {
			anchor = m
		}
	}
	base, ok := findRoom(p.maps, anchor.start, anchor.end, sized.Size())
	if !ok {
		a.Refusals = append(a.Refusals, api.Refusal{Code: codeNoRoom, Subject: p.Name,
			Detail: fmt.Sprintf("there are no %d MiB of free addresses", sized.Size()>>20), Remedy: restart})
		return nil
	}
	c.Base = base
	if a.Interceptor, err = intercept.New(c, d.modules, d.functions, d.slots); err != nil {
		return err
	}
	for _, s := range d.slots {
		a.Writes = append(a.Writes, SlotWrite{s.Address, s.Before, a.Interceptor.Stub(s.Function), s.Taken})
	}
	return nil
}

// possibleProcessors returns how many processors the machine may ever have: the
// number of the last one and one.
func possibleProcessors() (int, error) {
	const path = "/sys/devices/system/cpu/possible"
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("count processors: %w", err)
	}
	list := strings.TrimSpace(string(b)) // 0-3 or 0,2-3
	last := list[strings.LastIndexAny(list, ",-")+1:]
	n, err := strconv.Atoi(last)
	if err != nil || n < 0 || n >= intercept.MaxProcessors {
		return 0, fmt.Errorf("count processors: %s says %q: %w", path, list, strconv.ErrRange)
	}
	return n + 1, nil
}

// rseqSignature is glibc's RSEQ_SIG for x86.
const rseqSignature = 0x53053053

// rseq returns how glibc registered all threads for restartable sequences: nil where
// it did not, or where it isn't glibc 2.35 or later.
func (p *Process) rseq() (*intercept.Rseq, error) {
	for _, m := range p.Modules {
		if m.Object == nil || m.Kind != Loader {
			continue
		}
		offset, ok, err := m.Object.Lookup("__rseq_offset", "GLIBC_2.35")
		if err != nil || !ok {
			return nil, err
		}
		size, ok, err := m.Object.Lookup("__rseq_size", "GLIBC_2.35")
		if err != nil || !ok {
			return nil, err
		}
		distance, err := p.readWord(m.Bias + offset.Value)
		if err != nil {
			return nil, err
		}
		registered, err := p.readWord(m.Bias + size.Value&^7) // 4 bytes of an aligned word
		if err != nil {
			return nil, err
		}
		if uint32(registered>>(size.Value%8*8)) == 0 || int64(distance) != int64(int32(distance)) {
			return nil, nil
		}
		return &intercept.Rseq{Offset: int32(distance), Signature: rseqSignature}, nil
	}
	return nil, nil
}

// An Attached is how an attachment or a detachment went.
type Attached struct {
	Times tracee.Times
	Total time.Duration
	Slots int // that were written
	Stays []string
}

// errOtherRseq is that a thread is registered otherwise than the loader says.
var errOtherRseq = errors.New("threads have other restartable sequences than the C library's")

// CommitAttach carries out a plan without refusals. Where it returns an error, no slot
// was changed.
func (p *Process) CommitAttach(ctx context.Context, a *Attachment) (done Attached, err error) {
	begin := time.Now()
	defer func() { done.Total = time.Since(begin) }()
	if len(a.dead) > 0 {
		if _, err := p.unmapWhenFree(ctx, a.dead); err != nil {
			return done, err
		}
	}
	if a.Interceptor != nil {
		if done.Times, err = p.stageFiles(ctx, []staged{stagedInterceptor(a.Interceptor)}); err != nil {
			return done, fmt.Errorf("map the interceptor into process %d: %w", p.PID(), err)
		}
	}
	if err := ctx.Err(); err != nil {
		return done, errors.Join(err, p.withdraw(ctx, a))
	}
	times, err := p.writeSlots(ctx, a.Writes, func(s *tracee.Session) error { return checkRseq(s, a.Interceptor) }, &done.Slots)
	done.Times.Pause = max(done.Times.Pause, times.Pause)
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		err = errors.Join(err, p.withdraw(ctx, a))
	}
	return done, err
}

// withdraw takes an interceptor out that nothing leads to.
func (p *Process) withdraw(ctx context.Context, a *Attachment) error {
	if a.Interceptor == nil {
		return nil
	}
	_, err := p.unmapWhenFree(context.WithoutCancel(ctx), []*intercept.Interceptor{a.Interceptor})
	return err
}

func stagedInterceptor(in *intercept.Interceptor) staged {
	base := in.Config().Base
	f := staged{name: intercept.Name, start: base, size: in.Size()}
	for _, part := range in.Parts() {
		m := interceptorPart(part, base)
		f.parts = append(f.parts, m)
		if !m.anonymous {
			f.runs = append(f.runs, vin.Change{Address: part.Start, Bytes: part.Bytes})
		}
	}
	return f
}

func interceptorPart(of intercept.Part, base uint64) part {
	m := part{start: of.Start, size: of.Size, offset: of.Start - base, protection: syscall.PROT_READ}
	switch of.Protection {
	case intercept.Readable:
	case intercept.Executable:
		m.protection |= syscall.PROT_EXEC
	case intercept.Writable:
		m.protection |= syscall.PROT_WRITE
		m.anonymous, m.wiped, m.offset = true, true, 0
	}
	return m
}

// checkRseq makes sure, with all threads stopped, that their restartable sequences
// are registered as the interceptor has it.
func checkRseq(s *tracee.Session, in *intercept.Interceptor) error {
	if in == nil || in.Config().Rseq == nil {
		return nil
	}
	all, err := s.RestartableSequences()
	if err != nil {
		return err
	}
	for _, r := range all {
		if want := in.Config().Rseq; r.Offset != int64(want.Offset) || r.Signature != want.Signature {
			return fmt.Errorf("thread %d: %w", r.TID, errOtherRseq)
		}
	}
	return nil
}

// writeSlots writes, with all threads stopped, those slots that hold what they are to
// hold before. Neighbours are written at once.
func (p *Process) writeSlots(ctx context.Context, writes []SlotWrite, check func(*tracee.Session) error, written *int) (tracee.Times, error) {
	if len(writes) == 0 {
		return tracee.Times{}, nil
	}
	// From here on an interrupt comes too late: it would cut the writes short.
	return tracee.Do(context.WithoutCancel(ctx), p.Process, tracee.Options{Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := check(s); err != nil {
			return err
		}
		for rest := writes; len(rest) > 0; {
			n := neighbours(rest)
			changed, err := writeRun(s, rest[:n])
			if err != nil {
				return err
			}
			*written += changed
			rest = rest[n:]
		}
		return nil
	})
}

// neighbours returns how many of the first writes lie so near each other that one
// write of all bytes between them costs less than two: there are other slots alone,
// which nothing but the loader changes.
func neighbours(writes []SlotWrite) int {
	const gap = 256
	n := 1
	for n < len(writes) && !writes[0].alone && !writes[n].alone &&
		writes[n].Address-writes[n-1].Address <= gap && writes[n].Address/procfs.PageSize == writes[0].Address/procfs.PageSize {
		n++
	}
	return n
}

// writeRun writes neighbours; what lies between them stays as it is.
func writeRun(s *tracee.Session, writes []SlotWrite) (changed int, err error) {
	start := writes[0].Address
	before := make([]byte, writes[len(writes)-1].Address+8-start)
	if _, err := s.Memory().ReadAt(before, int64(start)); err != nil {
		if errors.Is(err, procfs.ErrAddress) {
			return 0, nil // its module is gone
		}
		return 0, err
	}
	after := slices.Clone(before)
	for _, w := range writes {
		at := w.Address - start
		if slices.Equal(before[at:at+8], word(w.From)) {
			copy(after[at:], word(w.To))
			changed++
		}
	}
	if changed == 0 {
		return 0, nil
	}
	return changed, s.WriteOver(start, before, after)
}
