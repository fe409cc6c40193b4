package intercept

import (
	"fmt"
	"slices"
)

// A Module imports functions: its calls are counted.
type Module struct {
	Name    string // at most 255 bytes
	BuildID string // hexadecimal, at most 128 bytes
	Bias    uint64 // what is added to its object addresses
	Start   uint64 // of the first segment's mapping
	End     uint64 // of the last one's
}

// Kind is what a stub does besides counting the call.
type Kind uint8

// The kinds. All but Count call or read memory by C's rules for the function that
// they are named after; a kind is right for functions of that declaration alone.
const (
	Count          Kind = iota // nothing: any function, whatever its parameters
	Allocate                   // malloc, calloc, memalign: the block is returned
	Duplicate                  // strdup, strndup, wcsdup: likewise
	AllocateInto               // posix_memalign: *first parameter, where 0 is returned
	Reallocate                 // realloc(block, n)
	ReallocateMany             // reallocarray(block, n, size)
	Release                    // free, operator delete: the block is the first parameter
	OperatorNew                // operator new(n), new[](n): Aid is malloc, which is called first
	Print                      // asprintf(into, format, ...): Aid is vasprintf
	PrintChecked               // __asprintf_chk(into, flag, format, ...): Aid is __vasprintf_chk
	Line                       // getline, getdelim(into, ...): *first parameter may be another block
	PrintList                  // vasprintf, __vasprintf_chk(into, ...): *first parameter, where >= 0 is returned
	kinds
)

var kindNames = [kinds]string{
	"count", "allocate", "duplicate", "allocate into", "reallocate", "reallocate many", "release", "operator new",
	"print", "print checked", "line", "print list",
}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Memory reports a kind that counts bytes.
func (k Kind) Memory() bool { return k != Count }

// Moves reports a kind of functions that allocate through their own library's import
// slots: where these are intercepted, the bytes are counted there as well, and are to
// be taken off. A sample of the block becomes the caller's.
func (k Kind) Moves() bool {
	switch k {
	case Duplicate, Print, PrintChecked, PrintList, Line:
		return true
	}
	return false
}

// aided reports a kind that needs a second function.
func (k Kind) aided() bool { return k == OperatorNew || k == Print || k == PrintChecked }

// A Function is an imported function as one module calls it: a stub is made for it.
type Function struct {
	Name     string // NAME or NAME@VERSION, at most 4096 bytes
	Importer int    // index of the module
	Target   uint64 // where the stub leads
	Kind     Kind

	// Aid is another function of the same allocator or library, 0 for most kinds:
	// malloc for OperatorNew, vasprintf for Print. For Release it may be free, for an
	// operator delete that does nothing else: Target is then not called.
	Aid uint64
}

// A Slot is an import slot that leads to a stub.
type Slot struct {
	Address  uint64 // of the slot, 8 bytes
	Before   uint64 // what it held
	Function int
	Taken    bool // its value may have been copied: the stub has to stay
}

// Rseq says how threads registered for restartable sequences: all in the same way.
type Rseq struct {
	Offset    int32  // of struct rseq from the thread pointer
	Signature uint32 // before each abort handler
}

// Allocator says how the size of a block is found.
type Allocator struct {
	// Header: blocks are those of glibc's malloc, whose size stands in front of them.
	Header bool
	// UsableSize is the address of malloc_usable_size otherwise.
	UsableSize uint64
}

func (a Allocator) known() bool { return a.Header != (a.UsableSize != 0) }

// Config says where an interceptor is to be, and how it counts.
type Config struct {
	Base       uint64 // process address, of a page
	Processors int    // that may be: counters are kept for each
	Rseq       *Rseq  // nil: atomic additions
	Allocator  Allocator

	// Interval is the mean number of bytes between two sampled blocks, 0 for none.
	Interval uint64
	// Samples is where the table of another interceptor of this program is, to be
	// used instead of an own one: SamplesAddress says it. 0: its own.
	Samples uint64
}

// What one interceptor can hold.
const (
	MaxModules    = 4096
	MaxFunctions  = 1 << 18
	MaxSlots      = 1 << 19
	MaxProcessors = 8192 // what Linux can have on x86-64
	maxName       = 255
	maxBuildID    = 128
	maxFunction   = 4096
)

// addressEnd is where user addresses end: 47 bits.
const addressEnd = 1 << 47

// An Interceptor is a value that never changes.
type Interceptor struct {
	config    Config
	modules   []Module
	functions []Function
	slots     []Slot

	layout layout
	stubs  []span // of the code of each function's stub
	code   []byte
	table  []byte
}

type span struct{ start, size uint64 } // process address, bytes

// New makes an interceptor. Errors wrap ErrInvalid or ErrFull.
func New(c Config, modules []Module, functions []Function, slots []Slot) (*Interceptor, error) {
	i := &Interceptor{config: c, modules: slices.Clone(modules), functions: slices.Clone(functions), slots: slices.Clone(slots)}
	if c.Rseq != nil {
		rseq := *c.Rseq
		i.config.Rseq = &rseq
	}
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("make interceptor at %#x: %w", c.Base, err)
	}
	if err := i.build(); err != nil {
		return nil, fmt.Errorf("make interceptor at %#x: %w", c.Base, err)
	}
	return i, nil
}

func (i *Interceptor) check() error {
	c := &i.config
	switch {
	case len(i.modules) > MaxModules || len(i.functions) > MaxFunctions || len(i.slots) > MaxSlots || c.Processors > MaxProcessors:
		return fmt.Errorf("%d modules, %d functions, %d slots, %d processors: %w",
			len(i.modules), len(i.functions), len(i.slots), c.Processors, ErrFull)
	case len(i.functions) == 0 || c.Processors < 1:
		return fmt.Errorf("no function, or no processor: %w", ErrInvalid)
	case c.Base%page != 0 || c.Base == 0 || c.Base >= addressEnd:
		return fmt.Errorf("base: %w", ErrInvalid)
	case c.Samples >= addressEnd || c.Samples%page != 0 || c.Samples != 0 && c.Interval == 0:
		return fmt.Errorf("table of samples at %#x: %w", c.Samples, ErrInvalid)
	case c.Interval > 1<<32 || c.Allocator.UsableSize >= addressEnd:
		return fmt.Errorf("interval of %d bytes, allocator at %#x: %w", c.Interval, c.Allocator.UsableSize, ErrInvalid)
	}
	for n, m := range i.modules {
		if m.Start >= m.End || m.End > addressEnd || !validText(m.Name, maxName) || !validText(m.BuildID, maxBuildID) {
			return fmt.Errorf("module %d: %w", n, ErrInvalid)
		}
	}
	for n, f := range i.functions {
		switch {
		case f.Importer < 0 || f.Importer >= len(i.modules), f.Target == 0 || f.Target >= addressEnd, f.Aid >= addressEnd,
			f.Kind >= kinds, f.Kind.Memory() && !c.Allocator.known(), f.Kind.aided() != (f.Aid != 0) && f.Kind != Release,
			!validText(f.Name, maxFunction):
			return fmt.Errorf("function %d (%s): %w", n, f.Name, ErrInvalid)
		}
	}
	for n, s := range i.slots {
		if s.Function < 0 || s.Function >= len(i.functions) || s.Address == 0 || s.Address%wordSize != 0 ||
			s.Address >= addressEnd || s.Before >= addressEnd {
			return fmt.Errorf("slot %d at %#x: %w", n, s.Address, ErrInvalid)
		}
	}
	return nil
}

// Config returns what the interceptor was made by.
func (i *Interceptor) Config() Config { return i.config }

// Modules returns those that import, in the order in which they were given.
func (i *Interceptor) Modules() []Module { return slices.Clone(i.modules) }

// Functions returns all that are counted, likewise.
func (i *Interceptor) Functions() []Function { return slices.Clone(i.functions) }

// Function returns the one of a number.
func (i *Interceptor) Function(n int) Function { return i.functions[n] }

// Slots returns all slots that lead, or are to lead, to stubs, likewise.
func (i *Interceptor) Slots() []Slot { return slices.Clone(i.slots) }

// Stub returns what a slot of a function is to hold.
func (i *Interceptor) Stub(function int) uint64 { return i.stubs[function].start }

// Find returns the function whose stub an address lies in.
func (i *Interceptor) Find(address uint64) (function int, ok bool) {
	n, found := slices.BinarySearchFunc(i.stubs, address, func(s span, at uint64) int {
		switch {
		case s.start+s.size <= at:
			return -1
		case s.start > at:
			return 1
		}
		return 0
	})
	return n, found
}
