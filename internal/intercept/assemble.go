package intercept

import (
	"math"

	"github.com/virtualizing-os/vos/internal/x86"
)

// A section is a restartable sequence: a struct rseq_cs is made of it.
type section struct{ start, commit, abort uint64 }

// put writes struct rseq_cs: version and flags, start_ip, post_commit_offset,
// abort_ip; linux/rseq.h.
func (s section) put(b []byte) {
	le.PutUint64(b[8:], s.start)
	le.PutUint64(b[16:], s.commit-s.start)
	le.PutUint64(b[24:], s.abort)
}

// assembler makes the code of all stubs, and the sections that it has.
type assembler struct {
	*x86.Assembler
	i        *Interceptor
	sections []section
	pending  []pending // sections of the stub at work whose abort handler is to come
	stubs    []x86.Label
	sample   x86.Label // routines
	adopt    x86.Label
}

type pending struct {
	section int
	restart x86.Label
}

// Offsets of words in struct rseq: cpu_id_start, which is always the number of a
// processor, and the pointer to the section.
const (
	rseqProcessor = 0
	rseqSection   = 8
)

// here is a label at a process address that the layout knows.
func (a *assembler) here(offset uint64) x86.Label { return a.LabelAt(a.i.config.Base + offset) }

// processor loads the address of the words of the processor that runs into r11.
// It changes r10, and no flags.
func (a *assembler) processor() {
	offset := a.i.config.Rseq.Offset + rseqProcessor
	load := byte(0xb6) // movzbl %fs:offset, %r11d
	if a.i.layout.pointers == wide {
		load = 0xb7 // movzwl
	}
	a.Raw(0x64, 0x44, 0x0f, load, 0x1c, 0x25)
	a.Raw(le.AppendUint32(nil, uint32(offset))...)
	a.Lea(x86.R10, x86.Rel(a.here(a.i.layout.processors)))
	a.Raw(0x4f, 0x8b, 0x1c, 0xda) // mov (%r10,%r11,8), %r11
}

// atomically makes one sequence of what emit appends: it gets the words of the
// processor at r11, may change r10, and ends in the one instruction that shows.
// Registers that it reads must be what they were when it begins anew.
func (a *assembler) atomically(emit func()) {
	n := len(a.sections)
	restart := a.NewLabel()
	a.Bind(restart)
	a.Lea(x86.R11, x86.Rel(a.here(a.i.layout.sections+uint64(n)*sectionSize)))
	a.Store(x86.FS(a.i.config.Rseq.Offset+rseqSection), x86.R11)
	s := section{start: a.Address()}
	a.processor()
	emit()
	s.commit = a.Address()
	a.sections = append(a.sections, s)
	a.pending = append(a.pending, pending{n, restart})
}

// aborts appends the abort handlers of the stub at work: behind its code, each
// behind the signature that the kernel wants to see there.
func (a *assembler) aborts() {
	for _, p := range a.pending {
		a.Raw(0x0f, 0xb9, 0x3d) // ud1 signature(%rip), %edi: so that it decodes
		a.Raw(le.AppendUint32(nil, a.i.config.Rseq.Signature)...)
		a.sections[p.section].abort = a.Address()
		a.Jmp(p.restart)
	}
	a.pending = a.pending[:0]
}

// add adds a register, not r10 or r11, to a word: it changes r10, r11 and flags.
func (a *assembler) add(word int, value x86.Reg) {
	if a.i.config.Rseq == nil {
		a.LockAdd(x86.Rel(a.shared(word)), value)
		return
	}
	a.atomically(func() { a.AddMem(x86.At(x86.R11, int32(word*wordSize)), value) })
}

// shared is the word that all processors use where there are no sequences.
func (a *assembler) shared(word int) x86.Label {
	return a.here(a.i.layout.words + uint64(word)*wordSize)
}

// addCall adds 1 to a word and a register to the next one. It changes what add does,
// and xmm0; behind it, r11 is where the words of a processor are: of the one that ran.
func (a *assembler) addCall(word int, value x86.Reg) {
	if a.i.config.Rseq == nil {
		a.LockInc(x86.Rel(a.shared(word)))
		a.LockAdd(x86.Rel(a.shared(word+1)), value)
		return
	}
	a.atomically(func() {
		a.sse(0x66, 0x48, 0x6e, value)          // movq value, %xmm0
		a.Raw(0x66, 0x0f, 0x73, 0xf8, wordSize) // pslldq $8, %xmm0
		a.Raw(0x66, 0x0f, 0xd4, 0x05)           // paddq one(%rip), %xmm0
		at := a.Address() + 4
		a.Raw(le.AppendUint32(nil, uint32(a.i.config.Base+a.i.layout.one-at))...)
		a.Raw(0x66, 0x41, 0x0f, 0xd4, 0x83) // paddq disp32(%r11), %xmm0
		a.Raw(le.AppendUint32(nil, uint32(word*wordSize))...)
		a.Raw(0x66, 0x41, 0x0f, 0x7f, 0x83) // movdqa %xmm0, disp32(%r11)
		a.Raw(le.AppendUint32(nil, uint32(word*wordSize))...)
	})
}

// sse appends an instruction that moves a general register to xmm0: prefix, REX,
// 0F, opcode, ModRM.
func (a *assembler) sse(prefix, rex, opcode byte, from x86.Reg) {
	n := byte(from - x86.RAX)
	a.Raw(prefix, rex|n>>3, 0x0f, opcode, 0xc0|n&7)
}

// count adds 1 to a word. It changes r11 alone, flags neither.
func (a *assembler) count(word int) {
	if a.i.config.Rseq == nil {
		a.Pushfq()
		a.LockInc(x86.Rel(a.shared(word)))
		a.Popfq()
		return
	}
	a.Push(x86.R10)
	a.atomically(func() {
		m := x86.At(x86.R11, int32(word*wordSize))
		a.Load(x86.R10, m)
		a.Lea(x86.R10, x86.At(x86.R10, 1))
		a.Store(m, x86.R10)
	})
	a.Pop(x86.R10)
}

// jump goes on at a process address: it changes r11.
func (a *assembler) jump(to uint64) {
	a.MovImm64(x86.R11, to)
	a.JmpReg(x86.R11)
}

// call calls a process address: it changes r11 and what a function may change.
func (a *assembler) call(to uint64) {
	a.MovImm64(x86.R11, to)
	a.CallReg(x86.R11)
}

// stub appends the stub of a function.
func (a *assembler) stub(n int) {
	f := &a.i.functions[n]
	word := a.i.layout.word[n]
	if f.Kind == Count {
		a.count(word + callsWord)
		a.jump(f.Target)
	} else {
		a.memory(n, f, word)
	}
	a.aborts()
}

// waysToSample returns distances between samples whose mean is the interval:
// quantiles of the exponential distribution, so that each byte allocated is as
// likely to be sampled as any other, whatever the program's rhythm is.
func waysToSample(interval uint64) [intervals]uint64 {
	var all [intervals]uint64
	for n := range all {
		u := (float64(n) + 0.5) / intervals
		all[n] = uint64(-math.Log(1-u) * float64(interval))
	}
	return all
}
