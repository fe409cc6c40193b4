package live

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestCRIU writes an image of a server in CRIU's format. CRIU's own tools see in it the
// threads, mappings and descriptors that the server has; where CRIU works on the machine,
// it builds the server from it, which goes on counting.
func TestCRIU(t *testing.T) {
	testbed.NeedTool(t, "crit")
	k := startKept(t, "redis")
	folder := t.TempDir()
	k.rest(t)
	vos(t, "checkpoint", k.target(), "-D", filepath.Join(folder, "first"), "--leave-running").expect(t, 0)
	k.next(t)
	// An image of a moment in which nothing changed shows what /proc does.
	var image, out string
	var was seen
	for n := 0; image == ""; n++ {
		k.rest(t)
		name := filepath.Join(folder, fmt.Sprint("image", n))
		was = look(t, k.pid)
		vos(t, "checkpoint", k.target(), "-D", name, "--parent", filepath.Join(folder, "first"), "--compress", "zstd", "--leave-running").expect(t, 0)
		if now := look(t, k.pid); slices.Equal(was.mappings, now.mappings) && slices.Equal(was.threads, now.threads) {
			image = name
		} else if n == 100 {
			t.Fatalf("it changes all the time: %v, then %v", was, now)
		}
	}
	out = filepath.Join(folder, "criu")
	vos(t, "image", image, "--criu", out).expect(t, 0)

	var tree struct {
		Entries []struct {
			PID     int   `json:"pid"`
			Threads []int `json:"threads"`
		} `json:"entries"`
	}
	if err := json.Unmarshal([]byte(printed(t, "crit", "show", filepath.Join(out, "pstree.img"))), &tree); err != nil {
		t.Fatal(err)
	}
	if len(tree.Entries) != 1 || tree.Entries[0].PID != k.pid || !slices.Equal(tree.Entries[0].Threads, was.threads) {
		t.Errorf("crit finds %+v, of process %d with threads %v", tree, k.pid, was.threads)
	}
	if ps := strings.Fields(printed(t, "crit", "x", out, "ps")); !slices.Contains(ps, k.target()) || !slices.Contains(ps, "redis-server") {
		t.Errorf("crit x ps prints %v", ps)
	}
	if got := mappingsOf(printed(t, "crit", "x", out, "mems")); !slices.Equal(got, was.mappings) {
		t.Errorf("crit finds mappings\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(was.mappings, "\n"))
	}
	if got := descriptorsOf(printed(t, "crit", "x", out, "fds")); !slices.Equal(got, was.descriptors) {
		t.Errorf("crit finds descriptors %q, not %q", got, was.descriptors)
	}
	for _, name := range []string{"core-" + k.target(), "mm-" + k.target(), "files", "inventory", "pagemap-" + k.target()} {
		printed(t, "crit", "decode", "-i", filepath.Join(out, name+".img"))
	}

	t.Run("restored", func(t *testing.T) {
		criu := testbed.NeedTool(t, "criu")
		if said, err := exec.Command(criu, "check").CombinedOutput(); err != nil {
			t.Skipf("CRIU does not work on this machine: %v\n%s", err, said)
		}
		if err := syscall.Kill(k.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		k.wait(t)
		if said, err := exec.Command(criu, "restore", "-D", out, "-d", "--shell-job", "-o", "restore.log").CombinedOutput(); err != nil {
			text, _ := os.ReadFile(filepath.Join(out, "restore.log"))
			t.Fatalf("criu restore: %v\n%s%s", err, said, text)
		}
		k.next(t)
		if now := look(t, k.pid); !slices.Equal(now.threads, was.threads) {
			t.Errorf("it has threads %v, not %v", now.threads, was.threads)
		}
	})
}

func printed(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out)
}

// What is seen of a process: mappings as "start-end rwx path", with paths of files alone,
// and descriptors as "number path", likewise.
type seen struct {
	threads               []int
	mappings, descriptors []string
}

func look(t *testing.T, pid int) (s seen) {
	t.Helper()
	s.threads = entriesOf(t, pid, "task")
	for _, fd := range entriesOf(t, pid, "fd") {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil {
			t.Fatal(err)
		}
		s.descriptors = append(s.descriptors, described(strconv.Itoa(fd), link))
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		f := append(strings.Fields(line), "")
		switch f[5] {
		case "[vsyscall]": // the kernel's, and all have it
			continue
		case "[vvar_vclock]": // CRIU has it as a part of [vvar], which it follows
			last := &s.mappings[len(s.mappings)-1]
			start, _, _ := strings.Cut(*last, "-")
			_, end, _ := strings.Cut(f[0], "-")
			*last = described(start+"-"+end+" r--", "")
			continue
		}
		s.mappings = append(s.mappings, described(f[0]+" "+f[1][:3], f[5]))
	}
	return s
}

// entriesOf are the numbers that a directory of /proc/PID has, in order.
func entriesOf(t *testing.T, pid int, name string) (numbers []int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

func described(what, path string) string {
	if strings.HasPrefix(path, "/") {
		return what + " " + path
	}
	return what
}

// mappingsOf reads what crit x mems prints.
func mappingsOf(text string) (all []string) {
	for line := range strings.Lines(text) {
		f := append(strings.Fields(line), "")
		if len(f) < 3 || !strings.Contains(f[0], "-") {
			continue // the process, and its executable
		}
		all = append(all, described(f[0]+" "+f[1], f[2]))
	}
	return all
}

// descriptorsOf reads what crit x fds prints.
func descriptorsOf(text string) (all []string) {
	for line := range strings.Lines(text) {
		number, path, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if _, err := strconv.Atoi(number); ok && err == nil {
			all = append(all, described(number, path))
		}
	}
	return all
}
