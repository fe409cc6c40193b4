package intercept

import "github.com/virtualizing-os/vos/internal/x86"

// The table of samples is buckets of four keys, a block's address each, and of
// what is known of the blocks. A block's bucket follows from its address. Key 0 is
// free, and 1 one that is being written. How many a bucket has is in a byte of its
// own, so that looking for a block that isn't there takes a look at 4 KiB in all.

// golden spreads what it multiplies over the upper bits: 2^64 / 1.618.
const golden = 0x9e3779b97f4a7c15

const bucketShift = 64 - 12 // of a product with golden

const _ = uint(1<<(64-bucketShift) - buckets) // they agree

// bucket sets r to the number of the bucket of the block in r, which malloc aligned
// to 16 bytes. It changes scratch.
func (a *assembler) bucket(r, scratch x86.Reg) {
	a.ShrImm(r, 4)
	a.MovImm64(scratch, golden)
	a.Imul(r, scratch)
	a.ShrImm(r, bucketShift)
}

// forget takes the block in rdi out of the table, if it is there: before it is
// freed, so that whoever gets it next finds it gone. It changes rax, r10, r11 and flags.
func (a *assembler) forget() {
	if a.i.config.Interval == 0 {
		return
	}
	done, gone := a.NewLabel(), a.NewLabel()
	a.Mov(x86.RAX, x86.RDI)
	a.bucket(x86.RAX, x86.R10)
	a.MovImm64(x86.R10, a.i.SamplesAddress())
	a.Raw(0x41, 0x80, 0x3c, 0x02, 0) // cmpb $0, (%r10,%rax)
	a.Jcc(x86.Equal, done)
	a.Lea(x86.R11, x86.At(x86.R10, 0))
	a.Add(x86.R11, x86.RAX) // the bucket's byte
	a.ShlImm(x86.RAX, 5)    // 4 keys of 8 bytes
	a.Add(x86.R10, x86.RAX)
	a.AddImm(x86.R10, filterSize)
	var hits [ways]x86.Label
	for way := range ways {
		hits[way] = a.NewLabel()
		a.CmpMem(x86.At(x86.R10, int32(way*keySize)), x86.RDI)
		a.Jcc(x86.Equal, hits[way])
	}
	a.Jmp(done)
	for way := range ways {
		a.Bind(hits[way])
		a.Xor(x86.RAX, x86.RAX)
		a.Store(x86.At(x86.R10, int32(way*keySize)), x86.RAX)
		if way != ways-1 {
			a.Jmp(gone)
		}
	}
	a.Bind(gone)
	a.Raw(0xf0, 0x41, 0xfe, 0x0b) // lock decb (%r11)
	a.Bind(done)
}

// routines appends what stubs call: insert, and adopt.
func (a *assembler) routines() {
	a.sample, a.adopt = a.NewLabel(), a.NewLabel()
	if a.i.config.Interval == 0 {
		return
	}
	a.Align(16)
	a.Bind(a.sample)
	a.insert()
	a.Align(16)
	a.Bind(a.adopt)
	a.adoption()
}

// places sets r11 to the byte of the bucket of the block in rax, r8 to where its keys
// are, and rdx to where its samples are. It changes r10.
func (a *assembler) places() {
	a.Mov(x86.RDX, x86.RAX)
	a.bucket(x86.RDX, x86.R10)
	a.MovImm64(x86.R10, a.i.SamplesAddress())
	a.Mov(x86.R11, x86.R10)
	a.Add(x86.R11, x86.RDX)
	a.AddImm(x86.R10, filterSize)
	a.Mov(x86.R8, x86.RDX)
	a.ShlImm(x86.R8, 5) // 4 keys of 8 bytes
	a.Add(x86.R8, x86.R10)
	a.Raw(0x48, 0x8d, 0x14, 0x52) // lea (%rdx,%rdx,2), %rdx
	a.ShlImm(x86.RDX, 5)          // 4 samples of 24 bytes
	a.Add(x86.RDX, x86.R10)
	a.AddImm(x86.RDX, keysSize)
}

// insert puts the block in rax, of rcx bytes, which the stub at rdi got for a call
// that returns to rsi, into the table. It keeps rax and changes what a function may.
func (a *assembler) insert() {
	// The way to the next sample, by lot.
	a.Mov(x86.R8, x86.RAX)
	a.Rdtsc()
	a.MovImm64(x86.R9, golden)
	a.Imul(x86.RAX, x86.R9)
	a.ShrImm(x86.RAX, 64-8)
	a.Lea(x86.R9, x86.Rel(a.here(a.i.layout.intervals)))
	a.Raw(0x4d, 0x8b, 0x0c, 0xc1) // mov (%r9,%rax,8), %r9
	a.Mov(x86.RAX, x86.R8)
	if a.i.config.Rseq == nil {
		a.Store(x86.Rel(a.shared(untilWord)), x86.R9)
	} else {
		a.atomically(func() { a.Store(x86.At(x86.R11, untilWord*wordSize), x86.R9) })
	}

	a.places()
	a.Mov(x86.R10, x86.RAX)
	a.MovImm32(x86.R9, 1)
	for way := range ways {
		key := x86.At(x86.R8, int32(way*keySize))
		next := a.NewLabel()
		a.Xor(x86.RAX, x86.RAX)
		a.LockCmpxchg(key, x86.R9)
		a.Jcc(x86.NotEqual, next)
		for n, r := range []x86.Reg{x86.RCX, x86.RDI, x86.RSI} {
			a.Store(x86.At(x86.RDX, int32(way*sampleSize+n*wordSize)), r)
		}
		a.Raw(0xf0, 0x41, 0xfe, 0x03) // lock incb (%r11): before the key, so that who looks for it finds it
		a.Mov(x86.RAX, x86.R10)
		a.Store(key, x86.RAX)
		a.Ret()
		a.Bind(next)
	}
	a.Mov(x86.RAX, x86.R10)
	a.add(lostWord, x86.R9)
	a.Ret()
	a.aborts()
}

// adoption makes the sample of the block in rax, if there is one, that of the stub
// at rdi, for a call that returns to rsi. It keeps rax and changes what a function may.
func (a *assembler) adoption() {
	a.places()
	for way := range ways {
		next := a.NewLabel()
		a.CmpMem(x86.At(x86.R8, int32(way*keySize)), x86.RAX)
		a.Jcc(x86.NotEqual, next)
		a.Store(x86.At(x86.RDX, int32(way*sampleSize+wordSize)), x86.RDI)
		a.Store(x86.At(x86.RDX, int32(way*sampleSize+2*wordSize)), x86.RSI)
		a.Bind(next)
	}
	a.Ret()
}
