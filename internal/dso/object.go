package dso

import (
	"debug/elf"
	"fmt"
	"io"
	"sync"
)

// PageSize is the page of x86-64.
const PageSize = 4096

// An Object is one ELF object. Its fields are set when it is opened and only
// read afterwards. All addresses are object addresses (p_vaddr).
type Object struct {
	Type     elf.Type // ET_EXEC or ET_DYN
	Machine  elf.Machine
	OSABI    elf.OSABI
	Entry    uint64
	Segments []Segment // all program headers, in their order

	Dynamic []Dyn    // .dynamic without DT_NULL, in its order; pointers are object addresses
	Soname  string   // DT_SONAME, "" where there is none
	Needed  []string // DT_NEEDED, in order
	Rpath   string   // DT_RPATH
	Runpath string   // DT_RUNPATH
	Flags   elf.DynFlag
	Flags1  elf.DynFlag1

	Interp     string     // PT_INTERP, "" where there is none
	TLS        *Segment   // PT_TLS, nil where there is none
	RELRO      Range      // PT_GNU_RELRO
	Stack      *Segment   // PT_GNU_STACK, nil where there is none
	BuildID    string     // lower-case hexadecimal, "" where there is none
	Notes      []Note     // of all PT_NOTE, in order
	Properties Properties // of the GNU property note
	ABITag     ABITag     // of the GNU ABI tag note

	image image
	ehdr  fileHeader

	sections  lazy[[]Section]
	placed    lazy[[]Section] // by address, or derived
	dynstr    lazy[stringTable]
	versions  lazy[*versionTable]
	dynsym    lazy[*dynamicSymbols]
	symtab    lazy[*SymbolTable]
	functions lazy[[]function]
	frames    lazy[frames]
}

// A Range is Size bytes from an object address on.
type Range struct {
	Addr uint64
	Size uint64
}

// Contains tells whether an object address lies in the range.
func (r Range) Contains(vaddr uint64) bool { return vaddr >= r.Addr && vaddr-r.Addr < r.Size }

// End is the address behind the range.
func (r Range) End() uint64 { return r.Addr + r.Size }

// lazy is a part of an object that is read when it is first asked for.
type lazy[T any] struct {
	once  sync.Once
	value T
	err   error
}

func (l *lazy[T]) get(read func() (T, error)) (T, error) {
	l.once.Do(func() { l.value, l.err = read() })
	return l.value, l.err
}

// ReadFile opens an object's file of size bytes. r must stay usable as long as
// the Object is.
//
// A file that holds only the debugging information of an object (objcopy
// --only-keep-debug) opens too: it has segments and .symtab, but no Dynamic.
//
// Errors wrap ErrNotELF, ErrClass, ErrMachine, ErrType, ErrTruncated,
// ErrMalformed, ErrLimit, or what r returned.
func ReadFile(r io.ReaderAt, size int64) (*Object, error) {
	if size < 0 {
		return nil, fmt.Errorf("read ELF file: %w: size %d", ErrMalformed, size)
	}
	o := &Object{image: image{source: r, size: uint64(size)}}
	if err := o.open(0); err != nil {
		return nil, err
	}
	return o, nil
}

// ReadMemory opens an object that is loaded in a process. mem is addressed by
// process address, as /proc/PID/mem is; headers is the address of its ELF
// header, where the first of its mappings begins. The bias follows from the two.
//
// What a loader maps only: section headers and .symtab are not there.
func ReadMemory(mem io.ReaderAt, headers uint64) (*Object, error) {
	o := &Object{image: image{source: mem, memory: true}}
	if err := o.open(headers); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *Object) open(at uint64) error {
	if err := o.readHeaders(at); err != nil {
		return err
	}
	if err := o.readDynamic(); err != nil {
		return err
	}
	if err := o.readInterp(); err != nil {
		return err
	}
	if err := o.readNotes(); err != nil {
		return err
	}
	o.image.head = nil
	return nil
}

// InMemory tells that the object was opened by ReadMemory.
func (o *Object) InMemory() bool { return o.image.memory }

// Bias is what is added to an object address for the process address; 0 for a
// file.
func (o *Object) Bias() uint64 { return o.image.bias }

// Span returns the object addresses that the object takes when it is loaded,
// rounded to pages.
func (o *Object) Span() (start, end uint64) {
	start, end = o.image.span()
	return pageDown(start), pageUp(end)
}

// SegmentAt returns the PT_LOAD that holds an object address.
func (o *Object) SegmentAt(vaddr uint64) (Segment, bool) {
	if s := o.image.load(vaddr); s != nil {
		return *s, true
	}
	return Segment{}, false
}

// FileOffset returns where the file has the byte of an object address; false
// where the file has none (.bss, outside of the segments).
func (o *Object) FileOffset(vaddr uint64) (offset uint64, ok bool) {
	s := o.image.load(vaddr)
	if s == nil || vaddr-s.Vaddr >= s.Filesz {
		return 0, false
	}
	return s.Offset + (vaddr - s.Vaddr), true
}

// Bytes returns the n bytes at an object address, all within one segment: of a
// file, what a freshly loaded image has before relocation (zeros behind
// p_filesz); of memory, what the process has now. n is at most MaxTable.
func (o *Object) Bytes(vaddr, n uint64) ([]byte, error) {
	if n > MaxTable {
		return nil, readError("bytes", vaddr, ErrLimit)
	}
	// .bss needs no file behind it, so only the segment bounds the allocation.
	if s := o.image.load(vaddr); s == nil || n > s.Memsz-(vaddr-s.Vaddr) {
		return nil, malformed("bytes", vaddr, "%d bytes are not in one segment", n)
	}
	p := make([]byte, n)
	return p, o.ReadBytes(p, vaddr)
}

// ReadBytes fills p as Bytes does.
func (o *Object) ReadBytes(p []byte, vaddr uint64) error {
	return o.image.read(p, vaddr, "bytes")
}

// PIE tells that the object is a position-independent executable. Linkers
// before DF_1_PIE (binutils 2.26) are recognised by DT_DEBUG, which libraries
// do not have even where they have an interpreter, as libc.so.6 does.
func (o *Object) PIE() bool {
	if o.Type != elf.ET_DYN {
		return false
	}
	_, debug := o.Dyn(elf.DT_DEBUG)
	return o.Flags1&elf.DF_1_PIE != 0 || o.Interp != "" && debug
}

// Static tells that the object is an executable that needs no loader.
func (o *Object) Static() bool {
	return o.Interp == "" && (o.Type == elf.ET_EXEC || o.PIE())
}

// BindNow tells that the loader binds all imports before the object's code runs
// (DT_BIND_NOW, DF_BIND_NOW, DF_1_NOW).
func (o *Object) BindNow() bool {
	_, tag := o.Dyn(elf.DT_BIND_NOW)
	return tag || o.Flags&elf.DF_BIND_NOW != 0 || o.Flags1&elf.DF_1_NOW != 0
}

// NoDelete tells that dlclose does not unload the object.
func (o *Object) NoDelete() bool { return o.Flags1&elf.DF_1_NODELETE != 0 }

// TextRel tells that the loader relocates segments that are not writable.
func (o *Object) TextRel() bool {
	_, tag := o.Dyn(elf.DT_TEXTREL)
	return tag || o.Flags&elf.DF_TEXTREL != 0
}

// StaticTLS tells that the object's code expects its thread-local storage at a
// fixed distance from the thread pointer (DF_STATIC_TLS).
func (o *Object) StaticTLS() bool { return o.Flags&elf.DF_STATIC_TLS != 0 }

// ExecutableStack tells that the object wants an executable stack: it says so,
// or says nothing, which on x86-64 means the same to glibc.
func (o *Object) ExecutableStack() bool {
	return o.Stack == nil || o.Stack.Flags&elf.PF_X != 0
}

func pageDown(a uint64) uint64 { return a &^ (PageSize - 1) }

// pageUp does not wrap for the addresses that readSegments lets in.
func pageUp(a uint64) uint64 { return (a + PageSize - 1) &^ (PageSize - 1) }
