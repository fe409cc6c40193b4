package procfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// mapperFolder is where testdata/mapper.c is compiled once; nobody runs it too.
var mapperFolder = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "procfs")
	if err != nil {
		return "", err
	}
	removeAtEnd = append(removeAtEnd, dir)
	return dir, os.Chmod(dir, 0o755)
})

func mapperBinary(t testing.TB) string {
	t.Helper()
	dir, err := mapperFolder()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "mapper")
	if _, err := os.Stat(binary); err != nil {
		testbed.GCC(t, "-O1", "-pthread", "-o", binary, "testdata/mapper.c")
	}
	return binary
}

// mapper starts the fixture; it has mapped everything on return.
func mapper(t testing.TB, start func(*exec.Cmd), args ...string) (*exec.Cmd, *Process) {
	t.Helper()
	cmd := exec.Command(mapperBinary(t), args...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if start != nil {
		start(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("mapper said %q: %v", line, err)
	}
	return cmd, open(t, cmd.Process.Pid)
}

// A fileFate is a file that the fixture maps, and what is done to its name
// after that.
type fileFate struct {
	name    string
	then    func(path string) error
	path    string // what Maps must say; "" is name
	deleted bool
	change  FileChange
}

func overwriteByRename(path string) error {
	if err := os.WriteFile(path+".new", []byte("new"), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

var fates = []fileFate{
	{name: "plain", change: FileSame},
	{name: "new\nline", change: FileSame},
	{name: `new\012line`, change: FileSame},
	{name: `back\slash`, change: FileSame},
	{name: "  spaces  ", change: FileSame},
	{name: "[heap]", change: FileSame},
	{name: "\xff\xfe not UTF-8", change: FileSame},
	{name: "live (deleted)", change: FileSame},
	{name: "live\nline (deleted)", change: FileSame},
	{name: `live\012 (deleted)`, change: FileSame},
	{name: "gone", then: os.Remove, deleted: true, change: FileDeleted},
	{name: "gone\nline", then: os.Remove, deleted: true, change: FileDeleted},
	{name: `gone\012line`, then: os.Remove, deleted: true, change: FileDeleted},
	{name: "gone (deleted)", then: os.Remove, deleted: true, change: FileDeleted},
	{name: "replaced", then: overwriteByRename, deleted: true, change: FileReplaced},
	{name: "replaced (deleted)", then: overwriteByRename, deleted: true, change: FileReplaced},
	{name: "decoy", deleted: true, change: FileDeleted, then: func(path string) error {
		return errors.Join(os.Remove(path), os.WriteFile(path+" (deleted)", []byte("decoy"), 0o644))
	}},
	{name: "renamed", path: "another name", change: FileSame, then: func(path string) error {
		return os.Rename(path, filepath.Join(filepath.Dir(path), "another name"))
	}},
	{name: "became a directory", deleted: true, change: FileReplaced, then: func(path string) error {
		return errors.Join(os.Remove(path), os.Mkdir(path, 0o755))
	}},
	{name: "recreated link", deleted: true, change: FileSame, then: func(path string) error {
		// The same inode by another name, brought back to the old one: the
		// kernel's mark stays, the file is the same.
		return errors.Join(os.Link(path, path+"2"), os.Remove(path), os.Rename(path+"2", path))
	}},
}

func TestHostileNames(t *testing.T) {
	for _, privileged := range []bool{true, false} {
		t.Run(fmt.Sprintf("privileged=%v", privileged), func(t *testing.T) {
			if privileged { // map_files is for root
				testbed.NeedRoot(t)
			}
			testHostileNames(t, privileged)
		})
	}
}

func testHostileNames(t *testing.T, privileged bool) {
	dir := publicDirectory(t)
	var paths []string
	for _, fate := range fates {
		path := filepath.Join(dir, fate.name)
		paths = append(paths, path)
		if err := os.WriteFile(path, []byte("the file "+fate.name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	look := func(f func()) { f() }
	var start func(*exec.Cmd)
	if !privileged && os.Getuid() == 0 {
		look, start = func(f func()) { asUser(t, f) }, startAsUser
	}
	_, p := mapper(t, start, paths...)
	for i, fate := range fates {
		if fate.then != nil {
			if err := fate.then(paths[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	look(func() { checkFates(t, p, dir, privileged) })
}

func checkFates(t *testing.T, p *Process, dir string, privileged bool) {
	maps, err := p.Maps()
	if err != nil {
		t.Error(err)
		return
	}
	var found []Mapping // of the files in dir, in the order they were mapped
	for _, m := range maps {
		if filepath.Dir(m.Path) == dir && filepath.Base(m.Path) != "mapper" {
			found = append([]Mapping{m}, found...) // mmap goes downwards
		}
	}
	if len(found) != len(fates) {
		t.Errorf("%d mappings, want %d: %v", len(found), len(fates), found)
		return
	}
	for i, fate := range fates {
		m := found[i]
		want := fate.path
		if want == "" {
			want = fate.name
		}
		if got := strings.TrimPrefix(m.Path, dir+"/"); got != want || m.Deleted != fate.deleted || m.Kind != KindFile {
			t.Errorf("%q is mapped as %q, deleted %v, %v", fate.name, got, m.Deleted, m.Kind)
		}
		if state := p.FileState(m); state.Change != fate.change {
			t.Errorf("%q: %v (%v), want %v", fate.name, state.Change, state.Why, fate.change)
		} else if state.Modified.IsZero() != (!privileged && fate.change != FileSame) {
			t.Errorf("%q: modified at %v", fate.name, state.Modified)
		}
		file, err := p.OpenMapped(m)
		if !privileged && fate.change != FileSame {
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_CHECKPOINT_RESTORE") {
				t.Errorf("open %q: %v, want the missing right", fate.name, err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		content, err := io.ReadAll(file)
		file.Close()
		if string(content) != "the file "+fate.name || err != nil {
			t.Errorf("open %q: %q, %v", fate.name, content, err)
		}
	}
}

func TestKindsOfMappings(t *testing.T) {
	_, p := mapper(t, nil)
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[Kind]Mapping)
	for _, m := range maps {
		got[m.Kind] = m
	}
	for _, kind := range []Kind{
		KindAnonymous, KindFile, KindHeap, KindStack, KindVDSO, KindVVar, KindSharedAnonymous, KindMemfd, KindSysV,
	} {
		if _, found := got[kind]; !found {
			t.Errorf("no mapping of kind %v in %v", kind, maps)
		}
	}
	if path := got[KindMemfd].Path; path != "/memfd:a\n[heap]" {
		t.Errorf("memfd is called %q", path)
	}
	file, err := p.OpenMapped(got[KindMemfd])
	if err != nil {
		if os.Getuid() == 0 || !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	} else {
		file.Close()
	}
	if _, err := p.OpenMapped(got[KindHeap]); !errors.Is(err, ErrNoFile) {
		t.Errorf("open the heap: %v, want ErrNoFile", err)
	}
	if state := p.FileState(got[KindMemfd]); state.Change != FileNone {
		t.Errorf("file state of a memfd: %+v", state)
	}
}

// sixPages is where the fixture has six pages of which it wrote the second and
// read the fourth.
const sixPages = 0x200000000000

func TestTouchedPages(t *testing.T) {
	_, p := mapper(t, nil)
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	pagemap, err := p.OpenPagemap()
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	for _, m := range maps {
		if m.Start != sixPages {
			continue
		}
		page := func(n uint64) uint64 { return m.Start + n*PageSize }
		want := []PageRange{{page(1), page(2)}, {page(3), page(4)}}
		for _, scan := range []bool{pagemap.scan, false} {
			pagemap.scan = scan
			got, err := pagemap.TouchedPages(nil, m.Start, m.End)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("scan %v: touched pages (-want +got):\n%s%v", scan, diff, err)
			}
		}
		return
	}
	t.Fatalf("nothing is mapped at %#x", sixPages)
}

// The hostile name of the fixture's process neither breaks lines nor fields.
func TestHostileCommand(t *testing.T) {
	_, p := mapper(t, nil)
	const want = "m) R 1\n(\\x"
	stat, err := p.Stat()
	if err != nil || stat.Command != want || stat.PPID != os.Getpid() || stat.Threads != 1 {
		t.Errorf("stat: %+v, %v", stat, err)
	}
	status, err := p.Status()
	if err != nil || status.Name != want || status.PPID != os.Getpid() {
		t.Errorf("status: %+v, %v", status, err)
	}
}

// Of a process whose main thread has ended only the other threads have maps.
func TestMapsWithoutMainThread(t *testing.T) {
	_, p := mapper(t, nil, "-t")
	stat, err := p.Stat()
	if err != nil || !stat.Zombie() || stat.Threads < 2 {
		t.Fatalf("stat %+v, %v: want a main thread that has ended", stat, err)
	}
	maps, err := p.Maps()
	if err != nil || len(maps) == 0 {
		t.Fatalf("%d maps, %v", len(maps), err)
	}
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var word [8]byte
	if _, err := memory.ReadAt(word[:], int64(maps[0].Start)); err != nil {
		t.Error(err)
	}
	if _, err := p.Auxv(); err != nil {
		t.Error(err)
	}
	if _, err := p.PSS(); err != nil {
		t.Error(err)
	}
	if _, err := p.Executable(); err != nil {
		t.Error(err)
	}
	for _, m := range maps {
		if m.PrivateFile() {
			if state := p.FileState(m); state.Change != FileSame {
				t.Errorf("%v: %+v", &m, state)
			}
			file, err := p.OpenMapped(m)
			if err != nil {
				t.Error(err)
				continue
			}
			file.Close()
		}
	}
}
