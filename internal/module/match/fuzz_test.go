package match

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/dso"
)

// mutate changes some bytes of a file, most often where they matter: headers,
// dynamic section, tables, code.
func mutate(raw []byte, r *rand.Rand) []byte {
	raw = bytes.Clone(raw)
	for range 1 + r.IntN(12) {
		at := r.IntN(len(raw))
		if r.IntN(3) == 0 {
			at = r.IntN(min(len(raw), 4096))
		}
		switch r.IntN(4) {
		case 0:
			raw[at] ^= 1 << r.IntN(8)
		case 1:
			raw[at] = byte(r.Uint32())
		case 2:
			for k := at; k < min(at+8, len(raw)); k++ {
				raw[k] = 0xff
			}
		case 3:
			n := min(64, len(raw)-at)
			from := r.IntN(len(raw) - n + 1)
			copy(raw[at:at+n], raw[from:from+n])
		}
	}
	return raw
}

// matchHostile matches two files, either of which may be anything.
func matchHostile(t testing.TB, old, new []byte) {
	a, err := dso.ReadFile(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		return
	}
	b, err := dso.ReadFile(bytes.NewReader(new), int64(len(new)))
	if err != nil {
		return
	}
	begin := time.Now()
	m, err := Compare(a, b, Options{})
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	if err != nil {
		return
	}
	for _, d := range m.Displacements {
		if raw := m.New.im.at(d.At); len(raw) < int(d.Size) || m.Old.im.segment(d.Old) == nil && d.Old != 0 {
			t.Errorf("a displacement outside of the object: %+v", d)
		}
	}
	var out bytes.Buffer
	if err := m.Report().JSON(&out); err != nil {
		t.Error(err)
	}
	if err := m.Report().Text(&out); err != nil {
		t.Error(err)
	}
}

func TestMutatedObjects(t *testing.T) {
	old, err := os.ReadFile(build(t, "testdata/small.c", "strip"))
	if err != nil {
		t.Fatal(err)
	}
	new, err := os.ReadFile(build(t, "testdata/small.c", "-DSTEP=3"))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1500 {
		matchHostile(t, mutate(old, r), new)
		matchHostile(t, old, mutate(new, r))
		if t.Failed() {
			return
		}
	}
}

func FuzzCompare(f *testing.F) {
	old, err := os.ReadFile(build(f, "testdata/small.c", "strip"))
	if err != nil {
		f.Fatal(err)
	}
	new, err := os.ReadFile(build(f, "testdata/small.c", "strip", "-DSTEP=3"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		matchHostile(t, mutate(old, r), mutate(new, r))
	})
}
