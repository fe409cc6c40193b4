package criu

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/checkpoint-restore/go-criu/v7/crit"
	"google.golang.org/protobuf/proto"

	"github.com/virtualizing-os/vos/internal/image"
)

const page = image.PageSize

func pages(n int, seed uint64) []byte {
	b := make([]byte, n*page)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// A kept is an image of two generations, with what its runs hold.
type kept struct {
	reader  *image.Reader
	pages   map[uint64][]byte // by address, of the first process
	object  []byte            // of the shared memory
	memfd   []byte
	library []byte // a file that was mapped, and is deleted
	ghost   []byte
	vdso    []byte
}

func state() []byte {
	b := make([]byte, 2696)
	for i := range b {
		b[i] = byte(i * 7)
	}
	binary.LittleEndian.PutUint64(b[legacySize:], 1<<xX87|1<<xSSE|1<<xYMM|1<<xHi16ZMM)
	return b
}

// whole is an image with one of everything. keep puts pages into it.
func whole(keep func(at uint64, b []byte) image.Run, k *kept) *image.Image {
	ref := func(path string) *image.FileRef {
		return &image.FileRef{Path: path, Device: 1, Inode: uint64(len(path)), Size: 8192, BuildID: "0011223344556677"}
	}
	mapping := func(start, end uint64, kind image.Kind, flags uint32, more func(*image.Mapping)) image.Mapping {
		m := image.Mapping{Start: start, End: end, Kind: kind, Protection: 3, Flags: flags}
		if more != nil {
			more(&m)
		}
		return m
	}
	thread := func(tid int, name string) image.Thread {
		return image.Thread{TID: tid, Name: name, XState: state(), Mask: 1 << 63, ClearTID: 0x7000, Persona: 0x40000,
			Registers: image.Registers{R15: 15, RAX: ^uint64(3), RIP: 0x10010, RSP: 0x20000, CS: 0x33, SS: 0x2b, FSBase: 0x30000, Flags: 0x246},
			Pending:   []image.Signal{bytes.Repeat([]byte{9}, 128)}, AltStack: image.AltStack{Address: 0x5000, Size: 8192, Flags: 2},
			Robust: image.RobustList{Head: 0x6000, Length: 24}, Rseq: &image.Rseq{Address: 0x6100, Size: 32, Signature: 0x53053053},
			Scheduler: image.Scheduler{Policy: 1, Nice: -5, Priority: 7}}
	}
	regular := func(path string, more func(*image.Regular)) *image.Regular {
		r := &image.Regular{FileRef: *ref(path), Mode: 0o644}
		if more != nil {
			more(r)
		}
		return r
	}
	option := func(level, name int, value uint32) image.Option {
		return image.Option{Level: level, Name: name, Value: binary.LittleEndian.AppendUint32(nil, value)}
	}
	k.ghost = append(pages(1, 31), pages(1, 32)[:100]...)
	ghost := slices.Concat(k.ghost, make([]byte, 2*page-len(k.ghost)))
	img := &image.Image{
		Taken: time.Unix(1e9, 0).UTC(), Model: image.Full, Machine: image.Machine{Kernel: "6.18.0-1", XFeatures: 0x2e7, XStateSize: 2696},
		Ended: []image.Ended{{PID: 814, Parent: 813, Group: 814, Session: 812, Program: "z", Status: 7 << 8, ExitSignal: 17, UID: 3, GID: 4}},
		Objects: []image.Object{
			{Kind: "shared", Size: 3 * page, Pages: []image.Run{keep(page, k.object)}},
			{Kind: "memfd", Name: "log", Size: page, Seals: 1, Mode: 0o700, Pages: []image.Run{keep(0, k.memfd)}},
			{Kind: "file", Size: 5000, Mode: 0o100755, UID: 3, File: ref("/usr/lib/old.so"), Pages: []image.Run{keep(0, k.library)}},
		},
		Processes: []image.Process{{
			PID: 812, Group: 812, Session: 812, Program: "x", Executable: *ref("/usr/bin/x"), Directory: "/srv", Root: "/", Umask: 0o27, OOMScoreAdjust: -17,
			Dumpable: 1, NoTHP: true, ChildSubreaper: true, NoNewPrivileges: true, ParentDeath: 15,
			Credentials: image.Credentials{UID: [4]uint32{1, 2, 3, 4}, GID: [4]uint32{5, 6, 7, 8}, Groups: []uint32{9, 10}, Permitted: 1<<40 | 3, Ambient: 1, SecureBits: 2},
			Filters:     []image.Filter{{Code: []byte("8 bytes.")}, {Code: []byte("8 others"), Log: true}},
			Limits:      []image.Limit{{Soft: 1, Hard: ^uint64(0)}}, Layout: image.Layout{StartCode: 0x1000, Break: 0x9000, Auxv: []uint64{6, 4096, 33, 0x7ff0, 0, 0}},
			Mappings: []image.Mapping{
				mapping(0x10000, 0x20000, image.Private, 2, func(m *image.Mapping) {
					m.File, m.Offset, m.Pages = ref("/usr/bin/x"), page, []image.Run{keep(0x11000, k.pages[0x11000])}
				}),
				mapping(0x20000, 0x24000, image.SharedMap, 1, func(m *image.Mapping) { m.File, m.OpenedFor = ref("/var/data"), syscall.O_RDWR }),
				mapping(0x30000, 0x80000, image.Anonymous, 2, func(m *image.Mapping) {
					m.Name, m.VMFlags = "[heap]", []string{"rd", "nh", "dc"}
					m.Pages = []image.Run{keep(0x30000, k.pages[0x30000]), keep(0x40000, k.pages[0x40000])}
					m.Guards = []image.Span{{Start: 0x50000, End: 0x51000}}
				}),
				mapping(0x90000, 0x93000, image.InObject, 1, nil),
				mapping(0x94000, 0x95000, image.InObject, 1, func(m *image.Mapping) { m.Object = 1 }),
				mapping(0x96000, 0x98000, image.InObject, 2, func(m *image.Mapping) {
					m.Object, m.Pages = 2, []image.Run{keep(0x97000, k.pages[0x97000])}
				}),
				mapping(0xa0000, 0xa4000, image.VDSO, 2, func(m *image.Mapping) { m.Name, m.Protection = "[vvar]", 1 }),
				mapping(0xa4000, 0xa6000, image.VDSO, 2, func(m *image.Mapping) { m.Name, m.Protection = "[vvar_vclock]", 1 }),
				mapping(0xa6000, 0xa8000, image.VDSO, 2, func(m *image.Mapping) { m.Name, m.Protection = "[vdso]", 5 }),
			},
			Threads: []image.Thread{thread(812, "main"), thread(815, "worker")},
			Actions: make([]image.Action, 64), Pending: []image.Signal{bytes.Repeat([]byte{5}, 128)},
			Intervals: [3]image.Interval{{Every: 1500 * time.Millisecond, Left: 300 * time.Microsecond}},
			Timers:    []image.Timer{{ID: 3, Clock: 1, Notify: 4, Signal: 10, Thread: 815, Value: 77, Overrun: 2, Time: image.Interval{Every: time.Second, Left: 5}}},
		}, {
			PID: 813, Parent: 812, Group: 812, Session: 812, Executable: *ref("/usr/bin/x"), Directory: "/", Root: "/",
			Mappings: []image.Mapping{mapping(0x90000, 0x93000, image.InObject, 1, nil)}, Threads: []image.Thread{thread(813, "child")},
		}},
		Files: []image.File{
			{Kind: "file", Flags: 0o100002, Offset: 512, Regular: regular("/var/data", nil), Owner: &image.Owner{Type: 1, ID: 812, Signal: 29},
				Locks: []image.Lock{{Kind: "posix", Type: 1, PID: 812, Start: 5, End: 9}, {Kind: "flock", Type: 0, End: -1}}},
			{Kind: "directory", Regular: regular("/srv", nil)},
			{Kind: "device", Regular: regular("/dev/null", nil)},
			{Kind: "file", Regular: regular("/tmp/gone", func(r *image.Regular) {
				r.Deleted, r.Size, r.UID, r.GID, r.Content = true, int64(len(k.ghost)), 33, 34, []image.Run{keep(0, ghost)}
			})},
			{Kind: "pipe", Flags: 0, Pipe: &image.Pipe{ID: 501, Size: 65536}, Content: []byte("in the pipe")},
			{Kind: "pipe", Flags: 1, Pipe: &image.Pipe{ID: 501, Size: 65536}},
			{Kind: "fifo", Flags: 2, Pipe: &image.Pipe{ID: 502, Size: 4096, Path: "/run/f"}, Content: []byte("first in")},
			{Kind: "eventfd", Flags: 2, Event: &image.Event{Count: 7}},
			{Kind: "timerfd", Flags: 2, TimerFD: &image.TimerFD{Clock: 1, Ticks: 2, Absolute: true, Time: image.Interval{Every: 3 * time.Second, Left: 4}}},
			{Kind: "signalfd", Flags: 2, Signals: 1 << 16},
			{Kind: "epoll", Flags: 2, Epoll: []image.Watched{{Number: 7, Process: 812, File: 7, Events: 25, Data: 99}}},
			{Kind: "inotify", Flags: 0, Inotify: []image.Inotify{{ID: 1, Path: "/etc", Mask: 2, Inode: 44}}},
			{Kind: "memfd", Flags: 2, Offset: 3, Object: 1},
			{Kind: image.Inherited, Flags: 1, Was: "/dev/pts/3"},
			{Kind: "socket", Flags: 0o4002, Socket: &image.Socket{Family: syscall.AF_INET, Type: 1, Protocol: 6, ID: 601, State: "listening", Backlog: 511,
				Local: []byte{2, 0, 0x18, 0xeb, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, Options: []image.Option{option(1, 2, 1), option(6, 1, 1)}}},
			{Kind: "socket", Socket: &image.Socket{Family: syscall.AF_INET6, Type: 2, Protocol: 17, ID: 602, State: "established",
				Local: append([]byte{10, 0, 0, 53, 0, 0, 0, 0}, append(make([]byte, 15), 1)...), Peer: append([]byte{10, 0, 0, 54, 0, 0, 0, 0}, append(make([]byte, 15), 2)...),
				Options: []image.Option{option(41, 26, 1), option(1, 8, 4096)}}},
			{Kind: "socket", Flags: 2, Socket: &image.Socket{Family: syscall.AF_UNIX, Type: 1, ID: 603, State: "established", Local: []byte{1, 0}, PeerID: 604,
				Queue: []image.Packet{{Data: []byte("unread"), Files: []int{7}}}}},
			{Kind: "socket", Flags: 2, Socket: &image.Socket{Family: syscall.AF_UNIX, Type: 1, ID: 604, State: "established", Local: []byte{1, 0}, PeerID: 603, Shutdown: 2}},
			{Kind: "socket", Flags: 2, Socket: &image.Socket{Family: syscall.AF_UNIX, Type: 2, ID: 605, State: "unconnected", Local: append([]byte{1, 0}, "/run/s\x00"...),
				Path: &image.SocketPath{Path: "/run/s", Mode: 0o660, UID: 1, GID: 2}}},
			{Kind: "socket", Flags: 2, Socket: &image.Socket{Family: syscall.AF_INET, Type: 1, Protocol: 6, ID: 606, State: "established", Shutdown: 2,
				Local: []byte{2, 0, 0x18, 0xeb, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, Peer: []byte{2, 0, 0x10, 0, 127, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0},
				TCP: &image.TCP{SendSequence: 1000, ReceiveSequence: 2000, Sent: []byte("sent "), Unsent: []byte("not yet"), Received: []byte("came in "), Timestamp: 77, SendBuffer: 8192,
					Options: []image.Option{option(0, 2, 1460), option(0, 3, 7|9<<16), option(0, 4, 0), option(0, 8, 0)},
					Window:  binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 11|12<<32), 13|14<<32), 15)}}},
		},
	}
	img.Processes[0].Threads[0].Filters, img.Processes[0].Threads[1].Filters = []int{0}, []int{0, 1}
	for i := range img.Files {
		img.Processes[0].Descriptors = append(img.Processes[0].Descriptors, image.Descriptor{Number: i, File: i, OnClose: i%2 == 1})
	}
	img.Processes[1].Descriptors = []image.Descriptor{{Number: 4, File: 4}}
	img.Processes[0].Actions[9] = image.Action{Handler: 0x1234, Flags: 4, Restorer: 5, Mask: 6}
	return img
}

// example writes the image into two generations, and opens it.
func example(t *testing.T) *kept {
	t.Helper()
	k := &kept{object: pages(2, 1), memfd: pages(1, 2), library: pages(2, 8), vdso: pages(2, 3),
		pages: map[uint64][]byte{0x11000: pages(1, 4), 0x30000: pages(5, 5), 0x40000: pages(3, 6), 0x97000: pages(1, 9)}}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(identity, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write := func(name string, o image.WriteOptions, from *image.Image) *image.Image {
		o.Compression, o.Recipients, o.Identities = image.Zstd, []string{key.Recipient().String()}, []string{identity}
		w, err := image.Create(filepath.Join(folder, name), o)
		if err != nil {
			t.Fatal(err)
		}
		img := whole(func(at uint64, b []byte) image.Run {
			place, err := w.Append(b)
			if err != nil {
				t.Fatal(err)
			}
			return image.Run{Start: at, Count: uint64(len(b) / page), Place: place}
		}, k)
		if from != nil { // the pages at 0x40000 are the parent's
			runs := img.Processes[0].Mappings[2].Pages
			runs[1].Place = from.Processes[0].Mappings[2].Pages[1].Place
			runs[1].Place.Up = 1
		}
		if _, err := w.Commit(img); err != nil {
			t.Fatal(err)
		}
		return img
	}
	parent := write("parent", image.WriteOptions{}, nil)
	write("image", image.WriteOptions{Parent: filepath.Join(folder, "parent")}, parent)
	if k.reader, err = image.Open(filepath.Join(folder, "image"), image.ReadOptions{Identities: []string{identity}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.reader.Close() })
	return k
}

// read decodes a file of CRIU's with go-criu.
func read[M proto.Message](t *testing.T, dir, name string, kind M) (all []M, extra []string) {
	t.Helper()
	for _, e := range entries(t, dir, name, kind) {
		m, ok := e.Message.(M)
		if !ok {
			t.Fatalf("%s has a %T", name, e.Message)
		}
		all, extra = append(all, m), append(extra, e.Extra)
	}
	return all, extra
}

func entries(t *testing.T, dir, name string, kind proto.Message) []*crit.CriuEntry {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := crit.New(f, nil, "", false, false).Decode(kind)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return img.Entries
}

func exported(t *testing.T) (*kept, string, []string) {
	t.Helper()
	k := example(t)
	dir := filepath.Join(t.TempDir(), "criu")
	notes, err := Write(k.reader, dir, Options{VDSO: k.vdso})
	if err != nil {
		t.Fatal(err)
	}
	return k, dir, notes
}

// next decodes the next message; go-criu mixes those of deleted files up.
func next[M proto.Message](t *testing.T, b *bytes.Buffer, m M) M {
	t.Helper()
	size := binary.LittleEndian.Uint32(b.Next(4))
	if err := proto.Unmarshal(b.Next(int(size)), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func readFile(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
