package live

import (
	le "encoding/binary"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// own returns how many mappings of vos a process has, and their bytes, as the
// kernel tells.
func own(t *testing.T, pid int) (mappings int, size int64) {
	t.Helper()
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, "/memfd:vos-") {
			continue
		}
		from, to, _ := strings.Cut(strings.Fields(line)[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		mappings, size = mappings+1, size+int64(end-start)
	}
	return mappings, size
}

// TestTenReplacementsInARow lets ten builds take over one after the other: each
// leaves the same and no more, vos modules tells of all of it, and turns among
// builds that the program has leave nothing.
func TestTenReplacementsInARow(t *testing.T) {
	m := runMixed(t, form{})
	var builds []string
	for n := range uint32(10) {
		builds = append(builds, altered(t, mixedBuild(t, 2+int(n)%2), func(b []byte) []byte {
			le.LittleEndian.PutUint32(b[buildIDOffset(t, b):], n)
			return b
		}))
	}
	staged := func() (n int, size int64) {
		t.Helper()
		for _, o := range modules(t, vos(t, "modules", m.target(), "--json").expect(t, 0)) {
			if o.Staged {
				n, size = n+1, size+o.MappedBytes
			}
		}
		return n, size
	}
	var mappings [10]int
	var sizes [10]int64
	for n, build := range builds {
		if o := m.replace(t, build); o.Generation != n+1 {
			t.Errorf("replacement %d makes generation %d", n+1, o.Generation)
		}
		m.runs(t, int64(2+n%2))
		mappings[n], sizes[n] = own(t, m.pid)
		told, size := staged()
		if told != n+1 || size > sizes[n] {
			t.Errorf("vos modules tells of %d builds, %d bytes, after %d replacements that left %d", told, size, n+1, sizes[n])
		}
		if n < 2 {
			continue
		}
		// The first leaves what leads to all of them, too. Builds take turns of two
		// sizes.
		if each := mappings[1] - mappings[0]; mappings[n]-mappings[n-1] != each {
			t.Errorf("replacement %d leaves %d mappings, not %d", n+1, mappings[n]-mappings[n-1], each)
		}
		if n > 3 && sizes[n]-sizes[n-1] != sizes[n-2]-sizes[n-3] {
			t.Errorf("replacement %d leaves %d bytes, the like before it %d", n+1, sizes[n]-sizes[n-1], sizes[n-2]-sizes[n-3])
		}
	}
	t.Logf("mappings %v, bytes %v", mappings, sizes)
	full := inventory(t, m.pid)
	for n, build := range builds {
		m.replace(t, build)
		m.runs(t, int64(2+n%2))
	}
	for {
		r := vos(t, "rollback", m.module(), "--json")
		if r.Code == 7 {
			break
		}
		took(t, r, api.RolledBack)
	}
	m.runs(t, 1)
	if after := inventory(t, m.pid); len(after.Mappings) != len(full.Mappings) || len(after.Descriptors) != len(full.Descriptors) {
		t.Errorf("turns among known builds: %v", full.Diff(after))
	}
	vos(t, "verify", "--full", m.target()).expect(t, 0)
}
