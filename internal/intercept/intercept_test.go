package intercept

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"
)

// example is a valid interceptor's parts.
func example() (Config, []Module, []Function, []Slot) {
	return Config{
			Base: testBase, Processors: 4, Rseq: &Rseq{Offset: -64, Signature: 0x53053053}, Allocator: glibc, Interval: 512 << 10,
		},
		[]Module{
			{Name: "nginx", BuildID: "00ff", Bias: 0x5000_0000_0000, Start: 0x5000_0000_0000, End: 0x5000_0010_0000},
			{Name: "libz.so.1", Start: 0x7000_0000_0000, End: 0x7000_0002_0000},
		},
		[]Function{
			{Name: "deflate", Importer: 0, Target: 0x7000_0000_1000},
			{Name: "malloc@GLIBC_2.2.5", Importer: 0, Target: 0x7100_0000_1000, Kind: Allocate},
			{Name: "free@GLIBC_2.2.5", Importer: 1, Target: 0x7100_0000_2000, Kind: Release},
			{Name: "asprintf", Importer: 1, Target: 0x7100_0000_3000, Kind: Print, Aid: 0x7100_0000_4000},
		},
		[]Slot{
			{Address: 0x5000_000f_0000, Before: 0x7000_0000_1000, Function: 0},
			{Address: 0x7000_0001_0008, Before: 0x7100_0000_2000, Function: 2, Taken: true},
		}
}

// mapped is a process's memory.
type mapped struct {
	base  uint64
	bytes []byte
}

func (m mapped) ReadAt(b []byte, at int64) (int, error) {
	return bytes.NewReader(m.bytes).ReadAt(b, at-int64(m.base))
}

func mapOf(i *Interceptor) mapped {
	m := mapped{i.Config().Base, make([]byte, i.Size())}
	for _, p := range i.Parts() {
		copy(m.bytes[p.Start-m.base:], p.Bytes)
	}
	return m
}

func TestReadIsWhatWasMade(t *testing.T) {
	c, modules, functions, slots := example()
	configs := []Config{c}
	c.Rseq = nil
	configs = append(configs, c)
	c.Interval, c.Allocator = 0, Allocator{UsableSize: 0x7100_0000_5000}
	configs = append(configs, c)
	c.Processors = narrow + 1
	configs = append(configs, c)
	c.Processors, c.Interval, c.Samples = 2, 1<<20, 0x6000_0000_0000
	configs = append(configs, c)
	for n, c := range configs {
		made, err := New(c, modules, functions, slots)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		end := c.Base
		for _, p := range made.Parts() {
			if p.Start != end || p.Size == 0 || p.Size%page != 0 || uint64(len(p.Bytes)) > p.Size {
				t.Errorf("%d: part %#x of %#x bytes behind %#x", n, p.Start, p.Size, end)
			}
			end = p.Start + p.Size
		}
		if end != c.Base+made.Size() {
			t.Errorf("%d: parts end at %#x, not %#x", n, end, c.Base+made.Size())
		}
		read, err := Read(mapOf(made), c.Base)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if !reflect.DeepEqual(made, read) {
			t.Errorf("%d: read another one", n)
		}
		for f := range functions {
			at := read.Stub(f)
			if found, ok := read.Find(at); !ok || found != f {
				t.Errorf("%d: function %d at %#x is found as %d, %t", n, f, at, found, ok)
			}
			if _, ok := read.Find(at - 1); ok && f == 0 {
				t.Errorf("%d: something before the first stub", n)
			}
			start, end := read.CodeRange()
			if at < start || at >= end {
				t.Errorf("%d: stub at %#x is outside the code", n, at)
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config, []Module, []Function, []Slot){
		"base":          func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Base += 8 },
		"no base":       func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Base = 0 },
		"far base":      func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Base = addressEnd - page },
		"processors":    func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Processors = 0 },
		"allocator":     func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Allocator = Allocator{} },
		"two":           func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Allocator.UsableSize = 0x1000 },
		"samples":       func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Samples = 8 },
		"interval":      func(c *Config, _ []Module, _ []Function, _ []Slot) { c.Interval = 1 << 33 },
		"module":        func(_ *Config, m []Module, _ []Function, _ []Slot) { m[0].End = m[0].Start },
		"module's name": func(_ *Config, m []Module, _ []Function, _ []Slot) { m[0].Name = "a\x00b" },
		"importer":      func(_ *Config, _ []Module, f []Function, _ []Slot) { f[0].Importer = 2 },
		"target":        func(_ *Config, _ []Module, f []Function, _ []Slot) { f[0].Target = 0 },
		"no aid":        func(_ *Config, _ []Module, f []Function, _ []Slot) { f[3].Aid = 0 },
		"aid":           func(_ *Config, _ []Module, f []Function, _ []Slot) { f[0].Aid = 0x1000 },
		"kind":          func(_ *Config, _ []Module, f []Function, _ []Slot) { f[0].Kind = kinds },
		"slot":          func(_ *Config, _ []Module, _ []Function, s []Slot) { s[0].Address++ },
		"function":      func(_ *Config, _ []Module, _ []Function, s []Slot) { s[0].Function = 4 },
	} {
		c, modules, functions, slots := example()
		change(&c, modules, functions, slots)
		if _, err := New(c, modules, functions, slots); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, modules, _, _ := example()
	if _, err := New(c, modules, nil, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing to count: %v", err)
	}
	c.Processors = MaxProcessors + 1
	if _, err := New(c, modules, []Function{{Target: 1}}, nil); !errors.Is(err, ErrFull) {
		t.Errorf("too many processors: %v", err)
	}
}

// TestReadTrustsNothing: any byte that is another one is noticed, unless it is
// counted in.
func TestReadTrustsNothing(t *testing.T) {
	c, modules, functions, slots := example()
	made, err := New(c, modules, functions, slots)
	if err != nil {
		t.Fatal(err)
	}
	m := mapOf(made)
	words := int(made.Parts()[2].Start - c.Base)
	for at := 0; at < words; at += 1 + at%7 {
		was := m.bytes[at]
		m.bytes[at] ^= 0x10
		if _, err := Read(m, c.Base); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("byte %#x: %v", at, err)
		}
		m.bytes[at] = was
	}
	for _, base := range []uint64{c.Base + page, addressEnd, 1 << 63} {
		if _, err := Read(m, base); err == nil {
			t.Errorf("read at %#x", base)
		}
	}
	m.bytes = m.bytes[:words-1]
	if _, err := Read(m, c.Base); err == nil {
		t.Error("read of a part")
	}
}

// FuzzRead: headers that are sealed, with anything in them.
func FuzzRead(f *testing.F) {
	c, modules, functions, slots := example()
	made, err := New(c, modules, functions, slots)
	if err != nil {
		f.Fatal(err)
	}
	m := mapOf(made)
	table := m.bytes[:made.Parts()[1].Start-c.Base]
	f.Add(table, uint16(32), uint32(3))
	f.Add(table, uint16(44), ^uint32(0))
	f.Add(table, uint16(96), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, v uint32) {
		image := make([]byte, len(m.bytes))
		copy(image, m.bytes)
		copy(image, b)
		binary.LittleEndian.PutUint32(image[at%(headerSize-4):], v)
		binary.LittleEndian.PutUint32(image[headerSum:], crc32.Checksum(image[:headerSum], crc))
		i, err := Read(mapped{c.Base, image}, c.Base)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("neither corrupt nor another version: %v", err)
			}
			return
		}
		if _, err := i.Counts(mapped{c.Base, image}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCountsTrustNothing: words may hold anything.
func TestCountsTrustNothing(t *testing.T) {
	c, modules, functions, slots := example()
	made, err := New(c, modules, functions, slots)
	if err != nil {
		t.Fatal(err)
	}
	m := mapOf(made)
	for at := made.Parts()[2].Start - c.Base; at < uint64(len(m.bytes)); at++ {
		m.bytes[at] = byte(at * 37)
	}
	counts, err := made.Counts(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range counts.Samples {
		if s.Size >= addressEnd || s.Weight < float64(s.Size) {
			t.Errorf("a sample of %+v", s)
		}
	}
	if _, err := made.Counts(mapped{c.Base, m.bytes[:page]}); err == nil {
		t.Error("counts that can't be read")
	}
}
