package procfs

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

func TestSelf(t *testing.T) {
	p := self(t)
	status, err := p.Status()
	if err != nil || status.TGID != os.Getpid() || status.UIDs.Effective != os.Geteuid() || status.Resident == 0 {
		t.Errorf("status %+v, %v", status, err)
	}
	auxv, err := p.Auxv()
	if err != nil || auxv[AuxPageSize] != PageSize || auxv[AuxClockTicks] != ClockTicks {
		t.Errorf("auxv %v, %v", auxv, err)
	}
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(maps, func(m Mapping) bool { return m.Kind == KindVDSO && m.Start == auxv[AuxSysinfoEHDR] }) {
		t.Errorf("AT_SYSINFO_EHDR is %#x, not the start of the vDSO in %v", auxv[AuxSysinfoEHDR], maps)
	}
	exe, err := p.Executable()
	want, _ := os.Executable()
	if err != nil || exe.Path != want || exe.Deleted {
		t.Errorf("executable %+v, %v; want %s", exe, err, want)
	}
	args, err := p.Cmdline()
	if err != nil || !slices.Equal(args, os.Args) {
		t.Errorf("cmdline %q, %v; want %q", args, err, os.Args)
	}
	pss, err := p.PSS()
	if err != nil || pss == 0 || pss > 4*status.Resident {
		t.Errorf("PSS %d of RSS %d, %v", pss, status.Resident, err)
	}
	ns, err := p.Namespaces()
	if err != nil || ns.Mount == 0 || ns.PID == 0 || ns.PID != ns.PIDForChildren || ns.Mount == ns.PID {
		t.Errorf("namespaces %+v, %v", ns, err)
	}
	if _, err := p.TimeOffsets(); err != nil {
		t.Error(err)
	}
	if c, err := p.Cgroup(); err != nil || c.Path == "" {
		t.Errorf("cgroup %+v, %v", c, err)
	}
	if root, err := p.RootDirectory(); err != nil || root != "/" {
		t.Errorf("root directory %q, %v", root, err)
	}
}

func TestAge(t *testing.T) {
	before := time.Now()
	_, p := sleeper(t)
	time.Sleep(20 * time.Millisecond)
	age, err := p.Age()
	least, most := 10*time.Millisecond, time.Since(before)+20*time.Millisecond // ticks on both sides
	if err != nil || age < least || age > most {
		t.Errorf("age %v, %v; want %v to %v", age, err, least, most)
	}
}

func TestMemory(t *testing.T) {
	_, p := mapper(t, nil)
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var b [8]byte
	for _, m := range maps {
		switch m.Kind {
		case KindFile:
			if m.Offset != 0 {
				continue
			}
			if _, err := memory.ReadAt(b[:4], int64(m.Start)); err != nil || string(b[:4]) != "\x7fELF" {
				t.Errorf("%v starts with %q, %v", &m, b[:4], err)
			}
		case KindVsyscall:
			if _, err := memory.ReadAt(b[:], int64(m.Start)); !errors.Is(err, ErrAddress) {
				t.Errorf("vsyscall: %v, want ErrAddress", err)
			}
		}
	}
	last := maps[slices.IndexFunc(maps, func(m Mapping) bool { return m.Kind == KindStack })].End
	if n, err := memory.ReadAt(b[:], int64(last-4)); n != 4 || !errors.Is(err, ErrAddress) {
		t.Errorf("across the end of the stack: %d bytes, %v; want 4 and ErrAddress", n, err)
	}
	for _, address := range []int64{0, math.MaxInt64 - 3, -1, math.MinInt64} {
		if n, err := memory.ReadAt(b[:], address); n != 0 || !errors.Is(err, ErrAddress) {
			t.Errorf("read at %#x: %d, %v", uint64(address), n, err)
		}
		if n, err := memory.WriteAt(b[:], address); n != 0 || !errors.Is(err, ErrAddress) {
			t.Errorf("write at %#x: %d, %v", uint64(address), n, err)
		}
	}
	if n, err := memory.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
}

// Memory and pages are of the program, not of the process.
func TestMemoryAfterExec(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read go; exec sleep 60")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	p := open(t, cmd.Process.Pid)
	maps, memory, pagemap := lookInto(t, p)
	io.WriteString(stdin, "go\n")
	stdin.Close()
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(time.Millisecond) {
		if s, _ := p.Stat(); s.Command == "sleep" {
			break
		}
	}
	if _, err := memory.ReadAt(make([]byte, 8), int64(maps[0].Start)); !errors.Is(err, ErrGone) {
		t.Errorf("memory after execve: %v, want ErrGone", err)
	}
	for _, scan := range []bool{pagemap.scan, false} {
		pagemap.scan = scan
		if _, err := pagemap.PrivatePages(nil, maps[0].Start, maps[0].End); !errors.Is(err, ErrGone) {
			t.Errorf("pages after execve, scan %v: %v, want ErrGone", scan, err)
		}
	}
	if _, err := p.Maps(); err != nil {
		t.Error(err)
	}
}

// A user may open a deleted executable of his own without map_files.
func TestDeletedExecutable(t *testing.T) {
	content, err := os.ReadFile(testbed.NeedTool(t, "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"program", "program (deleted)"} {
		path := filepath.Join(publicDirectory(t), name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "60")
		look := func(f func()) { f() }
		if os.Getuid() == 0 {
			startAsUser(cmd)
			look = func(f func()) { asUser(t, f) }
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := open(t, cmd.Process.Pid)
		check := func(deleted bool) {
			exe, err := p.Executable()
			if want := (Executable{path, deleted}); exe != want || err != nil {
				t.Errorf("executable %+v, %v; want %+v", exe, err, want)
			}
			maps, err := p.Maps()
			if err != nil || len(maps) == 0 || maps[0].Path != path || maps[0].Deleted != deleted {
				t.Errorf("maps %v, %v", maps, err)
				return
			}
			file, err := p.OpenMapped(maps[0])
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			if got, err := io.ReadAll(file); string(got) != string(content) || err != nil {
				t.Errorf("%d bytes, %v; want the %d of the executable", len(got), err, len(content))
			}
		}
		look(func() { check(false) })
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		look(func() { check(true) })
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// Paths are those of the process: one with another root directory has other
// files at the same paths.
func TestChangedRoot(t *testing.T) {
	testbed.NeedRoot(t)
	binary := mapperBinary(t)
	out, err := exec.Command("ldd", binary).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", binary, err)
	}
	root := publicDirectory(t)
	for _, path := range append(absolutePaths(string(out)), binary) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Dir(root+path), 0o755)
		if err := os.WriteFile(root+path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// An absolute link: it must not lead out of the root directory.
	if err := os.WriteFile(root+"/file", []byte("inside"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, p := mapper(t, func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root} }, "/file")
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	check := func(path string, want FileChange) {
		t.Helper()
		for _, m := range maps {
			if m.Path == root+path {
				checked++
				if state := p.FileState(m); state.Change != want {
					t.Errorf("%v: %v (%v), want %v", &m, state.Change, state.Why, want)
				}
			}
		}
	}
	check("/file", FileSame)
	check(binary, FileSame)
	os.Remove(root + "/file")
	check("/file", FileDeleted)
	os.Symlink(binary, root+"/file")
	check("/file", FileReplaced)
	if checked < 4 {
		t.Errorf("%d mappings checked of %v", checked, maps)
	}
}

func absolutePaths(ldd string) (paths []string) {
	for _, field := range strings.Fields(ldd) {
		if filepath.IsAbs(field) {
			paths = append(paths, field)
		}
	}
	return paths
}

// Two that hold the same process take turns.
func TestLockIsExclusive(t *testing.T) {
	first, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := second.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked twice: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Lock(t.Context()); err != nil {
		t.Error(err)
	}
}
