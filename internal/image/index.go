package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/fxamacker/cbor/v2"
	"github.com/zeebo/xxh3"
)

// An index is all of an image but its pages. Its file is
//
//	 0  magic    8 bytes "vOSimage"
//	 8  version  uint32
//	12  zero     uint32
//	16  length   uint64  of what follows the head
//	24  sum      uint64  xxh3 of it
//	32  CBOR
//
// with numbers in little-endian order.
type index struct {
	Image      *Image  `cbor:"image"`
	ParentPath string  `cbor:"parent_path,omitempty"` // of the parent's directory, from that which this one is in
	Pages      uint64  `cbor:"pages"`                 // bytes of them, uncompressed
	Stored     uint64  `cbor:"stored"`                // bytes of them in the page file, before encryption
	Blocks     []block `cbor:"blocks"`                // by ascending Logical; they cover Pages
}

const (
	magic    = "vOSimage"
	headSize = 32

	// Bounds of what a hostile index can make its reader keep in memory.
	maxIndex    = 256 << 20
	maxElements = 4 << 20
	maxDepth    = 16
)

// ErrNoImage is wrapped by errors of files that are no images, damaged, or of a
// version that this vos does not know.
var ErrNoImage = errors.New("not an image that can be read")

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortNone, Time: cbor.TimeRFC3339Nano}.EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       1 << 10,
		MaxNestedLevels:   maxDepth,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		UTF8:              cbor.UTF8DecodeInvalid, // paths and arguments are any bytes
	}.DecMode())
)

func must[T any](mode T, err error) T {
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
}

func (e index) encode() ([]byte, error) {
	payload, err := encoding.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	if len(payload) > maxIndex {
		return nil, fmt.Errorf("encode index: %d bytes are more than an image may have", len(payload))
	}
	head := make([]byte, headSize, headSize+len(payload))
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[8:], Version)
	binary.LittleEndian.PutUint64(head[16:], uint64(len(payload)))
	binary.LittleEndian.PutUint64(head[24:], xxh3.Hash(payload))
	return append(head, payload...), nil
}

// decodeIndex reads an index whose bytes are whole, and does not trust its values.
func decodeIndex(r io.Reader) (*index, error) {
	head := make([]byte, headSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, damaged("its index ends within its head", err)
	}
	if !bytes.Equal(head[:8], []byte(magic)) {
		return nil, fmt.Errorf("%w: its index begins otherwise", ErrNoImage)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != Version {
		return nil, fmt.Errorf("%w: it is of version %d, and this vos reads version %d: use the vos that wrote it", ErrNoImage, v, Version)
	}
	length, zero := binary.LittleEndian.Uint64(head[16:]), binary.LittleEndian.Uint32(head[12:])
	if length > maxIndex || zero != 0 {
		return nil, fmt.Errorf("%w: its index would have %d bytes", ErrNoImage, length)
	}
	var payload bytes.Buffer // grows with what is there, not with what is promised
	if n, err := io.CopyN(&payload, r, int64(length)); err != nil {
		return nil, damaged(fmt.Sprintf("its index ends after %d of %d bytes", n, length), err)
	}
	if n, _ := io.ReadFull(r, head[:1]); n > 0 {
		return nil, fmt.Errorf("%w: something follows its index", ErrNoImage)
	}
	if xxh3.Hash(payload.Bytes()) != binary.LittleEndian.Uint64(head[24:]) {
		return nil, fmt.Errorf("%w: the checksum of its index is wrong: it was damaged", ErrNoImage)
	}
	var e index
	if err := decoding.Wellformed(payload.Bytes()); err != nil {
		return nil, damaged("its index can't be decoded", err)
	}
	if err := affordable(payload.Bytes(), reflect.TypeFor[index]()); err != nil {
		return nil, err
	}
	if err := decoding.Unmarshal(payload.Bytes(), &e); err != nil {
		return nil, damaged("its index can't be decoded", err)
	}
	if e.Image == nil {
		return nil, fmt.Errorf("%w: its index holds none", ErrNoImage)
	}
	return &e, nil
}

// damaged wraps what a reader met; the end of a file is part of the words.
func damaged(what string, err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s", ErrNoImage, what)
	}
	return fmt.Errorf("%w: %s: %w", ErrNoImage, what, err)
}
