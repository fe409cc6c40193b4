package image

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// Bounds of the memory that decoding an index takes. An element of a list may be one
// byte of CBOR and more than a thousand in memory; those of images that were written by
// a Writer are at most some ten times as large.
const (
	maxMemory = 1 << 30
	maxGrowth = 32 // times the length of the index
)

// A budget walks well-formed CBOR (definite lengths, no tags) beside the type that it
// is going to be decoded to, and adds up what the decoder will allocate.
type budget struct {
	rest []byte
	left uint64
}

var errBudget = fmt.Errorf("%w: its index would need too much memory", ErrNoImage)

// affordable reports by an error that decoding a payload to a t takes more memory than
// an image's index may. The payload must be well-formed.
func affordable(payload []byte, t reflect.Type) error {
	b := budget{rest: payload, left: min(maxMemory, 1<<20+maxGrowth*uint64(len(payload)))}
	return b.value(t)
}

func (b *budget) spend(count, size uint64) error {
	if size > 0 && count > b.left/size {
		return errBudget
	}
	b.left -= count * size
	return nil
}

// Major types of CBOR (RFC 8949, section 3.1).
const (
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborMap   = 5
)

// head takes the head of the next item: its major type and its argument.
func (b *budget) head() (major byte, n uint64) {
	first := b.rest[0]
	major, n = first>>5, uint64(first&0x1f)
	b.rest = b.rest[1:]
	switch n {
	case 24:
		n, b.rest = uint64(b.rest[0]), b.rest[1:]
	case 25:
		n, b.rest = uint64(binary.BigEndian.Uint16(b.rest)), b.rest[2:]
	case 26:
		n, b.rest = uint64(binary.BigEndian.Uint32(b.rest)), b.rest[4:]
	case 27:
		n, b.rest = binary.BigEndian.Uint64(b.rest), b.rest[8:]
	}
	return major, n
}

// value takes an item that is decoded to a t. Where t can't hold it, nil, the decoder
// passes over it.
func (b *budget) value(t reflect.Type) error {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
		if err := b.spend(1, uint64(t.Size())); err != nil {
			return err
		}
	}
	switch major, n := b.head(); major {
	case cborBytes, cborText:
		b.rest = b.rest[n:]
		return b.spend(n, 1)
	case cborArray:
		return b.array(t, n)
	case cborMap:
		known := fieldsOf(t)
		for range n {
			key := b.key()
			if err := b.value(known.named[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *budget) array(t reflect.Type, n uint64) error {
	var element reflect.Type
	var fields []reflect.Type
	if t != nil {
		switch t.Kind() {
		case reflect.Slice:
			element = t.Elem()
			if err := b.spend(n, uint64(element.Size())); err != nil {
				return err
			}
		case reflect.Array:
			element = t.Elem()
		case reflect.Struct:
			fields = fieldsOf(t).inOrder
		}
	}
	for i := range n {
		e := element
		if i < uint64(len(fields)) {
			e = fields[i]
		}
		if err := b.value(e); err != nil {
			return err
		}
	}
	return nil
}

// key takes a key of a map: text, of which all of ours are, or anything.
func (b *budget) key() string {
	rest := b.rest
	major, n := b.head()
	if major == cborText {
		key := string(b.rest[:n])
		b.rest = b.rest[n:]
		return key
	}
	b.rest = rest
	_ = b.value(nil) // it is passed over, and takes nothing
	return ""
}

// fields are those of a struct as the decoder finds them.
type fields struct {
	named   map[string]reflect.Type
	inOrder []reflect.Type
}

var (
	noFields   fields
	knownTypes sync.Map // reflect.Type → fields
)

func fieldsOf(t reflect.Type) fields {
	if t == nil || t.Kind() != reflect.Struct {
		return noFields
	}
	if known, ok := knownTypes.Load(t); ok {
		return known.(fields)
	}
	f := fields{named: map[string]reflect.Type{}}
	for _, field := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(field.Tag.Get("cbor"), ",")
		switch {
		case !field.IsExported() || field.Anonymous:
		case name != "":
			f.named[name] = field.Type
		default:
			f.named[field.Name] = field.Type
			f.inOrder = append(f.inOrder, field.Type)
		}
	}
	knownTypes.Store(t, f)
	return f
}
