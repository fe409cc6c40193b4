package handle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"
)

// A redirectRecord is what a process itself holds about descriptors that vOS has
// bound to something else: a sealed memfd, which nobody can change, at a descriptor
// of its own. docs/format/redirects.md is its format.
//
// It says nothing about how far vOS came: that is seen by what the descriptors are
// bound to, and by whether Staged is still open, and the record not yet at Record.
type redirectRecord struct {
	ID       [16]byte // of the redirection, the same in all processes
	Begun    time.Time
	New      identity // what the descriptors are bound to
	Was      identity // what they were bound to before
	Old      identity // what is kept
	Back     bool     // what is kept is bound again, and kept no longer
	Kept     int      // the descriptor by which it is kept
	Staged   int      // by which the new description came in, until the end of the redirection
	Previous int      // what the descriptors were bound to right before; Kept if it is that
	Record   int      // where the record ends up
	Number   int      // the descriptor that the user named
	Bound    []int    // all descriptors
	Others   []otherProcess
	From, To string // in words
}

// An identity is that of an open file's inode.
type identity struct{ Device, Inode uint64 }

// An otherProcess is a process that takes part in a redirection, itself included:
// its id in the pid namespace of the vOS that did it, and its start time.
type otherProcess struct {
	PID   int
	Start uint64
}

const (
	recordName    = "vos-redirect"
	recordMagic   = "VOSREDIR"
	recordVersion = 1
	recordFixed   = 8 + 4 + 4 + 16 + 8 + 6*8 + 5*4 + 4

	maxBound      = 256
	maxTogether   = 1024 // processes
	maxRecordText = 4096
	maxRecord     = recordFixed + 2 + 4*maxBound + 2 + 12*maxTogether + 2*(2+maxRecordText) + 4
	maxDescriptor = 1 << 30
)

var recordTable = crc32.MakeTable(crc32.Castagnoli)

// encode returns the record's bytes.
func (r *redirectRecord) encode() ([]byte, error) {
	if len(r.Bound) > maxBound || len(r.Others) > maxTogether {
		return nil, fmt.Errorf("encode a redirection of %d descriptors in %d processes", len(r.Bound), len(r.Others))
	}
	le := binary.LittleEndian
	b := append([]byte(nil), recordMagic...)
	b = le.AppendUint32(b, recordVersion)
	b = le.AppendUint32(b, 0) // the length, see below
	b = append(b, r.ID[:]...)
	b = le.AppendUint64(b, uint64(r.Begun.UnixNano()))
	for _, i := range []identity{r.New, r.Was, r.Old} {
		b = le.AppendUint64(b, i.Device)
		b = le.AppendUint64(b, i.Inode)
	}
	for _, v := range []int{r.Kept, r.Staged, r.Previous, r.Record, r.Number} {
		b = le.AppendUint32(b, uint32(v))
	}
	kind := uint32(0)
	if r.Back {
		kind = 1
	}
	b = le.AppendUint32(b, kind)
	b = le.AppendUint16(b, uint16(len(r.Bound)))
	for _, fd := range r.Bound {
		b = le.AppendUint32(b, uint32(fd))
	}
	b = le.AppendUint16(b, uint16(len(r.Others)))
	for _, o := range r.Others {
		b = le.AppendUint32(b, uint32(o.PID))
		b = le.AppendUint64(b, o.Start)
	}
	for _, text := range []string{r.From, r.To} {
		text = text[:min(len(text), maxRecordText)]
		b = le.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	le.PutUint32(b[12:], uint32(len(b)+4))
	return le.AppendUint32(b, crc32.Checksum(b, recordTable)), nil
}

var errRecord = errors.New("malformed record of a redirection")

// decodeRecord reads a record, as hostile input.
func decodeRecord(b []byte) (*redirectRecord, error) {
	if len(b) < recordFixed+4 || len(b) > maxRecord || string(b[:8]) != recordMagic {
		return nil, errRecord
	}
	le := binary.LittleEndian
	body, sum := b[:len(b)-4], le.Uint32(b[len(b)-4:])
	switch {
	case le.Uint32(b[8:]) != recordVersion:
		return nil, fmt.Errorf("%w: version %d", errRecord, le.Uint32(b[8:]))
	case int(le.Uint32(b[12:])) != len(b) || crc32.Checksum(body, recordTable) != sum:
		return nil, errRecord
	}
	in := recordReader{rest: body[16:]}
	r := &redirectRecord{}
	copy(r.ID[:], in.take(16))
	r.Begun = time.Unix(0, int64(in.word(8)))
	for _, i := range []*identity{&r.New, &r.Was, &r.Old} {
		*i = identity{in.word(8), in.word(8)}
	}
	for _, v := range []*int{&r.Kept, &r.Staged, &r.Previous, &r.Record, &r.Number} {
		*v = in.descriptor()
	}
	kind := in.word(4)
	r.Back = kind == 1
	n := in.word(2)
	if kind > 1 || n == 0 || n > maxBound {
		return nil, errRecord
	}
	for range n {
		r.Bound = append(r.Bound, in.descriptor())
	}
	if n = in.word(2); n > maxTogether {
		return nil, errRecord
	}
	for range n {
		r.Others = append(r.Others, otherProcess{PID: in.descriptor(), Start: in.word(8)})
	}
	for _, text := range []*string{&r.From, &r.To} {
		if n = in.word(2); n > maxRecordText {
			return nil, errRecord
		}
		*text = string(in.take(int(n)))
	}
	if in.bad || len(in.rest) > 0 {
		return nil, errRecord
	}
	return r, nil
}

// A recordReader takes a record apart; what is missing reads as zero, and is bad.
type recordReader struct {
	rest []byte
	bad  bool
}

func (r *recordReader) take(n int) []byte {
	if n > len(r.rest) {
		r.bad = true
		return make([]byte, n)
	}
	part := r.rest[:n]
	r.rest = r.rest[n:]
	return part
}

func (r *recordReader) word(size int) uint64 {
	var word [8]byte
	copy(word[:], r.take(size))
	return binary.LittleEndian.Uint64(word[:])
}

func (r *recordReader) descriptor() int {
	v := r.word(4)
	if v > maxDescriptor {
		r.bad = true
	}
	return int(v)
}

// readRecord reads the record that an open memfd holds.
func readRecord(file *os.File) (*redirectRecord, error) {
	content, err := io.ReadAll(io.NewSectionReader(file, 0, maxRecord+1))
	if err != nil {
		return nil, err
	}
	return decodeRecord(content)
}
