package intercept

// Name is the name of the memfd that holds the table and the code.
const Name = "vos-interceptor"

// Version is the version of the format.
const Version = 1

// Sizes in bytes.
const (
	page     = 4096
	wordSize = 8
	line     = 64 // of a cache

	headerSize   = 512
	moduleSize   = 512
	functionSize = 32
	slotSize     = 24
	sectionSize  = 32 // struct rseq_cs

	narrow = 1 << 8  // processors that one byte can tell apart
	wide   = 1 << 16 // and two bytes

	intervals = 256 // lengths of the way to the next sample

	buckets    = 1 << 12 // of the table of samples
	ways       = 4       // samples in a bucket
	keySize    = wordSize
	sampleSize = 24
	filterSize = buckets // a byte for each bucket: how many samples it has
	keysSize   = buckets * ways * keySize
	samplesEnd = filterSize + keysSize + buckets*ways*sampleSize
)

// Each processor has words: common ones first, then those of each function.
const (
	untilWord   = iota // bytes until the next sample
	lostWord           // samples that had no room
	commonWords = 8    // a cache line
)

// Words of a function: functions of kind Count have the first one only, and those of
// kind Release have what was freed in the second. A call and its bytes are counted by
// one store of 16 bytes.
const (
	callsWord = iota
	bytesWord
	freedWord
	memoryWords = 4
)

func (k Kind) words() int {
	if k.Memory() {
		return memoryWords
	}
	return 1
}

// layout is where things lie: offsets from the base.
type layout struct {
	modules, functions, slots, names uint64 // records, and the texts of names
	processors                       uint64 // pointers to the words of each
	intervals                        uint64
	one                              uint64 // 16 bytes: 1, and 0
	sections                         uint64 // rseq_cs, by their number
	code                             uint64
	words                            uint64
	stride                           uint64 // of one processor's words
	samples                          uint64
	end                              uint64

	word     []int // of each function, in a processor's words
	pointers int   // how many processors are told apart: narrow or wide
}

// lay computes the layout for code and sections of a size.
func (i *Interceptor) lay(nameBytes, sections, codeBytes int) layout {
	l := layout{pointers: narrow}
	if i.config.Processors > narrow {
		l.pointers = wide
	}
	words := commonWords
	for _, f := range i.functions {
		if f.Kind.Memory() {
			words += words % 2
		}
		l.word = append(l.word, words)
		words += f.Kind.words()
	}
	l.stride = align(uint64(words)*wordSize, line)
	at := uint64(headerSize)
	take := func(bytes, alignment uint64) uint64 {
		start := align(at, alignment)
		at = start + bytes
		return start
	}
	l.modules = take(uint64(len(i.modules))*moduleSize, wordSize)
	l.functions = take(uint64(len(i.functions))*functionSize, wordSize)
	l.slots = take(uint64(len(i.slots))*slotSize, wordSize)
	l.names = take(uint64(nameBytes), wordSize)
	l.processors = take(uint64(l.pointers)*wordSize, wordSize)
	l.intervals = take(intervals*wordSize, wordSize)
	l.one = take(2*wordSize, 2*wordSize)
	l.sections = take(uint64(sections)*sectionSize, sectionSize)
	l.code = take(uint64(codeBytes), page)
	l.words = take(uint64(i.config.Processors)*l.stride, page)
	l.samples = align(at, page)
	if i.config.Interval != 0 && i.config.Samples == 0 {
		l.samples = take(samplesEnd, page)
	}
	l.end = align(at, page)
	return l
}

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// Protection of a part.
type Protection uint8

// The protections.
const (
	Readable   Protection = iota // of the memfd, private
	Executable                   // likewise
	Writable                     // anonymous, private, writable, to be empty after a fork
)

// A Part is one mapping of an interceptor.
type Part struct {
	Start      uint64 // process address
	Size       uint64
	Protection Protection
	Bytes      []byte // that it begins with; the rest is zero. nil where Writable
}

// Parts returns the mappings, in the order of addresses, without gaps. The bytes
// are not to be written to. Those of the memfd lie in it as in memory, from offset 0.
func (i *Interceptor) Parts() []Part {
	base, l := i.config.Base, &i.layout
	return []Part{
		{base, l.code, Readable, i.table},
		{base + l.code, l.words - l.code, Executable, i.code},
		{base + l.words, l.end - l.words, Writable, nil},
	}
}

// Size returns how many bytes of address space all parts take, a multiple of 4096.
// It does not depend on the base. Words that are never counted in cost no memory.
func (i *Interceptor) Size() uint64 { return i.layout.end }

// SamplesAddress returns where the table of samples is, 0 if there is none.
func (i *Interceptor) SamplesAddress() uint64 {
	switch {
	case i.config.Interval == 0:
		return 0
	case i.config.Samples != 0:
		return i.config.Samples
	}
	return i.config.Base + i.layout.samples
}

// CodeRange returns where the code is: a thread that is there, or has an address
// of it on its stack, still needs it.
func (i *Interceptor) CodeRange() (start, end uint64) {
	return i.config.Base + i.layout.code, i.config.Base + i.layout.words
}

// SectionRange returns where the descriptors of restartable sequences are. The
// kernel reads the one that a thread used last, and kills a thread whose descriptor
// is gone: before it is unmapped, each thread's pointer to it has to be cleared.
func (i *Interceptor) SectionRange() (start, end uint64) {
	return i.config.Base + i.layout.sections, i.config.Base + i.layout.code
}
