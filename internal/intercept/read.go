package intercept

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
)

// Read reads the interceptor that a process has at base. Whether its parts are
// mapped as Parts says is for the caller to look at. Addresses are offsets of r.
// Errors wrap ErrCorrupt or ErrVersion where what is there is none of this format,
// otherwise that of r.
func Read(r io.ReaderAt, base uint64) (*Interceptor, error) {
	i, err := read(r, base)
	if err != nil {
		return nil, fmt.Errorf("read interceptor at %#x: %w", base, err)
	}
	return i, nil
}

func readAt(r io.ReaderAt, address, n uint64) ([]byte, error) {
	b := make([]byte, n)
	if got, err := r.ReadAt(b, int64(address)); uint64(got) < n {
		return nil, fmt.Errorf("read %d bytes at %#x: %w", n, address, err)
	}
	return b, nil
}

// maxTable bounds what is read on the word of a header.
const maxTable = 256 << 20

func read(r io.ReaderAt, base uint64) (*Interceptor, error) {
	if base >= addressEnd {
		return nil, fmt.Errorf("beyond all addresses: %w", ErrCorrupt)
	}
	head, err := readAt(r, base, headerSize)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(head[:8], magic[:]) {
		return nil, fmt.Errorf("header begins with % x: %w", head[:8], ErrCorrupt)
	}
	if version := le.Uint32(head[8:]); version != Version {
		return nil, fmt.Errorf("version %d: %w", version, ErrVersion)
	}
	c := readConfig(head)
	size, code, words := le.Uint64(head[24:]), le.Uint64(head[96:]), le.Uint64(head[104:])
	if le.Uint32(head[headerSum:]) != crc32.Checksum(head[:headerSum], crc) || c.Base != base || size > maxSpan ||
		code < headerSize || words < code || words > size || words > maxTable {
		return nil, fmt.Errorf("header: %w", ErrCorrupt)
	}
	image, err := readAt(r, base, words)
	if err != nil {
		return nil, err
	}
	i, err := parse(c, image[:code])
	if err != nil {
		return nil, err
	}
	// All that follows from the records has to be there as it follows: the layout,
	// the table with its checksum, and the code.
	l := &i.layout
	if l.end != size || l.code != code || l.words != words || !begins(image[:code], i.table) || !begins(image[code:], i.code) {
		return nil, fmt.Errorf("table or code: %w", ErrCorrupt)
	}
	return i, nil
}

// begins reports an image that is some bytes and zeros.
func begins(image, b []byte) bool {
	return len(image) >= len(b) && bytes.Equal(image[:len(b)], b) && len(bytes.TrimLeft(image[len(b):], "\x00")) == 0
}

// parse makes an interceptor of a table's records.
func parse(c Config, table []byte) (*Interceptor, error) {
	counts := [4]uint64{}
	for n := range counts {
		counts[n] = uint64(le.Uint32(table[32+4*n:]))
	}
	modules, functions, slots, names := counts[0], counts[1], counts[2], counts[3]
	at := uint64(headerSize)
	var failed error
	take := func(n, size uint64) []byte {
		if failed != nil || n*size > uint64(len(table))-at {
			failed = fmt.Errorf("%d records behind %#x: %w", n, at, ErrCorrupt)
			return nil
		}
		b := table[at : at+n*size]
		at = align(at+n*size, wordSize)
		at = min(at, uint64(len(table)))
		return b
	}
	moduleRecords, functionRecords := take(modules, moduleSize), take(functions, functionSize)
	slotRecords, text := take(slots, slotSize), take(names, 1)
	if failed != nil {
		return nil, failed
	}
	var m []Module
	for b := moduleRecords; len(b) > 0; b = b[moduleSize:] {
		m = append(m, readModule(b))
	}
	var f []Function
	for b := functionRecords; len(b) > 0; b = b[functionSize:] {
		function, ok := readFunction(b, text)
		if !ok {
			return nil, fmt.Errorf("function %d: %w", len(f), ErrCorrupt)
		}
		f = append(f, function)
	}
	var s []Slot
	for b := slotRecords; len(b) > 0; b = b[slotSize:] {
		s = append(s, readSlot(b))
	}
	i, err := New(c, m, f, s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return i, nil
}
