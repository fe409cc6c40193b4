package intercept

import "github.com/virtualizing-os/vos/internal/x86"

// Stubs of functions that allocate or free. Their callers keep to C's rules: r10,
// r11, rax and flags are free at the entry of a function without variable
// arguments, and behind it so is all that a function may change.

// Registers of a block that was allocated: they outlive add.
const (
	block = x86.RAX // what the function returned, kept
	size  = x86.RCX
)

func (a *assembler) memory(n int, f *Function, word int) {
	switch f.Kind {
	case Allocate, Duplicate:
		a.shifted(func() { a.call(f.Target) })
		a.allocated(n, word, 0)
		a.Ret()
	case AllocateInto:
		a.Push(x86.RDI)
		a.call(f.Target)
		a.Pop(x86.RDI)
		a.into(n, word, x86.NotEqual) // an error number
	case Reallocate, ReallocateMany:
		a.reallocate(n, f, word)
	case Release:
		a.release(f, word)
	case OperatorNew:
		a.operatorNew(n, f, word)
	case Print, PrintChecked:
		a.print(n, f, word)
	case PrintList:
		a.Push(x86.RDI)
		a.call(f.Target)
		a.Pop(x86.RDI)
		a.into(n, word, x86.Sign)
	case Line:
		a.line(n, f, word)
	}
}

// shifted runs inside with one word more on the stack: a stack is aligned to 16
// bytes at a call, so it isn't at a function's entry.
func (a *assembler) shifted(inside func()) {
	a.SubImm(x86.RSP, wordSize)
	inside()
	a.AddImm(x86.RSP, wordSize)
}

// sizeOf sets into to the usable size of a block, which is not NULL. With a header
// it changes r10, otherwise what a function may change, and is to be called with
// the stack aligned.
func (a *assembler) sizeOf(into, of x86.Reg) {
	if !a.i.config.Allocator.Header {
		if of != x86.RDI {
			a.Mov(x86.RDI, of)
		}
		a.call(a.i.config.Allocator.UsableSize)
		if into != x86.RAX {
			a.Mov(into, x86.RAX)
		}
		return
	}
	// glibc's malloc.c: the size of the chunk with three bits stands before the
	// block; a chunk has one word that is not the block's, and one that was
	// mapped (bit 1) has two.
	a.Load(into, x86.At(of, -wordSize))
	a.Mov(x86.R10, into)
	a.AndImm(x86.R10, 2)
	a.AndImm(into, -8)
	a.ShlImm(x86.R10, 2)
	a.Sub(into, x86.R10)
	a.SubImm(into, wordSize)
}

// allocated counts the block in rax, if it is one, and keeps it. Here and below,
// depth is how far on the stack the caller's return address is, and the stack is
// as aligned as at a function's entry.
func (a *assembler) allocated(n, word, depth int) {
	none, done := a.NewLabel(), a.NewLabel()
	a.Test(block, block)
	a.Jcc(x86.Equal, none)
	a.grown(n, word, depth)
	a.Jmp(done)
	a.Bind(none)
	a.count(word + callsWord)
	a.Bind(done)
}

// grown counts the block in rax, which is one, and samples it. It keeps rax.
func (a *assembler) grown(n, word, depth int) {
	if a.i.config.Allocator.Header {
		a.sizeOf(size, block)
	} else {
		a.Push(block)
		a.sizeOf(size, block)
		a.Pop(block)
	}
	a.addCall(word, size)
	a.sampled(n, depth)
}

// sampled puts the block in rax of rcx bytes into the table of samples, if it is
// its turn; one that another stub has had there becomes this one's. It keeps rax.
func (a *assembler) sampled(n, depth int) {
	if a.i.config.Interval == 0 {
		return
	}
	if a.i.functions[n].Kind.Moves() {
		a.Lea(x86.RDI, x86.Rel(a.stubs[n]))
		a.Load(x86.RSI, x86.At(x86.RSP, int32(depth)))
		a.Call(a.adopt)
		return
	}
	next := a.NewLabel()
	if a.i.config.Rseq == nil {
		a.Mov(x86.R10, size)
		a.Neg(x86.R10)
		a.LockXadd(x86.Rel(a.shared(untilWord)), x86.R10)
		a.Sub(x86.R10, size)
	} else {
		// Another thread may add at the same time: then a way is a little longer.
		a.SubMem(x86.At(x86.R11, untilWord*wordSize), size)
	}
	a.Jcc(x86.NotSign, next)
	a.Lea(x86.RDI, x86.Rel(a.stubs[n]))
	a.Load(x86.RSI, x86.At(x86.RSP, int32(depth)))
	a.Call(a.sample)
	a.Bind(next)
}

// into counts the block that *rdi leads to, unless rax (32 bits) is on the
// condition failed of a comparison with 0, and returns with rax.
func (a *assembler) into(n, word int, failed x86.Cond) {
	none := a.NewLabel()
	a.Test32(x86.RAX, x86.RAX)
	a.Jcc(failed, none)
	a.Push(x86.RAX)
	a.Load(block, x86.At(x86.RDI, 0))
	a.shifted(func() { a.allocated(n, word, 2*wordSize) })
	a.Pop(x86.RAX)
	a.Ret()
	a.Bind(none)
	a.count(word + callsWord)
	a.Ret()
}

// release counts what is to be freed, and goes on there: nothing comes back.
func (a *assembler) release(f *Function, word int) {
	to := f.Target
	if f.Aid != 0 {
		to = f.Aid
	}
	none := a.NewLabel()
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.Equal, none)
	if a.i.config.Allocator.Header {
		a.sizeOf(x86.RAX, x86.RDI)
	} else {
		a.Push(x86.RDI)
		a.Push(x86.RSI)
		a.shifted(func() { a.sizeOf(x86.RAX, x86.RDI) })
		a.Pop(x86.RSI)
		a.Pop(x86.RDI)
	}
	a.addCall(word, x86.RAX)
	a.forget()
	a.jump(to)
	a.Bind(none)
	a.count(word + callsWord)
	a.jump(to)
}

// reallocate calls realloc: on the stack are the parameters and the size before.
func (a *assembler) reallocate(n int, f *Function, word int) {
	const (
		was   = 0 * wordSize // the size before, 0 for no block
		given = 1 * wordSize // the block before
		want  = 2 * wordSize // 0 if the block is to be freed
		more  = 3 * wordSize // reallocarray's third parameter
		words = 5
	)
	at := func(offset int32) x86.Address { return x86.At(x86.RSP, offset) }
	fresh, done, failed := a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.SubImm(x86.RSP, words*wordSize)
	a.Store(at(given), x86.RDI)
	a.Store(at(want), x86.RSI)
	a.Store(at(more), x86.RDX)
	a.Xor(x86.RAX, x86.RAX)
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.Equal, fresh)
	a.sizeOf(x86.RAX, x86.RDI)
	a.Bind(fresh)
	a.Store(at(was), x86.RAX)
	// The table must not know the block any more when somebody else may get it.
	// Where realloc fails, a sample is lost: the block is still there.
	a.Test(x86.RAX, x86.RAX)
	free := a.NewLabel()
	a.Jcc(x86.Equal, free)
	a.Load(x86.RDI, at(given))
	a.forget()
	a.Bind(free)
	a.Load(x86.RDI, at(given))
	a.Load(x86.RSI, at(want))
	a.Load(x86.RDX, at(more))
	a.call(f.Target)
	a.Test(x86.RAX, x86.RAX)
	a.Jcc(x86.Equal, failed)
	a.Load(x86.RDX, at(was))
	a.add(word+freedWord, x86.RDX)
	a.shifted(func() { a.grown(n, word, (words+1)*wordSize) })
	a.Jmp(done)
	a.Bind(failed) // or nothing was wanted: then the block was freed
	a.count(word + callsWord)
	zero := a.NewLabel()
	a.Load(x86.RDX, at(want))
	a.Test(x86.RDX, x86.RDX)
	a.Jcc(x86.Equal, zero)
	if f.Kind == ReallocateMany {
		a.Load(x86.RDX, at(more))
		a.Test(x86.RDX, x86.RDX)
		a.Jcc(x86.Equal, zero)
	}
	a.Jmp(done)
	a.Bind(zero)
	a.Load(x86.RDX, at(was))
	a.add(word+freedWord, x86.RDX)
	a.Bind(done)
	a.AddImm(x86.RSP, words*wordSize)
	a.Ret()
}

// operatorNew calls malloc as operator new does, and operator new itself, which calls
// handlers and throws, where that finds nothing.
func (a *assembler) operatorNew(n int, f *Function, word int) {
	some, none := a.NewLabel(), a.NewLabel()
	a.Push(x86.RDI)
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.NotEqual, some)
	a.MovImm32(x86.RDI, 1)
	a.Bind(some)
	a.call(f.Aid)
	a.Pop(x86.RDI)
	a.Test(block, block)
	a.Jcc(x86.Equal, none)
	a.grown(n, word, 0)
	a.Ret()
	a.Bind(none)
	a.count(word + callsWord)
	a.jump(f.Target)
}

// print is asprintf: it makes a list of its arguments (psABI 3.5.7) and hands it
// to vasprintf, as the C library's does.
func (a *assembler) print(n int, f *Function, word int) {
	const (
		gp        = 6 * wordSize
		fp        = 8 * 16
		list      = 24
		frame     = gp + fp + list + 16 // into, and alignment
		listAt    = gp + fp
		intoAt    = listAt + list
		arguments = frame + wordSize // behind the return address
	)
	named := int32(2)
	va := x86.RDX
	if f.Kind == PrintChecked {
		named, va = 3, x86.RCX
	}
	a.SubImm(x86.RSP, frame)
	for n, r := range []x86.Reg{x86.RDI, x86.RSI, x86.RDX, x86.RCX, x86.R8, x86.R9} {
		a.Store(x86.At(x86.RSP, int32(n*wordSize)), r)
	}
	integers := a.NewLabel()
	a.Raw(0x84, 0xc0) // test %al, %al: vector registers that hold arguments
	a.Jcc(x86.Equal, integers)
	for n := range byte(8) {
		// movaps %xmmN, gp+16*N(%rsp)
		a.Raw(0x0f, 0x29, 0x84|n<<3, 0x24)
		a.Raw(le.AppendUint32(nil, uint32(gp)+uint32(n)*16)...)
	}
	a.Bind(integers)
	a.Store(x86.At(x86.RSP, intoAt), x86.RDI)
	a.MovImm64(x86.RAX, uint64(named*wordSize)|uint64(gp)<<32) // gp_offset, fp_offset
	a.Store(x86.At(x86.RSP, listAt), x86.RAX)
	a.Lea(x86.RAX, x86.At(x86.RSP, arguments))
	a.Store(x86.At(x86.RSP, listAt+wordSize), x86.RAX)
	a.Lea(x86.RAX, x86.At(x86.RSP, 0))
	a.Store(x86.At(x86.RSP, listAt+2*wordSize), x86.RAX)
	a.Lea(va, x86.At(x86.RSP, listAt))
	a.call(f.Aid)
	a.Load(x86.RDI, x86.At(x86.RSP, intoAt))
	a.AddImm(x86.RSP, frame)
	a.into(n, word, x86.Sign)
}

// line is getline: *rdi is a block of *rsi bytes, or none, before and behind it.
func (a *assembler) line(n int, f *Function, word int) {
	const (
		was    = 0 * wordSize
		into   = 1 * wordSize
		result = 2 * wordSize
		p2     = 3 * wordSize
		p3     = 4 * wordSize
		p4     = 5 * wordSize
		before = 6 * wordSize
		words  = 7
	)
	at := func(offset int32) x86.Address { return x86.At(x86.RSP, offset) }
	none, done, invalid := a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.count(word + callsWord)
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.Equal, invalid)
	a.Test(x86.RSI, x86.RSI)
	a.Jcc(x86.Equal, invalid)
	a.SubImm(x86.RSP, words*wordSize)
	a.Store(at(into), x86.RDI)
	a.Store(at(p2), x86.RSI)
	a.Store(at(p3), x86.RDX)
	a.Store(at(p4), x86.RCX)
	a.Xor(x86.RAX, x86.RAX)
	a.Store(at(before), x86.RAX)
	a.Load(x86.R10, x86.At(x86.RSI, 0)) // where the length is 0, the pointer may be anything
	a.Test(x86.R10, x86.R10)
	a.Jcc(x86.Equal, none)
	a.Load(x86.RDI, x86.At(x86.RDI, 0))
	a.Test(x86.RDI, x86.RDI)
	a.Jcc(x86.Equal, none)
	a.Store(at(before), x86.RDI)
	a.sizeOf(x86.RAX, x86.RDI)
	a.Bind(none)
	a.Store(at(was), x86.RAX)
	a.Load(x86.RDI, at(into))
	a.Load(x86.RSI, at(p2))
	a.Load(x86.RDX, at(p3))
	a.Load(x86.RCX, at(p4))
	a.call(f.Target)
	a.Store(at(result), x86.RAX)
	// What it grew by is a new block; where it didn't, nothing changed.
	a.Load(x86.RSI, at(p2))
	a.Load(x86.R10, x86.At(x86.RSI, 0))
	a.Test(x86.R10, x86.R10)
	a.Jcc(x86.Equal, done)
	a.Load(x86.RDI, at(into))
	a.Load(block, x86.At(x86.RDI, 0))
	a.Test(block, block)
	a.Jcc(x86.Equal, done)
	a.Push(block)
	a.shifted(func() { a.sizeOf(size, block) })
	a.Pop(block)
	a.Load(x86.RDX, at(was))
	a.Cmp(size, x86.RDX)
	same := a.NewLabel()
	a.Jcc(x86.NotEqual, same)
	a.Load(x86.RDX, at(before))
	a.Cmp(block, x86.RDX)
	a.Jcc(x86.Equal, done)
	a.Bind(same)
	a.Load(x86.RDX, at(was))
	a.add(word+freedWord, x86.RDX)
	a.add(word+bytesWord, size)
	a.sampled(n, words*wordSize)
	a.Bind(done)
	a.Load(x86.RAX, at(result))
	a.AddImm(x86.RSP, words*wordSize)
	a.Ret()
	a.Bind(invalid) // the function says so
	a.jump(f.Target)
}
