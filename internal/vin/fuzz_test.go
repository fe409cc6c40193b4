package vin

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/virtualizing-os/vos/internal/x86"
)

// FuzzRead writes hostile bytes over parts of a vIN, with right checksums or
// without: it is an error, or a vIN that reads back as itself.
func FuzzRead(f *testing.F) {
	f.Add(uint32(headerSize), []byte{1, 2, 3}, false)
	f.Add(uint32(16), []byte{0, 0, 0, 0, 0, 0x7f}, true)
	f.Add(uint32(40), []byte{0xff, 0xff, 1, 0, 0xff, 0xff}, true)
	f.Add(uint32(entriesOffset), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false)
	f.Add(uint32(entryRecords+8), []byte{2, 0, 0, 0, 19}, true)
	f.Add(uint32(mergeRecords+8), []byte{2, 0, 0, 0, 0xff, 0xff}, true)
	f.Add(uint32(generationRecords+headerSize), []byte{9}, true)
	good := image(full(f))
	layout := full(f).layout
	f.Fuzz(func(t *testing.T, at uint32, hostile []byte, right bool) {
		b := bytes.Clone(good)
		copy(b[int(at)%len(b):], hostile)
		if right {
			seal(b[:headerSize])
			for _, r := range []struct{ offset, size, n uint64 }{
				{generationRecords, generationSize, 4}, {mergeRecords, mergeSize, 4},
				{entryRecords, entrySize, 10}, {layout.slotRecords, slotSize, 4},
			} {
				for i := range r.n {
					seal(b[r.offset+i*r.size:][:r.size])
				}
			}
		}
		v, err := readImage(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		again, err := readImage(image(v))
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Fatalf("doesn't read back: %v", err)
		}
	})
}

// FuzzReadAnything reads bytes that were never a vIN.
func FuzzReadAnything(f *testing.F) {
	f.Add(image(full(f))[:2*page], uint64(entryRecords))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		if _, err := Read(memory{testBase, b}, testBase, size); err == nil && size != uint64(len(b)) {
			t.Fatalf("%d bytes are a vIN of %d", len(b), size)
		}
	})
}

// FuzzAddVeneer takes any code: what is moved decodes to as many instructions
// that refer to the same addresses, and a jump back.
func FuzzAddVeneer(f *testing.F) {
	for _, code := range [][]byte{
		prologue,
		{0x48, 0x83, 0xec, 8, 0x48, 0x8d, 5, 0, 1, 0, 0},
		{0x74, 0x20, 0x75, 0x20, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0},
		{0xf3, 0x0f, 0x1e, 0xfa, 0xeb, 0x10},
		{0xf2, 0x0f, 0x84, 0, 1, 0, 0},
	} {
		f.Add(code)
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		v := empty(t, 3, 0)
		const function = testStart + 0x800
		i, err := v.AddVeneer(function, code)
		if err != nil {
			if !errors.Is(err, ErrCannotMove) && !errors.Is(err, ErrRange) {
				t.Fatal(err)
			}
			return
		}
		e := v.Entries()[i]
		n := len(e.Original)
		if n < VeneerSize || n > maxOverwritten || !bytes.Equal(e.Original, code[:n]) {
			t.Fatalf("% x overwritten of % x", e.Original, code)
		}
		from, to := uint64(function), e.Trampoline
		moved := v.Code()[to-testBase-v.layout.code:][:trampolineSize]
		ended := false
		for len(e.Original) > 0 {
			was, now := decode(t, e.Original), decode(t, moved)
			wasTarget, _ := was.Target(from)
			nowTarget, _ := now.Target(to)
			if was.Flow != now.Flow || wasTarget != nowTarget || was.Flow == x86.JumpCond && was.Opcode&0xf != now.Opcode&0xf {
				t.Fatalf("% x became % x", code[:n], moved)
			}
			ended = was.IsTerminator()
			e.Original, moved = e.Original[was.Len:], moved[now.Len:]
			from, to = from+uint64(was.Len), to+uint64(now.Len)
		}
		if ended {
			return
		}
		back := decode(t, moved)
		if target, _ := back.Target(to); back.Flow != x86.Jump || target != function+uint64(n) {
			t.Fatalf("the way back leads to %#x", target)
		}
	})
}

func decode(t *testing.T, code []byte) x86.Inst {
	t.Helper()
	inst, err := x86.Decode(code)
	if err != nil {
		t.Fatal(err)
	}
	return inst
}
