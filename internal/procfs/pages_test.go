package procfs

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/kernel"
)

func libcText(t testing.TB, p *Process) Mapping {
	t.Helper()
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.PrivateFile() && m.Perms == Read|Exec && strings.Contains(m.Path, "libc.so") {
			return m
		}
	}
	t.Fatal("no libc in maps")
	return Mapping{}
}

// Both ways of asking must see a page of libc's text that was written through
// /proc/PID/mem, and agree on every other mapping of the process.
func TestPrivatePages(t *testing.T) {
	_, p := sleeper(t)
	text := libcText(t, p)
	pagemap, err := p.OpenPagemap()
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	ways := []bool{false}
	if err := kernel.PagemapScan(); err == nil {
		ways = append(ways, true)
	} else {
		t.Log(err)
	}
	for _, pagemap.scan = range ways {
		if ranges, err := pagemap.PrivatePages(nil, text.Start, text.End); err != nil || len(ranges) != 0 {
			t.Fatalf("scan %v: of untouched text %v, %v", pagemap.scan, ranges, err)
		}
	}

	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	page := func(n uint64) uint64 { return text.Start + n*PageSize }
	for _, n := range []uint64{3, 4, 9} {
		var b [1]byte
		if _, err := memory.ReadAt(b[:], int64(page(n)+17)); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.WriteAt(b[:], int64(page(n)+17)); err != nil {
			t.Fatal(err)
		}
	}
	want := []PageRange{{page(3), page(5)}, {page(9), page(10)}}
	for _, pagemap.scan = range ways {
		got, err := pagemap.PrivatePages(nil, text.Start, text.End)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("scan %v: private pages (-want +got):\n%s", pagemap.scan, diff)
		}
	}
	if len(ways) < 2 {
		return
	}
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.End >= 1<<63 || m.Kind == KindVVar {
			continue
		}
		for _, ask := range []func([]PageRange, uint64, uint64) ([]PageRange, error){pagemap.PrivatePages, pagemap.TouchedPages} {
			pagemap.scan = false
			entries, err1 := ask(nil, m.Start, m.End)
			pagemap.scan = true
			scanned, err2 := ask(nil, m.Start, m.End)
			if err1 != nil || err2 != nil {
				t.Errorf("%v: %v, %v", &m, err1, err2)
			}
			if diff := cmp.Diff(entries, scanned); diff != "" {
				t.Errorf("%v: the two ways differ (-entries +scan):\n%s", &m, diff)
			}
		}
	}
}

func TestPrivatePagesRefusesHalfPages(t *testing.T) {
	pagemap, err := self(t).OpenPagemap()
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	for _, r := range [][2]uint64{{1, PageSize}, {0, 5}, {2 * PageSize, PageSize}, {0xffffffffff600000, 0xffffffffff601000}} {
		if _, err := pagemap.PrivatePages(nil, r[0], r[1]); err == nil {
			t.Errorf("%#x-%#x: no error", r[0], r[1])
		}
	}
}

// The bytes that OpenMapped gives are those of the memory.
func TestOpenMappedIsWhatIsMapped(t *testing.T) {
	_, p := sleeper(t)
	text := libcText(t, p)
	file, err := p.OpenMapped(text)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	inFile, inMemory := make([]byte, PageSize), make([]byte, PageSize)
	if _, err := file.ReadAt(inFile, int64(text.Offset)); err != nil {
		t.Fatal(err)
	}
	if _, err := memory.ReadAt(inMemory, int64(text.Start)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(inFile, inMemory) {
		t.Error("the first page of libc's text differs from the file")
	}
	if state := p.FileState(text); state.Change != FileSame || state.Modified.IsZero() || state.Size == 0 {
		t.Errorf("file state %+v, want same", state)
	}
}

func BenchmarkPrivatePagesOfLibc(b *testing.B) {
	_, p := sleeper(b)
	text := libcText(b, p)
	for name, scan := range map[string]bool{"scan": true, "entries": false} {
		b.Run(name, func(b *testing.B) {
			pagemap, err := p.OpenPagemap()
			if err != nil {
				b.Fatal(err)
			}
			defer pagemap.Close()
			pagemap.scan = scan
			var ranges []PageRange
			b.ReportAllocs()
			for b.Loop() {
				if ranges, err = pagemap.PrivatePages(ranges[:0], text.Start, text.End); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
