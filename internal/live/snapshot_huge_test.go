package live

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// hugePages gives the machine so many huge pages more for the time of the test, and returns
// how to set how many more there are.
func hugePages(t *testing.T, n int) (set func(n int)) {
	t.Helper()
	const name = "/proc/sys/vm/nr_hugepages"
	read := func() int {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Skipf("this kernel has no huge pages: %v", err)
		}
		all, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := read()
	free, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if err != nil || strings.TrimSpace(string(free)) != "0" {
		t.Skipf("others have made huge pages, %s of which are free: %v", free, err)
	}
	set = func(n int) { put(t, name, strconv.Itoa(before+n)) }
	t.Cleanup(func() { set(0) })
	set(n)
	if got := read(); got < before+n {
		t.Skipf("the kernel found memory for %d huge pages of %d", got-before, n)
	}
	return set
}

// TestSnapshotHugePages builds a program with memory of huge pages again, where there are
// enough of them.
func TestSnapshotHugePages(t *testing.T) {
	set := hugePages(t, 4)
	port := freePort(t)
	pid := startAlone(t, testbed.MustCompile(t, testbed.Build{Name: "huge", Source: text(t, "huge.c")}), port)
	ask := func() (string, error) {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 10*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		answer, err := io.ReadAll(c)
		return strings.TrimSpace(string(answer)), err
	}
	await(t, "the program to be there", func() bool { answer, err := ask(); return err == nil && answer != "" })
	count := 1
	asked := func() {
		t.Helper()
		count++
		if answer, err := ask(); err != nil || answer != strconv.Itoa(count)+" 0" {
			t.Fatalf("answered %q (%v), want %d", answer, err, count)
		}
	}
	asked()
	folder := t.TempDir()
	for n := range 3 {
		endAndRestore(t, pid, filepath.Join(folder, strconv.Itoa(n)))
		maps, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
		if err != nil || strings.Count(string(maps), "anon_hugepage") != 2 {
			t.Fatalf("its memory is not of huge pages: %v\n%s", err, maps)
		}
		asked()
	}
	settled(t, strconv.Itoa(pid))
	last := filepath.Join(folder, "last")
	vos(t, "checkpoint", strconv.Itoa(pid), "-D", last).expect(t, 0)
	reapAll([]relative{{pid: pid}})
	set(1)
	if r := vos(t, "restore", "-D", last).expect(t, 7); !strings.Contains(r.Stderr, "huge_pages_missing") {
		t.Errorf("refused otherwise: %s", r.Stderr)
	}
	set(4)
	vos(t, "restore", "-D", last).expect(t, 0)
	asked()
}
