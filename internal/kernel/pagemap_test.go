package kernel

import (
	"os"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// ownPages maps n anonymous pages of this process and returns where.
func ownPages(t testing.TB, n int) (memory []byte, start uint64) {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, n*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	return memory, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(memory))))
}

func ownPagemap(t testing.TB) *os.File {
	t.Helper()
	file, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestScanPages(t *testing.T) {
	requireFeature(t, PagemapScan())
	memory, start := ownPages(t, 64)
	for _, page := range []int{0, 3, 4, 5, 63} {
		memory[page*pageSize] = 1
	}
	end := start + 64*pageSize
	region := func(from, to uint64) PageRegion {
		return PageRegion{start + from*pageSize, start + to*pageSize, PagePresent}
	}
	want := []PageRegion{region(0, 1), region(3, 6), region(63, 64)}
	query := PageQuery{Any: PagePresent | PageSwapped, Return: PagePresent}
	pagemap := ownPagemap(t)

	regions := make([]PageRegion, 8)
	n, walkEnd, err := ScanPages(pagemap, start, end, &query, regions)
	if err != nil || walkEnd != end {
		t.Fatalf("walk ended at %#x of %#x: %v", walkEnd, end, err)
	}
	if diff := cmp.Diff(want, regions[:n]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// With room for one region a step, and with a bound on pages that cuts a
	// run in two, the whole is the same.
	bounded := query
	bounded.MaxPages = 2
	for name, q := range map[string]*PageQuery{"room for one": &query, "two pages a step": &bounded} {
		var all []PageRegion
		for at := start; at < end; {
			n, walkEnd, err := ScanPages(pagemap, at, end, q, regions[:1])
			if err != nil || walkEnd <= at {
				t.Fatalf("%s: walk from %#x to %#x, %v", name, at, walkEnd, err)
			}
			all, at = append(all, regions[:n]...), walkEnd
		}
		got, err := AppendPages(nil, pagemap, start, end, q)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: (-want +got):\n%s%v", name, diff, err)
		}
		if len(all) < len(want) {
			t.Errorf("%s: by hand %v", name, all)
		}
	}
	// The complement.
	absent := PageQuery{Inverted: PagePresent, All: PagePresent, Return: PagePresent}
	got, err := AppendPages(want[:1:1], pagemap, start, end, &absent)
	wantAbsent := []PageRegion{want[0], {start + pageSize, start + 3*pageSize, 0}, {start + 6*pageSize, start + 63*pageSize, 0}}
	if diff := cmp.Diff(wantAbsent, got); diff != "" || err != nil {
		t.Errorf("absent pages (-want +got):\n%s%v", diff, err)
	}
	if _, err := AppendPages(nil, pagemap, start+1, end, &query); err == nil {
		t.Error("a start within a page: no error")
	}
}

func TestScanWithoutAllocation(t *testing.T) {
	requireFeature(t, PagemapScan())
	memory, start := ownPages(t, 16)
	memory[0] = 1
	pagemap := ownPagemap(t)
	regions := make([]PageRegion, 0, 16)
	query := PageQuery{Any: PagePresent, Return: PagePresent}
	allocations := testing.AllocsPerRun(100, func() {
		var err error
		if regions, err = AppendPages(regions[:0], pagemap, start, start+16*pageSize, &query); err != nil {
			t.Fatal(err)
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations a scan", allocations)
	}
}

// TestScanManyRegions asks for more regions than the kernel gathers at a time, with room
// for all of them.
func TestScanManyRegions(t *testing.T) {
	requireFeature(t, PagemapScan())
	const pages = 2400
	memory, start := ownPages(t, pages)
	var want []PageRegion
	for page := uint64(0); page < pages; page += 2 {
		memory[page*pageSize] = 1
		want = append(want, PageRegion{start + page*pageSize, start + (page+1)*pageSize, PagePresent})
	}
	query := PageQuery{Any: PagePresent, Return: PagePresent}
	for _, room := range []int{0, 511, 512, 513, 600, 1024, 1025, 2048} {
		got, err := AppendPages(make([]PageRegion, 0, room), ownPagemap(t), start, start+pages*pageSize, &query)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("room for %d (-want +got):\n%.2000s", room, diff)
		}
	}
}
