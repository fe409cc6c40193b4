package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/zeebo/xxh3"
)

// list returns a map of one key, whose value is a list of n elements of one byte each.
func list(key string, n int, element byte) []byte {
	b := append([]byte{0xa1, 0x60 | byte(len(key))}, key...)
	b = binary.BigEndian.AppendUint32(append(b, 0x9a), uint32(n))
	return append(b, bytes.Repeat([]byte{element}, n)...)
}

// within returns a map of one key with a value.
func within(key string, value []byte) []byte {
	return append(append([]byte{0xa1, 0x60 | byte(len(key))}, key...), value...)
}

// TestSmallThatIsLarge decodes lists whose elements are a byte in the index and many
// in memory.
func TestSmallThatIsLarge(t *testing.T) {
	const many = 4 << 20
	for what, payload := range map[string][]byte{
		"processes": within("image", list("processes", many, 0xa0)),
		"files":     within("image", list("files", many, 0xa0)),
		"nils":      within("image", list("objects", many, 0xf6)),
		"no maps":   within("image", list("files", many, 0x80)),
		"blocks":    list("blocks", many, 0x80),
		"threads":   within("image", within("processes", append([]byte{0x81}, list("threads", many, 0xa0)...))),
	} {
		if err := decoding.Wellformed(payload); err != nil {
			t.Fatal(what, err)
		}
		head := make([]byte, headSize)
		copy(head, magic)
		binary.LittleEndian.PutUint32(head[8:], Version)
		binary.LittleEndian.PutUint64(head[16:], uint64(len(payload)))
		binary.LittleEndian.PutUint64(head[24:], xxh3.Hash(payload))
		if _, err := decodeIndex(bytes.NewReader(append(head, payload...))); !errors.Is(err, errBudget) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBudget adds up what values take: the walk sees what the decoder does.
func TestBudget(t *testing.T) {
	payload, err := encoding.Marshal(index{Image: small(Run{Start: 0x10000, Count: 1}), Pages: PageSize, Blocks: make([]block, 100)})
	if err != nil {
		t.Fatal(err)
	}
	b := budget{rest: payload, left: 1 << 20}
	if err := b.value(reflect.TypeFor[index]()); err != nil || len(b.rest) != 0 {
		t.Fatalf("%d bytes are left, %v", len(b.rest), err)
	}
	least := uint64(reflect.TypeFor[Image]().Size() + reflect.TypeFor[Process]().Size() + reflect.TypeFor[Thread]().Size() +
		reflect.TypeFor[Mapping]().Size() + reflect.TypeFor[File]().Size() + reflect.TypeFor[Event]().Size() +
		100*reflect.TypeFor[block]().Size() + 2696 + siginfoSize)
	if spent := 1<<20 - b.left; spent < least || spent > 2*least {
		t.Errorf("%d bytes in memory, at least %d were expected", spent, least)
	}
}
