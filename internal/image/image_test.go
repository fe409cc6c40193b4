package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/zeebo/xxh3"
)

// small returns a valid image of one process whose pages are where a writer put them.
func small(pages ...Run) *Image {
	return &Image{
		Taken: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC), Model: Minimal,
		Machine: Machine{Kernel: "6.18", Features: []string{"avx2"}, XFeatures: 7, XStateSize: 2696},
		Ended:   []Ended{{PID: 900, Parent: 812, Group: 900, Session: 812, Program: "z", Status: 11 | CoreDumped, ExitSignal: 17}},
		Processes: []Process{{
			PID: 812, Group: 812, Session: 812, Program: "x", Executable: FileRef{Path: "/usr/bin/x", Modified: time.Unix(5, 6).UTC()},
			Directory: "/", Root: "/", Layout: Layout{Auxv: []uint64{6, 4096, 0, 0}}, Limits: []Limit{{1, ^uint64(0)}},
			Mappings: []Mapping{{Start: 0x10000, End: 0x10000 + 1<<32, Kind: Anonymous, Protection: 3, Flags: 2, Pages: pages, VMFlags: []string{"rd", "wr"}}},
			Threads: []Thread{{TID: 812, Name: "x", XState: make([]byte, 2696), Registers: Registers{RIP: 0x10010, RSP: 0x20000},
				Pending: []Signal{make([]byte, 128)}, Restart: &Restart{Number: 35, Left: time.Second}}},
			Actions:     []Action{{Handler: 1}},
			Descriptors: []Descriptor{{Number: 3, File: 0, OnClose: true}},
		}},
		Files: []File{{Kind: "eventfd", Flags: 2, Event: &Event{Count: 7}}},
	}
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n*PageSize)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < len(b); i += 16 { // compressible
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

func create(t testing.TB, dir string, o WriteOptions) *Writer {
	t.Helper()
	w, err := Create(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func keep(t testing.TB, w *Writer, at uint64, pages []byte) Run {
	t.Helper()
	place, err := w.Append(pages)
	if err != nil {
		t.Fatal(err)
	}
	return Run{Start: at, Count: uint64(len(pages) / PageSize), Place: place}
}

func commit(t testing.TB, w *Writer, img *Image) {
	t.Helper()
	if bytes, err := w.Commit(img); err != nil || bytes == 0 {
		t.Fatal(bytes, err)
	}
}

func open(t testing.TB, dir string, o ReadOptions) *Reader {
	t.Helper()
	r, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func identity(t testing.TB) (recipient, file string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return id.Recipient().String(), file
}

func TestRoundTrip(t *testing.T) {
	recipient, key := identity(t)
	for _, o := range []WriteOptions{{}, {Compression: Zstd}, {Recipients: []string{recipient}}, {Compression: Zstd, Recipients: []string{recipient}}} {
		t.Run(fmt.Sprintf("%s %d", o.Compression, len(o.Recipients)), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "image")
			w := create(t, dir, o)
			const runs = 40
			all, data := make([]Run, runs), make([][]byte, runs)
			var group sync.WaitGroup
			for n := range runs {
				data[n] = pattern(1+n*7, uint64(n))
				group.Go(func() { all[n] = keep(t, w, uint64(0x10000+n*1<<21), data[n]) })
			}
			group.Wait()
			img := small(all...)
			commit(t, w, img)
			r := open(t, dir, ReadOptions{Identities: []string{key}})
			if !reflect.DeepEqual(r.Image(), img) {
				t.Errorf("read %+v\nwrote %+v", r.Image(), img)
			}
			for n := range runs {
				group.Go(func() {
					for _, part := range [][2]int{{0, len(data[n])}, {0, PageSize}, {len(data[n]) - PageSize, len(data[n])}} {
						got := make([]byte, part[1]-part[0])
						at := all[n].Place
						at.Offset += uint64(part[0])
						if err := r.ReadPages(at, got); err != nil || !bytes.Equal(got, data[n][part[0]:part[1]]) {
							t.Errorf("run %d, %v: differs, %v", n, part, err)
						}
					}
				})
			}
			group.Wait()
			for _, name := range []string{"", indexName, pagesName} {
				info, err := os.Stat(filepath.Join(dir, name))
				if err != nil || info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%q is %v, %v", name, info.Mode(), err)
				}
			}
			if len(o.Recipients) > 0 {
				if _, err := Open(dir, ReadOptions{}); err == nil || !strings.Contains(err.Error(), "--identity") {
					t.Errorf("without a key: %v", err)
				}
				_, other := identity(t)
				if _, err := Open(dir, ReadOptions{Identities: []string{other}}); err == nil {
					t.Error("another key opens it")
				}
				for _, name := range []string{indexName, pagesName} {
					if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || bytes.Contains(b, data[3][:64]) || bytes.Contains(b, []byte("/usr/bin/x")) {
						t.Errorf("%s is readable, %v", name, err)
					}
				}
			}
		})
	}
}

// TestParents reads pages of a parent's parent, and refuses what is not its parent.
func TestParents(t *testing.T) {
	folder := t.TempDir()
	dirs := []string{filepath.Join(folder, "a"), filepath.Join(folder, "b"), filepath.Join(folder, "c")}
	var runs []Run
	var data [][]byte
	for n, dir := range dirs {
		o := WriteOptions{}
		if n > 0 {
			o.Parent = dirs[n-1]
		}
		w := create(t, dir, o)
		for i := range runs {
			runs[i].Place.Up++
		}
		data = append(data, pattern(3, uint64(n)))
		runs = append(runs, keep(t, w, uint64(0x10000+n*1<<20), data[n]))
		commit(t, w, small(runs...))
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(folder, moved); err != nil {
		t.Fatal(err)
	}
	r := open(t, filepath.Join(moved, "c"), ReadOptions{})
	for n := range dirs {
		got := make([]byte, len(data[n]))
		if err := r.ReadPages(runs[n].Place, got); err != nil || !bytes.Equal(got, data[n]) {
			t.Errorf("generation %d: %v", n, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(moved, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(moved, "c"), ReadOptions{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "parent is gone") {
		t.Errorf("without a parent: %v", err)
	}
	w := create(t, filepath.Join(moved, "a"), WriteOptions{})
	commit(t, w, small(keep(t, w, 0x10000, data[0])))
	if _, err := Open(filepath.Join(moved, "c"), ReadOptions{}); !errors.Is(err, ErrNoImage) || !strings.Contains(err.Error(), "another image") {
		t.Errorf("with another one in its place: %v", err)
	}
}

// TestLongestChain makes images until one more could not be read.
func TestLongestChain(t *testing.T) {
	folder := t.TempDir()
	var run Run
	for n := range MaxParents + 2 {
		o, dir := WriteOptions{}, filepath.Join(folder, fmt.Sprint(n))
		if n > 0 {
			o.Parent = filepath.Join(folder, fmt.Sprint(n-1))
		}
		if n == MaxParents+1 {
			if _, err := Create(dir, o); err == nil || !strings.Contains(err.Error(), "another parent") {
				t.Errorf("an image with %d parents was begun: %v", n, err)
			}
			break
		}
		w := create(t, dir, o)
		if n == 0 {
			run = keep(t, w, 0x10000, pattern(1, 1))
		}
		run.Place.Up = n
		commit(t, w, small(run))
	}
	r := open(t, filepath.Join(folder, fmt.Sprint(MaxParents)), ReadOptions{})
	got := make([]byte, PageSize)
	if err := r.ReadPages(run.Place, got); err != nil || !bytes.Equal(got, pattern(1, 1)) {
		t.Errorf("a page of the first image: %v", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != MaxParents+1 {
		t.Errorf("%d images, %v", len(left), err)
	}
}

// TestNothingIsLeft gives up, dies and fails on the way: no directory appears.
func TestNothingIsLeft(t *testing.T) {
	folder := t.TempDir()
	dir := filepath.Join(folder, "image")
	empty := func(what string) {
		t.Helper()
		if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
	w := create(t, dir, WriteOptions{})
	keep(t, w, 0, pattern(3, 1))
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	empty("given up")
	w = create(t, dir, WriteOptions{})
	bad := small(Run{Start: 0x10000, Count: 5})
	if _, err := w.Commit(bad); err == nil {
		t.Error("pages that are not there were committed")
	}
	empty("not valid")
	for _, o := range []WriteOptions{{Compression: "lzma"}, {Recipients: []string{"age1nobody"}}, {Parent: filepath.Join(folder, "none")}} {
		if _, err := Create(dir, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	empty("options")

	dead := create(t, dir, WriteOptions{})
	keep(t, dead, 0, pattern(3, 1))
	alive := create(t, dir, WriteOptions{}) // does not take the other's away
	run := keep(t, alive, 0x10000, pattern(3, 1))
	if _, err := os.Stat(dead.partial.Path); err != nil {
		t.Errorf("a writer at work lost its directory: %v", err)
	}
	dead.partial.lock.Close() // as its death does
	dead.partial.lock = nil
	commit(t, alive, small(run))
	if _, err := Create(dir, WriteOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an image was to be overwritten: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	w = create(t, dir, WriteOptions{})
	if _, err := os.Stat(dead.partial.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a dead writer left is still there: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	empty("after a death")
}

func TestDiskFull(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount tmpfs (needs root): %v", err)
	}
	defer func() {
		if err := syscall.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	}()
	w := create(t, filepath.Join(folder, "image"), WriteOptions{})
	_, err := w.Append(pattern(1024, 1))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("4 MiB on a disk of 1 MiB: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}

	w = create(t, filepath.Join(folder, "image"), WriteOptions{})
	run := keep(t, w, 0x10000, pattern(1, 1))
	other := filepath.Join(folder, "other")
	if err := os.WriteFile(other, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if _, err := w.Commit(small(run)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("an index on a full disk: %v", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestFileTooLarge writes more than a file may have.
func TestFileTooLarge(t *testing.T) {
	folder := t.TempDir()
	w := create(t, filepath.Join(folder, "image"), WriteOptions{})
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Append(pattern(1024, 1))
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("4 MiB where 1 MiB is allowed: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// whole writes an image and returns its directory and the bytes of its files.
func whole(t testing.TB, o WriteOptions) (dir string, files map[string][]byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "image")
	w := create(t, dir, o)
	commit(t, w, small(keep(t, w, 0x10000, pattern(70, 1)), keep(t, w, 0x100000, pattern(2, 2))))
	files = map[string][]byte{}
	for _, name := range []string{indexName, pagesName} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return dir, files
}

// readAll opens an image and reads all of its pages.
func readAll(dir string) error {
	r, err := Open(dir, ReadOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	for _, run := range r.Image().Processes[0].Mappings[0].Pages {
		if err := r.ReadPages(run.Place, make([]byte, run.Count*PageSize)); err != nil {
			return err
		}
	}
	return nil
}

// TestDamage cuts files off at each length, and changes bytes of them.
func TestDamage(t *testing.T) {
	for _, o := range []WriteOptions{{}, {Compression: Zstd}} {
		dir, files := whole(t, o)
		if err := readAll(dir); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			write := func(b []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			step := max(1, len(content)/400)
			for n := 0; n < len(content); n += step {
				write(content[:n])
				if err := readAll(dir); !errors.Is(err, ErrNoImage) {
					t.Fatalf("%s cut off at %d of %d: %v", name, n, len(content), err)
				}
				changed := bytes.Clone(content)
				changed[n] ^= 0x10
				write(changed)
				if err := readAll(dir); !errors.Is(err, ErrNoImage) {
					t.Fatalf("%s changed at %d of %d: %v", name, n, len(content), err)
				}
			}
			write(append(bytes.Clone(content), 0))
			if err := readAll(dir); !errors.Is(err, ErrNoImage) {
				t.Errorf("%s with a byte more: %v", name, err)
			}
			write(content)
		}
	}
}

// TestHostile changes values of an index whose checksum is right.
func TestHostile(t *testing.T) {
	for what, change := range map[string]func(*index){
		"no process":              func(e *index) { e.Image.Processes = nil },
		"a run beyond the pages":  func(e *index) { e.Image.Processes[0].Mappings[0].Pages[0].Count = 1 << 40 },
		"a run that overflows":    func(e *index) { e.Image.Processes[0].Mappings[0].Pages[0].Count = 1 << 52 },
		"a run of no page":        func(e *index) { e.Image.Processes[0].Mappings[0].Pages[0].Count = 0 },
		"a run of a parent":       func(e *index) { e.Image.Processes[0].Mappings[0].Pages[0].Place.Up = 1 },
		"a run of a child":        func(e *index) { e.Image.Processes[0].Mappings[0].Pages[0].Place.Up = -1 },
		"runs that overlap":       func(e *index) { e.Image.Processes[0].Mappings[0].Pages[1].Start = 0x10000 },
		"a run outside":           func(e *index) { e.Image.Processes[0].Mappings[0].Pages[1].Start = 1 << 40 },
		"a mapping in the kernel": func(e *index) { e.Image.Processes[0].Mappings[0].End = 1 << 48 },
		"a mapping of no kind":    func(e *index) { e.Image.Processes[0].Mappings[0].Kind = "x" },
		"a mapping of no file":    func(e *index) { e.Image.Processes[0].Mappings[0].Kind = SharedMap },
		"no object":               func(e *index) { e.Image.Processes[0].Mappings[0].Kind = InObject },
		"no thread":               func(e *index) { e.Image.Processes[0].Threads = nil },
		"a thread's pid":          func(e *index) { e.Image.Processes[0].Threads[0].TID = 1 << 30 },
		"process 0": func(e *index) {
			e.Image.Processes[0].PID, e.Image.Processes[0].Threads[0].TID = 0, 0
		},
		"a thread of two processes": func(e *index) {
			second := e.Image.Processes[0]
			second.PID, second.Parent = 813, 812
			main, other := second.Threads[0], second.Threads[0]
			main.TID = 813
			second.Threads = []Thread{main, other}
			e.Image.Processes = append(e.Image.Processes, second)
		},
		"a status of no signal":   func(e *index) { e.Image.Ended[0].Status = uint32(syscall.SIGCHLD) },
		"a core without a signal": func(e *index) { e.Image.Ended[0].Status = CoreDumped },
		"a status of both":        func(e *index) { e.Image.Ended[0].Status = 0x709 },
		"an end twice":            func(e *index) { e.Image.Ended = append(e.Image.Ended, e.Image.Ended[0]) },
		"an end of a process":     func(e *index) { e.Image.Ended[0].PID = 812 },
		"an end of a thread": func(e *index) {
			other := e.Image.Processes[0].Threads[0]
			other.TID = e.Image.Ended[0].PID
			e.Image.Processes[0].Threads = append(e.Image.Processes[0].Threads, other)
		},
		"an end without a parent": func(e *index) { e.Image.Ended[0].Parent = 5 },
		"an end that kills":       func(e *index) { e.Image.Ended[0].ExitSignal = int(syscall.SIGKILL) },
		"an owner of no type":     func(e *index) { e.Image.Files[0].Owner = &Owner{Type: 7} },
		"a lock that ends first":  func(e *index) { e.Image.Files[0].Locks = []Lock{{Start: 5, End: 3}} },
		"a kernel address":        func(e *index) { e.Image.Processes[0].Threads[0].Registers.RIP = 1 << 63 },
		"a short siginfo":         func(e *index) { e.Image.Processes[0].Threads[0].Pending[0] = nil },
		"a large xstate":          func(e *index) { e.Image.Processes[0].Threads[0].XState = make([]byte, 1<<20) },
		"no file":                 func(e *index) { e.Image.Files = nil },
		"a relative path":         func(e *index) { e.Image.Processes[0].Executable.Path = "x" },
		"a NUL":                   func(e *index) { e.Image.Processes[0].Executable.Path = "/x\x00y" },
		"blocks with a gap":       func(e *index) { e.Blocks[1].Logical += PageSize },
		"a block behind the file": func(e *index) { e.Blocks[1].At = 1 << 60 },
		"a huge block":            func(e *index) { e.Blocks[0].Size = 1 << 31 },
		"a block of nothing":      func(e *index) { e.Blocks[0].Stored = 0 },
		"more pages than blocks":  func(e *index) { e.Pages = 1 << 50 },
		"a parent":                func(e *index) { e.Image.Parent = strings.Repeat("a", 32); e.ParentPath = "image" },
		"an ID":                   func(e *index) { e.Image.ID = "../../etc" },
	} {
		t.Run(what, func(t *testing.T) {
			dir, files := whole(t, WriteOptions{})
			e, err := decodeIndex(bytes.NewReader(files[indexName]))
			if err != nil {
				t.Fatal(err)
			}
			change(e)
			b, err := e.encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, indexName), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := readAll(dir); !errors.Is(err, ErrNoImage) {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzIndex reads any bytes as the payload of an index: an error, or an image that
// all who use it can rely on.
func FuzzIndex(f *testing.F) {
	_, files := whole(f, WriteOptions{})
	f.Add(files[indexName][headSize:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		head := make([]byte, headSize)
		copy(head, magic)
		binary.LittleEndian.PutUint32(head[8:], Version)
		binary.LittleEndian.PutUint64(head[16:], uint64(len(payload)))
		binary.LittleEndian.PutUint64(head[24:], xxh3.Hash(payload))
		e, err := decodeIndex(bytes.NewReader(append(head, payload...)))
		if err != nil || e.validate(nil) != nil {
			return
		}
		for _, d := range e.Image.Processes[0].Descriptors {
			_ = e.Image.Files[d.File]
		}
		again, err := e.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeIndex(bytes.NewReader(again)); err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "image")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	w := create(b, filepath.Join(dir, "image"), WriteOptions{})
	data := pattern(256, 1)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := w.Append(data); err != nil {
			b.Fatal(err)
		}
		if w.logical > 1<<30 {
			w.logical, w.blocks = 0, nil
		}
	}
	if err := w.Abort(); err != nil {
		b.Fatal(err)
	}
}

// TestAnyBytes keeps paths and arguments that are no UTF-8.
func TestAnyBytes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	w := create(t, dir, WriteOptions{})
	img := small(keep(t, w, 0x10000, pattern(1, 1)))
	img.Processes[0].Command = []string{"caf\xe9", "\xff\xfe"}
	img.Processes[0].Directory = "/srv/caf\xe9"
	commit(t, w, img)
	if r := open(t, dir, ReadOptions{}); !reflect.DeepEqual(r.Image(), img) {
		t.Errorf("read %q in %q", r.Image().Processes[0].Command, r.Image().Processes[0].Directory)
	}
}

// TestUnreadableIsNotWritten gives values that can be encoded, but not decoded.
func TestUnreadableIsNotWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	w := create(t, dir, WriteOptions{})
	img := small(keep(t, w, 0x10000, pattern(1, 1)))
	img.Processes[0].Executable.Modified = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := w.Commit(img); err == nil {
		t.Error("an image that can't be read again was written")
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

// TestFailedPages does not commit pages that could not be written, whatever the caller
// made of the error.
func TestFailedPages(t *testing.T) {
	recipient, _ := identity(t)
	for _, o := range []WriteOptions{{}, {Compression: Zstd}, {Recipients: []string{recipient}}} {
		dir := filepath.Join(t.TempDir(), "image")
		w := create(t, dir, o)
		run := keep(t, w, 0x10000, pattern(1, 1))
		if err := w.pages.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Append(pattern(64, 1)); err == nil {
			t.Errorf("%+v: pages were written to a closed file", o)
		}
		if _, err := w.Commit(small(run)); err == nil {
			t.Errorf("%+v: it was committed", o)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is there: %v", err)
		}
	}
}

// TestFIFO opens what is no file, and does not wait for a writer of it.
func TestFIFO(t *testing.T) {
	for _, name := range []string{indexName, pagesName} {
		dir, _ := whole(t, WriteOptions{})
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, ReadOptions{}); !errors.Is(err, ErrNoImage) {
			t.Errorf("%s as a FIFO: %v", name, err)
		}
	}
}
