package dso

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// withinBounds fails where an object, whatever it is, takes long, takes more
// memory than its size explains, or makes the package panic.
func withinBounds(t testing.TB, raw []byte) {
	t.Helper()
	begin := time.Now()
	bounded(t, raw)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// FuzzReadFile reads mutations of small real objects, as a file and as the
// memory of a process.
func FuzzReadFile(f *testing.F) {
	for _, name := range []string{"gnu", "sysv", "relr", "now", "cet", "stripped", "no-pie", "no-exports"} {
		f.Add(fixture(f, name))
	}
	f.Add(withoutSections(fixture(f, "gnu")))
	f.Fuzz(func(t *testing.T, raw []byte) { withinBounds(t, raw) })
}

// TestLongNames indexes many symbols of one place that share one long name.
func TestLongNames(t *testing.T) {
	raw := fixture(t, "gnu")
	p := patch{raw, openBytes(t, append([]byte(nil), raw...))}
	f, _, err := p.o.Lookup("fixture_function", "")
	if err != nil {
		t.Fatal(err)
	}
	const count = 20_000
	symbol := make([]byte, symSize)
	le.PutUint32(symbol, 1)
	symbol[4] = 0x12 // STB_GLOBAL, STT_FUNC
	le.PutUint16(symbol[6:], 1)
	le.PutUint64(symbol[8:], f.Value)
	symbols, names := p.section(".symtab"), p.section(".strtab")
	le.PutUint64(symbols[24:], uint64(len(raw)))
	le.PutUint64(symbols[32:], count*symSize)
	le.PutUint64(names[24:], uint64(len(raw)+count*symSize))
	le.PutUint64(names[32:], maxName+2)
	raw = append(raw, bytes.Repeat(symbol, count)...)
	raw = append(raw, 0)
	raw = append(raw, bytes.Repeat([]byte("_"), maxName)...)
	raw = append(raw, 0)
	begin := time.Now()
	if name, _, ok := openBytes(t, raw).FunctionAt(f.Value); !ok || name != f.Name {
		t.Errorf("function %.40q %v", name, ok)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	raw[len(raw)-1] = '_'
	raw = append(raw, 0)
	p = patch{raw, openBytes(t, append([]byte(nil), raw...))}
	le.PutUint64(p.section(".strtab")[32:], maxName+3)
	if _, err := openBytes(t, raw).StaticSymbols(); !errors.Is(err, ErrLimit) {
		t.Errorf("a name beyond the limit: %v", err)
	}
}

// TestMutations is a short, repeatable part of what the fuzzer does, aimed at
// the tables: every run of the tests has it.
func TestMutations(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	interesting := []uint64{0, 1, 7, 0x7f, 0xff, 0x7fff, 0xffff, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 40, 1<<62 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 8}
	for _, name := range []string{"gnu", "sysv", "relr", "no-exports", "stripped"} {
		whole := fixture(t, name)
		o := openBytes(t, whole)
		// Headers, the first segment (all read-only tables), .eh_frame and
		// .dynamic: the text is of no interest.
		var places []Range
		places = append(places, Range{0, 0x300}, Range{0, o.image.loads[0].Filesz})
		if table, ok, _ := o.findFrames(); ok {
			offset, _ := o.FileOffset(table.at)
			places = append(places, Range{offset, min(table.end-table.at, 0x200)})
		}
		if s := o.dynamicSegment(); s != nil {
			places = append(places, Range{s.Offset, s.Filesz})
		}
		places = append(places, Range{o.ehdr.shoff, uint64(len(whole)) - o.ehdr.shoff})
		for range 400 {
			raw := append([]byte(nil), whole...)
			for range 1 + random.IntN(3) {
				place := places[random.IntN(len(places))]
				at := place.Addr + random.Uint64N(max(place.Size, 16)-8)
				if at+8 > uint64(len(raw)) {
					continue
				}
				switch random.IntN(4) {
				case 0:
					le.PutUint64(raw[at&^7:], interesting[random.IntN(len(interesting))])
				case 1:
					le.PutUint32(raw[at&^3:], uint32(interesting[random.IntN(len(interesting))]))
				case 2:
					raw[at] = byte(random.Uint32())
				case 3:
					raw[at] ^= 1 << random.IntN(8)
				}
			}
			withinBounds(t, raw)
		}
	}
}
