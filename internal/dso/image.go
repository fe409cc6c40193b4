package dso

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"sort"
	"strings"
)

var le = binary.LittleEndian

// An image reads an object's bytes by object address, from a file or from the
// memory of a process.
type image struct {
	source io.ReaderAt
	size   uint64 // of the file
	memory bool
	bias   uint64    // memory: process address minus object address
	loads  []Segment // PT_LOAD, ascending, not overlapping

	// The first bytes of the source while the object is being opened: headers,
	// notes and the interpreter's name usually stand there. Dropped afterwards.
	head   []byte
	headAt uint64
}

// readSource fills p from a file offset or a process address.
func (im *image) readSource(p []byte, at uint64, what string) error {
	n := uint64(len(p))
	if at >= im.headAt && at-im.headAt <= uint64(len(im.head)) && n <= uint64(len(im.head))-(at-im.headAt) {
		copy(p, im.head[at-im.headAt:])
		return nil
	}
	if !im.memory && (at > im.size || n > im.size-at) {
		return readError(what, at, ErrTruncated)
	}
	if at > math.MaxInt64 || n > math.MaxInt64-at {
		return malformed(what, at, "address beyond user space")
	}
	got, err := im.source.ReadAt(p, int64(at))
	if got == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = ErrTruncated
	}
	return readError(what, at+uint64(got), err)
}

// readTable returns n bytes at a file offset or process address. A file bounds
// what is allocated; memory is read in steps, as only the reading itself tells
// whether it exists.
func (im *image) readTable(at, n uint64, what string) ([]byte, error) {
	if n > im.limit() {
		return nil, readError(what, at, ErrLimit)
	}
	if !im.memory && (at > im.size || n > im.size-at) {
		return nil, readError(what, at, ErrTruncated)
	}
	const step = 1 << 20
	if !im.memory || n <= step {
		p := make([]byte, n)
		return p, im.readSource(p, at, what)
	}
	var p []byte
	for have := uint64(0); have < n; {
		more := min(n-have, max(step, have))
		grown := make([]byte, have+more)
		copy(grown, p)
		if err := im.readSource(grown[have:], at+have, what); err != nil {
			return nil, err
		}
		p, have = grown, have+more
	}
	return p, nil
}

// readString is readTable for a text, which is held once.
func (im *image) readString(at, n uint64, what string) (string, error) {
	if n > im.limit() {
		return "", readError(what, at, ErrLimit)
	}
	if !im.memory && (at > im.size || n > im.size-at) {
		return "", readError(what, at, ErrTruncated)
	}
	var text strings.Builder
	if !im.memory {
		text.Grow(int(n))
	}
	var buf [16 << 10]byte
	for done := uint64(0); done < n; {
		p := buf[:min(n-done, uint64(len(buf)))]
		if err := im.readSource(p, at+done, what); err != nil {
			return "", err
		}
		text.Write(p)
		done += uint64(len(p))
	}
	return text.String(), nil
}

// limit is the most bytes of one table.
func (im *image) limit() uint64 {
	if im.memory {
		return maxLoaded
	}
	return MaxTable
}

// load returns the PT_LOAD that holds an object address, or nil.
func (im *image) load(vaddr uint64) *Segment {
	i := sort.Search(len(im.loads), func(i int) bool { return im.loads[i].Vaddr > vaddr })
	if i == 0 {
		return nil
	}
	if s := &im.loads[i-1]; vaddr-s.Vaddr < s.Memsz {
		return s
	}
	return nil
}

// span is the object addresses from the first loaded byte to behind the last.
func (im *image) span() (start, end uint64) {
	last := im.loads[len(im.loads)-1]
	return im.loads[0].Vaddr, last.Vaddr + last.Memsz
}

// position translates an object address inside a segment's file bytes to where
// the source has it.
func (im *image) position(s *Segment, vaddr uint64) uint64 {
	if im.memory {
		return im.bias + vaddr
	}
	return s.Offset + (vaddr - s.Vaddr)
}

// backed returns how many bytes from an object address on come from the file:
// up to p_filesz of the segment that holds it, 0 beyond.
func (im *image) backed(vaddr uint64) uint64 {
	s := im.load(vaddr)
	if s == nil || vaddr-s.Vaddr >= s.Filesz {
		return 0
	}
	return s.Filesz - (vaddr - s.Vaddr)
}

// table returns n bytes at an object address, all of which must come from the
// file: what the loader and the unwinder read is never in .bss.
func (im *image) table(vaddr, n uint64, what string) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	at, err := im.place(vaddr, n, what)
	if err != nil {
		return nil, err
	}
	return im.readTable(at, n, what)
}

// place returns where the source has n bytes at an object address, all of which
// come from the file.
func (im *image) place(vaddr, n uint64, what string) (uint64, error) {
	s := im.load(vaddr)
	if s == nil {
		return 0, malformed(what, vaddr, "not in a loaded segment")
	}
	if left := im.backed(vaddr); n > left {
		return 0, malformed(what, vaddr, "%d bytes, its segment has %d more", n, left)
	}
	return im.position(s, vaddr), nil
}

// read fills p with the bytes at an object address: the file's up to p_filesz,
// zeros up to p_memsz. In memory form all are the process's.
func (im *image) read(p []byte, vaddr uint64, what string) error {
	if len(p) == 0 {
		return nil
	}
	s := im.load(vaddr)
	if s == nil {
		return malformed(what, vaddr, "not in a loaded segment")
	}
	in := vaddr - s.Vaddr
	if uint64(len(p)) > s.Memsz-in {
		return malformed(what, vaddr, "%d bytes, its segment has %d more", len(p), s.Memsz-in)
	}
	if im.memory {
		return im.readSource(p, im.position(s, vaddr), what)
	}
	fromFile := uint64(0)
	if in < s.Filesz {
		fromFile = min(s.Filesz-in, uint64(len(p)))
	}
	clear(p[fromFile:])
	if fromFile == 0 {
		return nil
	}
	return im.readSource(p[:fromFile], im.position(s, vaddr), what)
}

// object translates a pointer of .dynamic to an object address: a loader may
// have added the bias to it, in memory.
func (im *image) object(pointer uint64) uint64 {
	if !im.memory || im.bias == 0 {
		return pointer
	}
	start, end := im.span()
	if pointer-im.bias >= start && pointer-im.bias < end && pointer >= im.bias {
		return pointer - im.bias
	}
	return pointer
}

// A window reads small records that lie close together with few system calls.
// It belongs to one goroutine.
type window struct {
	image *image
	what  string
	vaddr uint64
	bytes []byte
	buf   [4096]byte
}

// at returns n bytes, at most a window's, valid until the next call.
func (w *window) at(vaddr uint64, n int) ([]byte, error) {
	if vaddr >= w.vaddr && vaddr-w.vaddr <= uint64(len(w.bytes)) && uint64(n) <= uint64(len(w.bytes))-(vaddr-w.vaddr) {
		return w.bytes[vaddr-w.vaddr:][:n], nil
	}
	left := w.image.backed(vaddr)
	if uint64(n) > left {
		return nil, malformed(w.what, vaddr, "not in a loaded segment's file bytes")
	}
	have := max(uint64(n), min(left, uint64(len(w.buf))))
	w.vaddr, w.bytes = vaddr, nil
	if err := w.image.read(w.buf[:have], vaddr, w.what); err != nil {
		return nil, err
	}
	w.bytes = w.buf[:have]
	return w.bytes[:n], nil
}
