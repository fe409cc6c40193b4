package stage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

const (
	oldBias = 0x7f10_0000_0000
	newBias = 0x7f10_1000_0000
)

// staging reads two builds of a library and stages the second one; every import
// gets the value of its place.
func staging(t *testing.T, oldPath, newPath string) (Input, *Image) {
	t.Helper()
	read := func(path string) ([]byte, *dso.Object) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		o, err := dso.ReadFile(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		return raw, o
	}
	_, old := read(oldPath)
	raw, new := read(newPath)
	m, err := match.Compare(old, new, match.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Refusals) > 0 {
		t.Fatal(m.Refusals)
	}
	in := Input{Match: m, File: raw, OldBias: oldBias, NewBias: newBias,
		Word: func(r dso.Relocation) (uint64, error) { return importAt(r.Offset), nil }}
	im, err := Make(in)
	if err != nil {
		t.Fatal(err)
	}
	return in, im
}

func importAt(offset uint64) uint64 { return 0x1122_0000_0000 + offset }

// Every place that was to be changed leads where it should, all else is as in the
// file.
func TestStagedBuildLeadsToTheOldOne(t *testing.T) {
	for _, source := range []testbed.LibrarySource{testbed.Zlib, testbed.Lz4} {
		t.Run(source.Soname, func(t *testing.T) {
			in, im := staging(t, source.MustOriginal(t).Path, source.MustRebuilt(t, "7").Path)
			o := in.Match.New.Object
			at := func(addr uint64, n uint64) []byte {
				b, err := im.Bytes(o, addr, n)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			changed := map[uint64]bool{} // bytes, by object address
			mark := func(addr uint64, n uint64) {
				for i := range n {
					changed[addr+i] = true
				}
			}
			overridden := map[uint64]bool{}
			for _, w := range in.Match.Words {
				overridden[w.At] = true
				mark(w.At, 8)
				if got := binary.LittleEndian.Uint64(at(w.At, 8)); got != w.Old+oldBias {
					t.Errorf("word at %#x: %#x, not %#x", w.At, got, w.Old+oldBias)
				}
			}
			for _, d := range in.Match.Displacements {
				mark(d.At, 4)
				distance := int32(binary.LittleEndian.Uint32(at(d.At, 4)))
				if got := d.Next + newBias + uint64(int64(distance)); got != d.Old+oldBias {
					t.Errorf("displacement at %#x leads to %#x, not %#x", d.At, got, d.Old+oldBias)
				}
			}
			for r, err := range o.Relocations() {
				if err != nil {
					t.Fatal(err)
				}
				mark(r.Offset, 8)
				want := importAt(r.Offset)
				if r.Type == elf.R_X86_64_RELATIVE {
					want = newBias + uint64(r.Addend)
				}
				if got := binary.LittleEndian.Uint64(at(r.Offset, 8)); !overridden[r.Offset] && got != want {
					t.Errorf("%v at %#x: %#x, not %#x", r.Type, r.Offset, got, want)
				}
			}
			mark(64, uint64(len(o.Segments))*programHeaderBytes) // they follow the ELF header
			for _, s := range o.Segments {
				if s.Type != elf.PT_LOAD {
					continue
				}
				was, err := o.Bytes(s.Vaddr, s.Filesz)
				if err != nil {
					t.Fatal(err)
				}
				for i, b := range at(s.Vaddr, s.Filesz) {
					if b != was[i] && !changed[s.Vaddr+uint64(i)] {
						t.Fatalf("byte at %#x was %#x, and is %#x", s.Vaddr+uint64(i), was[i], b)
					}
				}
			}
		})
	}
}

// The copy is a file that can be read and mapped like the original.
func TestStagedBuildIsAFile(t *testing.T) {
	in, im := staging(t, testbed.Zlib.MustOriginal(t).Path, testbed.Zlib.MustRebuilt(t, "7").Path)
	o, err := dso.ReadFile(bytes.NewReader(im.File), int64(len(im.File)))
	if err == nil {
		err = o.Check()
	}
	if err != nil {
		t.Fatal(err)
	}
	if o.BuildID != in.Match.New.Object.BuildID || o.Soname != testbed.Zlib.Soname {
		t.Errorf("%s %s", o.Soname, o.BuildID)
	}
	end := im.Start
	for _, m := range im.Mappings {
		if m.Start < end || m.Start%page != 0 || m.Size%page != 0 || m.Size == 0 || m.Offset%page != 0 {
			t.Errorf("%+v behind %#x", m, end)
		}
		if !m.Anonymous && m.Offset+m.Size > uint64(len(im.File)+page-1)&^(page-1) {
			t.Errorf("%+v ends behind the file of %#x bytes", m, len(im.File))
		}
		if m.Flags&elf.PF_W != 0 && m.Flags&elf.PF_X != 0 {
			t.Errorf("%+v is writable and executable", m)
		}
		end = m.Start + m.Size
	}
	if end != im.Start+im.Size {
		t.Errorf("mappings end at %#x, the span at %#x", end, im.Start+im.Size)
	}
	for _, s := range o.Segments {
		if s.Type != elf.PT_LOAD || s.Flags&elf.PF_W == 0 {
			continue
		}
		tail := im.File[s.Offset+s.Filesz:]
		tail = tail[:-(s.Offset+s.Filesz)&(page-1)]
		if !bytes.Equal(tail, make([]byte, len(tail))) {
			t.Error("what follows the writable data is not zero")
		}
	}
}

func TestStagingFails(t *testing.T) {
	in, _ := staging(t, testbed.Zlib.MustOriginal(t).Path, testbed.Zlib.MustRebuilt(t, "7").Path)
	far := in
	m := *in.Match
	far.Match = &m
	m.Displacements = append(m.Displacements[:len(m.Displacements):len(m.Displacements)], match.Displacement{At: m.New.Functions[0].Addr, Next: m.New.Functions[0].Addr + 4, Size: 4})
	far.NewBias = oldBias + 1<<32
	if _, err := Make(far); !errors.Is(err, ErrRange) {
		t.Errorf("4 GiB away: %v", err)
	}
	lost := in
	missing := errors.New("missing")
	lost.Word = func(dso.Relocation) (uint64, error) { return 0, missing }
	if _, err := Make(lost); !errors.Is(err, missing) {
		t.Errorf("an import that nobody has: %v", err)
	}
}
