package criu

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/checkpoint-restore/go-criu/v7/crit"
	crcore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	crfdinfo "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	lock "github.com/checkpoint-restore/go-criu/v7/crit/images/file-lock"
	crfs "github.com/checkpoint-restore/go-criu/v7/crit/images/fs"
	ghostfile "github.com/checkpoint-restore/go-criu/v7/crit/images/ghost-file"
	crinventory "github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	crpagemap "github.com/checkpoint-restore/go-criu/v7/crit/images/pagemap"
	pipedata "github.com/checkpoint-restore/go-criu/v7/crit/images/pipe-data"
	crpstree "github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	crremap "github.com/checkpoint-restore/go-criu/v7/crit/images/remap-file-path"
	crseccomp "github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	skpacket "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-packet"
	tcpstream "github.com/checkpoint-restore/go-criu/v7/crit/images/tcp-stream"
	"google.golang.org/protobuf/proto"

	"github.com/virtualizing-os/vos/internal/api"
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

func TestProcesses(t *testing.T) {
	k, dir, notes := exported(t)
	img := k.reader.Image()
	if len(notes) != 1 || !strings.Contains(notes[0], "inherited[14]") {
		t.Errorf("notes %q", notes)
	}
	inventory, _ := read(t, dir, "inventory.img", &crinventory.InventoryEntry{})
	if len(inventory) != 1 || inventory[0].GetImgVersion() != 2 || !inventory[0].GetFdinfoPerId() || inventory[0].GetRootIds().GetFilesId() != 1 {
		t.Errorf("inventory %v", inventory)
	}
	tree, _ := read(t, dir, "pstree.img", &crpstree.PstreeEntry{})
	if len(tree) != 2 || tree[0].GetPid() != 812 || tree[0].GetPpid() != 0 || !slices.Equal(tree[0].GetThreads(), []uint32{812, 815}) ||
		tree[1].GetPpid() != 812 || tree[1].GetSid() != 812 || tree[1].GetPgid() != 812 {
		t.Errorf("tree %v", tree)
	}
	for _, name := range []string{"core-812.img", "core-815.img", "core-813.img"} {
		core, _ := read(t, dir, name, &crcore.CoreEntry{})
		if len(core) != 1 || core[0].GetMtype() != crcore.CoreEntry_X86_64 {
			t.Fatalf("%s: %v", name, core)
		}
		compareThread(t, name, core[0])
	}
	filters, _ := read(t, dir, "seccomp.img", &crseccomp.SeccompEntry{})
	if f := filters[0].GetSeccompFilters(); len(f) != 2 || string(f[0].GetFilter()) != "8 bytes." || f[0].Prev != nil || string(f[1].GetFilter()) != "8 others" ||
		f[1].Prev == nil || f[1].GetPrev() != 0 || f[1].GetFlags() != 2 {
		t.Errorf("filters %v", filters)
	}
	for name, want := range map[string]uint32{"core-812.img": 0, "core-815.img": 1} {
		c, _ := read(t, dir, name, &crcore.CoreEntry{})
		if th := c[0].GetThreadCore(); th.GetSeccompMode() != crcore.SeccompMode_filter || th.SeccompFilter == nil || th.GetSeccompFilter() != want {
			t.Errorf("%s: filter %v", name, th)
		}
	}
	core, _ := read(t, dir, "core-812.img", &crcore.CoreEntry{})
	compareTask(t, core[0], &img.Processes[0])
	fs, _ := read(t, dir, "fs-812.img", &crfs.FsEntry{})
	names := namesOf(t, dir)
	if names[fs[0].GetCwdId()] != "/srv" || names[fs[0].GetRootId()] != "/" || fs[0].GetUmask() != 0o27 {
		t.Errorf("directories %v", fs)
	}
}

// compareThread compares what all threads of the example have.
func compareThread(t *testing.T, name string, core *crcore.CoreEntry) {
	t.Helper()
	x := core.GetThreadInfo()
	if r := x.GetGpregs(); r.GetR15() != 15 || r.GetAx() != ^uint64(3) || r.GetIp() != 0x10010 || r.GetSp() != 0x20000 || r.GetFsBase() != 0x30000 ||
		r.GetCs() != 0x33 || r.GetSs() != 0x2b || r.GetFlags() != 0x246 || x.GetClearTidAddr() != 0x7000 || len(x.GetTls()) != 3 {
		t.Errorf("%s: registers %v", name, x)
	}
	s := state()
	f := x.GetFpregs()
	save := f.GetXsave()
	if f.GetMxcsr() != binary.LittleEndian.Uint32(s[24:]) || !slices.Equal(f.GetStSpace(), words32(s[32:160])) || !slices.Equal(f.GetXmmSpace(), words32(s[160:416])) ||
		save.GetXstateBv() != binary.LittleEndian.Uint64(s[512:]) || !slices.Equal(save.GetYmmhSpace(), words32(s[576:832])) || len(save.GetBndregState()) != 0 ||
		!slices.Equal(save.GetOpmaskReg(), words64(s[1088:1152])) || !slices.Equal(save.GetZmmUpper(), words64(s[1152:1664])) ||
		!slices.Equal(save.GetHi16Zmm(), words64(s[1664:2688])) || !slices.Equal(save.GetPkru(), words32(s[2688:2696])) {
		t.Errorf("%s: extended state %v", name, f)
	}
	c := core.GetThreadCore()
	if c.GetFutexRla() != 0x6000 || c.GetFutexRlaLen() != 24 || c.GetSchedNice() != -5 || c.GetSchedPolicy() != 1 || c.GetSchedPrio() != 7 || c.GetBlkSigset() != 1<<63 ||
		c.GetSas().GetSsSp() != 0x5000 || c.GetSas().GetSsSize() != 8192 || c.GetSas().GetSsFlags() != 2 || len(c.GetSignalsP().GetSignals()) != 1 ||
		c.GetRseqEntry().GetRseqAbiPointer() != 0x6100 || c.GetRseqEntry().GetSignature() != 0x53053053 {
		t.Errorf("%s: thread %v", name, c)
	}
}

func compareTask(t *testing.T, core *crcore.CoreEntry, p *image.Process) {
	t.Helper()
	task, c := core.GetTc(), core.GetThreadCore().GetCreds()
	if task.GetTaskState() != taskAlive || task.GetComm() != "main" || task.GetPersonality() != 0x40000 || task.GetOomScoreAdj() != -17 || !task.GetChildSubreaper() ||
		len(task.GetSigactions()) != 62 || len(task.GetSignalsS().GetSignals()) != 1 || len(task.GetRlimits().GetRlimits()) != 1 ||
		task.GetRlimits().GetRlimits()[0].GetMax() != ^uint64(0) || core.GetThreadCore().GetPdeathSig() != 15 {
		t.Errorf("task %v", task)
	}
	// Of SIGKILL there is no action: that of signal 10 is the ninth.
	if a := task.GetSigactions()[8]; a.GetSigaction() != 0x1234 || a.GetFlags() != 4 || a.GetRestorer() != 5 || a.GetMask() != 6 {
		t.Errorf("action %v", a)
	}
	timers := task.GetTimers()
	if r := timers.GetReal(); r.GetIsec() != 1 || r.GetIusec() != 500000 || r.GetVsec() != 0 || r.GetVusec() != 300 {
		t.Errorf("interval %v", r)
	}
	if p := timers.GetPosix(); len(p) != 1 || p[0].GetItId() != 3 || p[0].GetItSigevNotify() != 4 || p[0].GetNotifyThreadId() != 815 || p[0].GetIsec() != 1 || p[0].GetVnsec() != 5 ||
		p[0].GetSivalPtr() != 77 || p[0].GetOverrun() != 2 {
		t.Errorf("timers %v", p)
	}
	if c.GetUid() != 1 || c.GetEuid() != 2 || c.GetSuid() != 3 || c.GetFsuid() != 4 || c.GetGid() != 5 || c.GetFsgid() != 8 || c.GetSecbits() != 2 ||
		!slices.Equal(c.GetGroups(), []uint32{9, 10}) || !slices.Equal(c.GetCapPrm(), []uint32{3, 1 << 8}) {
		t.Errorf("credentials %v", c)
	}
}

func TestMemory(t *testing.T) {
	k, dir, _ := exported(t)
	space, _ := read(t, dir, "mm-812.img", &mm.MmEntry{})
	names := namesOf(t, dir)
	m := space[0]
	if names[m.GetExeFileId()] != "/usr/bin/x" || !slices.Equal(m.GetMmSavedAuxv(), []uint64{6, 4096, 33, 0x7ff0}) || m.GetMmBrk() != 0x9000 || !m.GetThpDisabled() {
		t.Errorf("memory %v", m)
	}
	want := []struct {
		start, end  uint64
		status      uint32
		flags, prot uint32
		offset      uint64
		file        string
		advice      uint64
	}{
		{0x10000, 0x20000, areaRegular | areaFilePrivate, 2, 3, page, "/usr/bin/x", 0},
		{0x20000, 0x24000, areaRegular | areaFileShared, 1, 3, 0, "/var/data", 0},
		{0x30000, 0x80000, areaRegular | areaPrivate | areaHeap, 0x22, 3, 0, "", 1<<15 | 1<<10},
		{0x90000, 0x93000, areaRegular | areaShared, 0x21, 3, 0, "", 0},
		{0x94000, 0x95000, areaRegular | areaMemfd | areaFileShared, 1, 3, 0, "memfd", 0},
		{0x96000, 0x98000, areaRegular | areaFilePrivate, 2, 3, 0, "/usr/lib/old.so", 0},
		{0xa0000, 0xa6000, areaRegular | areaPrivate | areaVVar, 0x22, 1, 0, "", 0},
		{0xa6000, 0xa8000, areaRegular | areaPrivate | areaVDSO, 0x22, 5, 0, "", 0},
		{0x50000, 0x51000, areaGuard, 0, 0, 0, "", 0},
	}
	if len(m.GetVmas()) != len(want) {
		t.Fatalf("%d mappings: %v", len(m.GetVmas()), m.GetVmas())
	}
	for i, w := range want {
		v := m.GetVmas()[i]
		file := ""
		if v.GetStatus()&(areaFilePrivate|areaFileShared) != 0 {
			file = names[uint32(v.GetShmid())]
		}
		if v.GetStart() != w.start || v.GetEnd() != w.end || v.GetStatus() != w.status || v.GetFlags() != w.flags || v.GetProt() != w.prot ||
			v.GetPgoff() != w.offset || file != w.file || v.GetMadv() != w.advice || v.GetFd() != -1 {
			t.Errorf("mapping %d is %v (%s), not %+v", i, v, file, w)
		}
	}
	got := readPages(t, dir, "pagemap-812.img")
	for start, want := range map[uint64][]byte{0x11000: k.pages[0x11000], 0x30000: k.pages[0x30000], 0x40000: k.pages[0x40000], 0x97000: k.pages[0x97000], 0xa6000: k.vdso} {
		if !bytes.Equal(got[start], want) {
			t.Errorf("the pages at %#x differ: %d bytes of %d", start, len(got[start]), len(want))
		}
	}
	if len(got) != 5 {
		t.Errorf("%d runs of pages", len(got))
	}
	if got := readPages(t, dir, "pagemap-shmem-1.img"); len(got) != 1 || !bytes.Equal(got[page], k.object) {
		t.Error("the shared memory differs")
	}
	if got := readPages(t, dir, "pagemap-shmem-2.img"); len(got) != 1 || !bytes.Equal(got[0], k.memfd) {
		t.Error("the memfd differs")
	}
	if got := readPages(t, dir, "pagemap-813.img"); len(got) != 0 {
		t.Errorf("the child has %d runs of pages", len(got))
	}
	reader, err := crit.NewMemoryReader(dir, 812, page)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := reader.GetMemPages(0x31000, 0x31008); err != nil || !bytes.Equal(b.Bytes(), k.pages[0x30000][page:page+8]) {
		t.Errorf("go-criu reads %x, %v", b, err)
	}
}

// readPages returns the pages of a list, by where each run begins.
func readPages(t *testing.T, dir, name string) map[uint64][]byte {
	t.Helper()
	all := entries(t, dir, name, &crpagemap.PagemapHead{})
	head, ok := all[0].Message.(*crpagemap.PagemapHead)
	if !ok {
		t.Fatalf("%s begins with a %T", name, all[0].Message)
	}
	b := readFile(t, dir, fmt.Sprintf("pages-%d.img", head.GetPagesId()))
	runs := map[uint64][]byte{}
	for _, e := range all[1:] {
		m := e.Message.(*crpagemap.PagemapEntry)
		size := int(m.GetNrPages()) * page
		if m.GetFlags() != pagePresent || len(b) < size {
			t.Fatalf("%s: %v, and %d bytes are left", name, m, len(b))
		}
		runs[m.GetVaddr()], b = b[:size], b[size:]
	}
	if len(b) > 0 {
		t.Errorf("%s: %d bytes are of no page", name, len(b))
	}
	return runs
}

// namesOf returns the files that have a name, and "memfd" for those.
func namesOf(t *testing.T, dir string) map[uint32]string {
	t.Helper()
	names := map[uint32]string{}
	all, _ := read(t, dir, "files.img", &crfdinfo.FileEntry{})
	for _, f := range all {
		switch {
		case f.GetReg() != nil:
			names[f.GetId()] = f.GetReg().GetName()
		case f.GetMemfd() != nil:
			names[f.GetId()] = "memfd"
		}
	}
	return names
}

func TestDescriptors(t *testing.T) {
	k, dir, _ := exported(t)
	var all []*crfdinfo.FileEntry
	every, _ := read(t, dir, "files.img", &crfdinfo.FileEntry{})
	byID := map[uint32]*crfdinfo.FileEntry{}
	for _, f := range every {
		if byID[f.GetId()] != nil {
			t.Errorf("file %d is there twice", f.GetId())
		}
		byID[f.GetId()] = f
	}
	table, _ := read(t, dir, "fdinfo-2.img", &crfdinfo.FdinfoEntry{})
	for i, d := range table {
		f := byID[d.GetId()]
		if d.GetFd() != uint32(i) || d.GetFlags() != uint32(i%2) || f == nil || f.GetType() != d.GetType() {
			t.Fatalf("descriptor %d: %v leads to %v", i, d, f)
		}
		all = append(all, f)
	}
	child, _ := read(t, dir, "fdinfo-3.img", &crfdinfo.FdinfoEntry{})
	if len(child) != 1 || child[0].GetId() != table[4].GetId() {
		t.Errorf("the child has %v", child)
	}
	if r := all[0].GetReg(); r.GetName() != "/var/data" || r.GetPos() != 512 || r.GetFlags() != 0o100002 || r.GetSize() != 8192 || r.GetMode() != 0o100644 ||
		r.GetFown().GetPid() != 812 || r.GetFown().GetSignum() != 29 {
		t.Errorf("file %v", r)
	}
	if d, n := all[1].GetReg(), all[2].GetReg(); d.GetMode() != 0o40644 || n.GetMode() != 0o20644 || d.Size != nil || n.Size != nil {
		t.Errorf("directory %v, device %v", d, n)
	}
	if p, q := all[4].GetPipe(), all[5].GetPipe(); p.GetPipeId() != 501 || q.GetPipeId() != 501 || p.GetFlags() != 0 || q.GetFlags() != 1 {
		t.Errorf("pipe %v, %v", p, q)
	}
	if f := all[6].GetFifo(); f.GetPipeId() != 502 || byID[f.GetRegfId()].GetReg().GetName() != "/run/f" {
		t.Errorf("fifo %v", f)
	}
	if e := all[7].GetEfd(); e.GetCounter() != 7 || e.GetFlags() != 2 {
		t.Errorf("eventfd %v", e)
	}
	if e := all[8].GetTfd(); e.GetClockid() != 1 || e.GetTicks() != 2 || e.GetSettimeFlags() != 1 || e.GetIsec() != 3 || e.GetVnsec() != 4 {
		t.Errorf("timerfd %v", e)
	}
	if e := all[9].GetSgfd(); e.GetSigmask() != 1<<16 {
		t.Errorf("signalfd %v", e)
	}
	if e := all[10].GetEpfd(); len(e.GetTfd()) != 1 || e.GetTfd()[0].GetTfd() != 7 || e.GetTfd()[0].GetEvents() != 25 || e.GetTfd()[0].GetData() != 99 {
		t.Errorf("epoll %v", e)
	}
	if e := all[11].GetIfy(); len(e.GetWd()) != 1 || e.GetWd()[0].GetFHandle().GetPath() != "/etc" || e.GetWd()[0].GetMask() != 2 || e.GetWd()[0].GetWd() != 1 {
		t.Errorf("inotify %v", e)
	}
	if e := all[13].GetReg(); !e.GetExt() || e.GetName() != "inherited[14]" {
		t.Errorf("inherited %v", e)
	}
	inodes, _ := read(t, dir, "memfd.img", &memfd.MemfdInodeEntry{})
	if e := all[12].GetMemfd(); len(inodes) != 1 || uint64(e.GetInodeId()) != inodes[0].GetInodeId() || e.GetPos() != 3 || inodes[0].GetName() != "log" ||
		inodes[0].GetShmid() != 2 || inodes[0].GetSize() != page || inodes[0].GetSeals() != 1 {
		t.Errorf("memfd %v, %v", e, inodes)
	}
	compareSockets(t, all[14:])
	compareContent(t, k, dir, table)
	compareConnection(t, dir, all[19].GetIsk())
}

func compareSockets(t *testing.T, all []*crfdinfo.FileEntry) {
	t.Helper()
	if s := all[0].GetIsk(); s.GetState() != 10 || s.GetSrcPort() != 6379 || !slices.Equal(s.GetSrcAddr(), []uint32{0x0100007f}) || s.GetBacklog() != 511 ||
		!s.GetOpts().GetReuseaddr() || s.GetOpts().GetSoBufLock() != 0 || s.GetProto() != 6 || s.V6Only != nil {
		t.Errorf("listens %v", s)
	}
	if s := all[1].GetIsk(); s.GetState() != 1 || s.GetSrcPort() != 53 || s.GetDstPort() != 54 || !slices.Equal(s.GetDstAddr(), []uint32{0, 0, 0, 2 << 24}) ||
		!s.GetV6Only() || s.GetOpts().GetSoRcvbuf() != 4096 || s.GetOpts().GetSoBufLock() != 2 {
		t.Errorf("UDP %v", s)
	}
	if a, b := all[2].GetUsk(), all[3].GetUsk(); a.GetPeer() != 604 || b.GetPeer() != 603 || a.GetIno() != 603 || b.GetShutdown() != 2 || a.Shutdown != nil || len(a.GetName()) != 0 {
		t.Errorf("pair %v, %v", a, b)
	}
	if s := all[4].GetUsk(); string(s.GetName()) != "/run/s\x00" || s.GetFilePerms().GetMode() != 0o140660 || s.GetState() != 7 || s.GetType() != 2 {
		t.Errorf("datagrams %v", s)
	}
}

func compareConnection(t *testing.T, dir string, s *skinet.InetSkEntry) {
	t.Helper()
	if s.GetState() != 4 || s.GetSrcPort() != 6379 || s.GetDstPort() != 4096 || s.GetShutdown() != 2 || s.GetOpts().GetSoSndbuf() != 8192 {
		t.Errorf("connection %v", s)
	}
	b := bytes.NewBuffer(readFile(t, dir, "tcp-stream-25e.img")[8:])
	e := next(t, b, &tcpstream.TcpStreamEntry{})
	if e.GetInqLen() != 8 || e.GetInqSeq() != 2000 || e.GetOutqLen() != 12 || e.GetOutqSeq() != 1000 || e.GetUnsqLen() != 7 || e.GetOptMask() != 7 || e.GetMssClamp() != 1460 ||
		e.GetSndWscale() != 7 || e.GetRcvWscale() != 9 || e.GetTimestamp() != 77 || e.GetSndWl1() != 11 || e.GetSndWnd() != 12 || e.GetMaxWindow() != 13 ||
		e.GetRcvWnd() != 14 || e.GetRcvWup() != 15 || b.String() != "came in sent not yet" {
		t.Errorf("stream %v, %q", e, b)
	}
}

// compareContent compares what is in pipes and queues, the deleted file and the locks.
func compareContent(t *testing.T, k *kept, dir string, table []*crfdinfo.FdinfoEntry) {
	t.Helper()
	for name, want := range map[string]string{"pipes-data.img": "in the pipe", "fifo-data.img": "first in"} {
		data, extra := read(t, dir, name, &pipedata.PipeDataEntry{})
		if b, err := base64.StdEncoding.DecodeString(extra[0]); len(data) != 1 || err != nil || string(b) != want || data[0].GetBytes() != uint32(len(want)) {
			t.Errorf("%s: %v, %q, %v", name, data, b, err)
		}
	}
	queues, extra := read(t, dir, "sk-queues.img", &skpacket.SkPacketEntry{})
	if b, err := base64.StdEncoding.DecodeString(extra[0]); len(queues) != 1 || err != nil || string(b) != "unread" || queues[0].GetIdFor() != table[16].GetId() ||
		!slices.Equal(queues[0].GetScm()[0].GetRights(), []uint32{table[7].GetId()}) {
		t.Errorf("queue %v, %q", queues, b)
	}
	remaps, _ := read(t, dir, "remap-fpath.img", &crremap.RemapFilePathEntry{})
	ghosts := map[uint32][]byte{1: k.library[:5000], 2: k.ghost}
	names := namesOf(t, dir)
	if len(remaps) != 2 || names[remaps[0].GetOrigId()] != "/usr/lib/old.so" || remaps[1].GetOrigId() != table[3].GetId() || remaps[1].GetRemapType() != crremap.RemapType_GHOST {
		t.Errorf("remaps %v", remaps)
	}
	for n, want := range ghosts {
		b := bytes.NewBuffer(readFile(t, dir, fmt.Sprintf("ghost-file-%x.img", n))[8:])
		g := next(t, b, &ghostfile.GhostFileEntry{})
		if n == 2 && (g.GetUid() != 33 || g.GetGid() != 34 || g.GetMode() != 0o100644) || n == 1 && (g.GetUid() != 3 || g.GetMode() != 0o100755) ||
			g.GetSize() != uint64(len(want)) || !g.GetChunks() {
			t.Errorf("ghost %v", g)
		}
		var content []byte
		for b.Len() > 0 {
			c := next(t, b, &ghostfile.GhostChunkEntry{})
			if c.GetOff() != uint64(len(content)) {
				t.Errorf("chunk %v", c)
			}
			content = append(content, b.Next(int(c.GetLen()))...)
		}
		if !bytes.Equal(content, want) {
			t.Errorf("deleted file %d has %d other bytes, not %d", n, len(content), len(want))
		}
	}
	locks, _ := read(t, dir, "filelocks.img", &lock.FileLockEntry{})
	if len(locks) != 2 || locks[0].GetFlag() != 1 || locks[0].GetType() != 1 || locks[0].GetStart() != 5 || locks[0].GetLen() != 5 || locks[0].GetPid() != 812 ||
		locks[1].GetFlag() != 2 || locks[1].GetLen() != 0 || locks[1].GetFd() != 0 {
		t.Errorf("locks %v", locks)
	}
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

func TestRefusals(t *testing.T) {
	for name, change := range map[string]func(img *image.Image){
		"descriptor 7 of process 812: it is an eventfd that counts as a semaphore": func(img *image.Image) { img.Files[7].Event = &image.Event{Semaphore: true} },
		"descriptor 2 of process 812: it leads to a description of kind pidfd":     func(img *image.Image) { img.Files[2] = image.File{Kind: "pidfd", PIDFD: 812} },
		"descriptor 12 of process 812: it leads to a description of kind memfd":    func(img *image.Image) { img.Files[12].Object = 7 },
		"descriptor 0 of process 812: a lock of kind lease is held on it":          func(img *image.Image) { img.Files[0].Locks[0].Kind = "lease" },
		"descriptor 14 of process 812: its connection went on with the program": func(img *image.Image) {
			s := *img.Files[14].Socket
			s.State, img.Files[14].Socket = "established", &s
		},
		"descriptor 16 of process 812: it is connected to a socket that is not": func(img *image.Image) {
			s := *img.Files[16].Socket
			s.PeerID, img.Files[16].Socket = 999, &s
		},
		"descriptor 10 of process 812: it waits for a description by number 5": func(img *image.Image) { img.Files[10].Epoll[0].Number = 5 },
		"thread 815: it is scheduled by deadlines":                             func(img *image.Image) { img.Processes[0].Threads[1].Scheduler.Policy = policyDeadline },
		"thread 812: it uses registers (components 0x40000":                    func(img *image.Image) { img.Processes[0].Threads[0].XState[legacySize+2] = 1 << 2 },
		"process 813: it has a root directory of its own, /jail":               func(img *image.Image) { img.Processes[1].Root = "/jail" },
		"mapping 0x90000-0x93000 of process 812: it is of sysv memory":         func(img *image.Image) { img.Objects[0].Kind = "sysv" },
	} {
		t.Run(name, func(t *testing.T) {
			k := example(t)
			change(k.reader.Image())
			dir := filepath.Join(t.TempDir(), "criu")
			_, err := Write(k.reader, dir, Options{})
			refusals := api.Refusals(err)
			if len(refusals) == 0 || refusals[0].Code != codeNotExpressed || !strings.HasPrefix(refusals[0].Subject+": "+refusals[0].Detail, name) || refusals[0].Remedy == "" {
				t.Errorf("refused by %+v, %v", refusals, err)
			}
			if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// failing fails in the middle of the pages.
type failing struct{ Source }

func (f failing) ReadPages(at image.Place, b []byte) error {
	if at.Offset > 0 {
		return syscall.EIO
	}
	return f.Source.ReadPages(at, b)
}

func TestWholeOrNot(t *testing.T) {
	k := example(t)
	folder := t.TempDir()
	dir := filepath.Join(folder, "criu")
	if _, err := Write(failing{k.reader}, dir, Options{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("an image that can't be read: %v", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	notes, err := Write(k.reader, dir, Options{})
	if err != nil || !slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, "the code of the vDSO") }) {
		t.Errorf("without the vDSO: %q, %v", notes, err)
	}
	if _, err := Write(k.reader, dir, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over another: %v", err)
	}
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		info, failed := d.Info()
		if path != folder && (failed != nil || info.Mode().Perm()&0o077 != 0) {
			t.Errorf("%s is %v, %v", path, info.Mode(), failed)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestLayouts(t *testing.T) {
	const avx, avx512, mpx, pkru, amx = 1 << xYMM, 1<<xOpMask | 1<<xZMMUpper | 1<<xHi16ZMM, 1<<xBoundRegs | 1<<xBoundCSR, 1 << xPKRU, 1<<xTileCfg | 1<<xTile
	for _, c := range []struct {
		size     int
		features uint64
		at       map[int]int // nil: not known
	}{
		{832, 3 | avx, map[int]int{xYMM: 576}},
		{1088, 3 | avx | mpx, map[int]int{xBoundRegs: 960, xBoundCSR: 1024}},
		{2696, 3 | avx | avx512 | pkru, map[int]int{xOpMask: 1088, xPKRU: 2688}},
		{2688, 3 | avx | avx512, map[int]int{xHi16ZMM: 1664}},
		{11008, 3 | avx | avx512 | pkru | amx, map[int]int{xHi16ZMM: 1664, xTile: 2816}},
		{2440, 3 | avx | avx512 | pkru, map[int]int{xOpMask: 832, xHi16ZMM: 1408, xPKRU: 2432}},
		{840, 3 | avx | pkru, map[int]int{xPKRU: 832}},
		{2696, 3 | avx | pkru, map[int]int{xPKRU: 2688}},
		{1000, 3 | avx | pkru, nil},
	} {
		l := layoutOf(c.size, c.features)
		if (l == nil) != (c.at == nil) {
			t.Errorf("%d bytes of %#x: %v", c.size, c.features, l)
		}
		for n, at := range c.at {
			if l[n].offset != at {
				t.Errorf("%d bytes of %#x: component %d at %d, not %d", c.size, c.features, n, l[n].offset, at)
			}
		}
	}
}
