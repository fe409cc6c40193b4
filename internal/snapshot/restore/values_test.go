package restore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	signals "os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// changed dumps and kills the subject, and restores it with values that were changed.
func (s *subject) changed(t *testing.T, change func(*memoryImage, *image.Process)) Result {
	t.Helper()
	img := dump(t, s.pid)
	s.wait(t)
	change(img, &img.image.Processes[0])
	return s.restore(t, img)
}

// proc reads a file of /proc/PID.
func (s *subject) proc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// field returns the value of a line "key: value".
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if k, value, ok := strings.Cut(line, ":"); ok && k == key {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

func signal(number int, value uint64) image.Signal {
	s := make(image.Signal, siginfoBytes)
	const siQueue = -1
	code := int32(siQueue)
	binary.LittleEndian.PutUint32(s, uint32(number))
	binary.LittleEndian.PutUint32(s[8:], uint32(code))
	binary.LittleEndian.PutUint64(s[24:], value)
	return s
}

func bit(signals ...int) (set uint64) {
	for _, s := range signals {
		set |= 1 << (s - 1)
	}
	return set
}

func TestSignals(t *testing.T) {
	s := start(t, "plain")
	// What vOS ignores is not the program's.
	signals.Ignore(syscall.SIGHUP, syscall.SIGWINCH)
	defer signals.Reset(syscall.SIGHUP, syscall.SIGWINCH)
	const handler = 0x1234000
	usr1, usr2, trap, rt := int(syscall.SIGUSR1), int(syscall.SIGUSR2), int(syscall.SIGTRAP), 40
	// The C library blocks signals until a thread has begun, and then allows them.
	for end := time.Now().Add(5 * time.Second); strings.Count(s.threads(), "blocked 0000000000000000") < 2; {
		if time.Now().After(end) {
			t.Fatalf("its threads have not begun:\n%s", s.threads())
		}
	}
	s.changed(t, func(_ *memoryImage, p *image.Process) {
		p.Actions = make([]image.Action, 64)
		p.Actions[usr1-1] = image.Action{Handler: ignored}
		p.Actions[trap-1] = image.Action{Handler: ignored}
		p.Actions[usr2-1] = image.Action{Handler: handler, Flags: 0x04000004, Restorer: handler, Mask: bit(usr1)}
		for i := range p.Threads[1:] { // the main thread blocks them already
			p.Threads[1+i].Mask = bit(usr2, rt)
		}
		p.Pending = []image.Signal{signal(usr2, 7)}
		p.Threads[1].Pending = []image.Signal{signal(rt, 1), signal(rt, 2)}
	})
	s.report(t)
	want := map[string]uint64{"SigIgn": bit(usr1, trap), "SigCgt": bit(usr2), "ShdPnd": bit(usr2), "SigPnd": 0}
	status := s.proc(t, "status")
	for key, set := range want {
		if got := field(status, key); got != fmt.Sprintf("%016x", set) {
			t.Errorf("%s is %s, want %016x", key, got, set)
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	second := s.proc(t, "task/"+tasks[1].Name()+"/status")
	for key, set := range map[string]uint64{"SigPnd": bit(rt), "SigBlk": bit(usr2, rt)} {
		if got := field(second, key); got != fmt.Sprintf("%016x", set) {
			t.Errorf("%s of the second thread is %s, want %016x", key, got, set)
		}
	}
}

func TestTimers(t *testing.T) {
	s := start(t, "plain")
	var wall time.Time
	const left = 300 * time.Millisecond
	s.changed(t, func(_ *memoryImage, p *image.Process) {
		for _, id := range []int{0, 3, 7} {
			p.Timers = append(p.Timers, image.Timer{ID: id, Clock: clockMonotonic, Signal: int(syscall.SIGUSR1), Value: uint64(id),
				Time: image.Interval{Left: time.Hour, Every: time.Minute}})
		}
		p.Timers[2].Notify, p.Timers[2].Thread = notifyThread, p.Threads[1].TID
		p.Intervals[0] = image.Interval{Left: left}
		wall = time.Now()
	})
	var ids []string
	for line := range strings.Lines(s.proc(t, "timers")) {
		if id, ok := strings.CutPrefix(line, "ID: "); ok {
			ids = append(ids, strings.TrimSpace(id))
		}
	}
	slices.Sort(ids)
	if diff := cmp.Diff([]string{"0", "3", "7"}, ids); diff != "" {
		t.Error(diff)
	}
	status := s.wait(t)
	if status.Signal() != syscall.SIGALRM || time.Since(wall) < left {
		t.Errorf("it ended with %v after %v, want %v after %v", status.Signal(), time.Since(wall), syscall.SIGALRM, left)
	}
}

func TestAttributes(t *testing.T) {
	s := start(t, "plain")
	directory := t.TempDir()
	const capability = 1 << 10 // CAP_NET_BIND_SERVICE
	var tids []int
	command := s.proc(t, "cmdline")
	auxv := s.proc(t, "auxv")
	executable, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	r := s.changed(t, func(_ *memoryImage, p *image.Process) {
		p.Session = p.PID - 1
		p.Directory, p.Umask, p.NoNewPrivileges, p.NoTHP, p.OOMScoreAdjust = directory, 0o27, true, true, 300
		p.Credentials = image.Credentials{
			UID: [4]uint32{65534, 65533, 65532, 65531}, GID: [4]uint32{61, 62, 63, 64}, Groups: []uint32{5, 6, 7},
			Permitted: capability | 1<<12, Effective: 1 << 12, Inheritable: capability, Ambient: capability, Bounding: capability | 1<<12 | 1<<13,
			SecureBits: 1<<4 | 1<<5,
		}
		p.Limits[unix.RLIMIT_NOFILE] = image.Limit{Soft: 100, Hard: 200}
		p.Limits[unix.RLIMIT_CORE] = image.Limit{Soft: 4096, Hard: 8192}
		for i := range p.Threads {
			th := &p.Threads[i]
			tids = append(tids, th.TID)
			th.Name, th.Affinity, th.Slack = fmt.Sprintf("thread-%d", i), []uint64{1}, time.Duration(60000+i)
		}
		p.Threads[1].Scheduler = image.Scheduler{Policy: unix.SCHED_FIFO, Priority: 3}
		p.Threads[2].Scheduler = image.Scheduler{Policy: unix.SCHED_BATCH, Nice: 7}
	})
	s.report(t)
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "session") {
		t.Errorf("notes %q, want one of the session", r.Notes)
	}
	for i, tid := range tids {
		task := fmt.Sprintf("task/%d/", tid)
		got := make(map[string]string)
		status := s.proc(t, task+"status")
		want := map[string]string{
			"Name": fmt.Sprintf("thread-%d", i), "Umask": "0027", "Uid": "65534 65533 65532 65531", "Gid": "61 62 63 64", "Groups": "5 6 7",
			"CapPrm": "0000000000001400", "CapEff": "0000000000001000", "CapInh": "0000000000000400", "CapAmb": "0000000000000400",
			"CapBnd": "0000000000003400", "NoNewPrivs": "1", "THP_enabled": "0", "Cpus_allowed": field(status, "Cpus_allowed"),
		}
		for key := range want {
			got[key] = field(status, key)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("thread %d: %s", tid, diff)
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
			t.Errorf("thread %d may run on %v: %v", tid, set[0], err)
		}
		if got := strings.TrimSpace(s.procOf(t, tid, "timerslack_ns")); i != 1 && got != fmt.Sprint(60000+i) {
			t.Errorf("timer slack of thread %d is %s", tid, got)
		}
	}
	for i, want := range map[int]unix.SchedAttr{1: {Policy: unix.SCHED_FIFO, Priority: 3}, 2: {Policy: unix.SCHED_BATCH, Nice: 7}} {
		got, err := unix.SchedGetAttr(tids[i], 0)
		if err != nil || got.Policy != want.Policy || got.Priority != want.Priority || got.Nice != want.Nice {
			t.Errorf("thread %d is scheduled by %+v: %v", tids[i], got, err)
		}
	}
	for limit, want := range map[string]string{"Max open files": "100 200 files", "Max core file size": "4096 8192 bytes"} {
		_, rest, _ := strings.Cut(s.proc(t, "limits"), limit)
		line, _, _ := strings.Cut(rest, "\n")
		if got := strings.Join(strings.Fields(line), " "); got != want {
			t.Errorf("%s are %q, want %q", limit, got, want)
		}
	}
	if got := strings.TrimSpace(s.proc(t, "oom_score_adj")); got != "300" {
		t.Errorf("oom_score_adj is %s", got)
	}
	for name, want := range map[string]string{"cwd": directory, "exe": executable, "root": "/"} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", s.pid, name)); got != want {
			t.Errorf("%s leads to %q, want %q: %v", name, got, want, err)
		}
	}
	if got := s.proc(t, "cmdline"); got != command {
		t.Errorf("its command line is %q", got)
	}
	if got := s.proc(t, "auxv"); got != auxv {
		t.Errorf("its auxiliary vector is %x", got)
	}
	if session, err := unix.Getsid(s.pid); err != nil || session != s.pid {
		t.Errorf("it is in session %d: %v", session, err)
	}
}

// procOf reads a file of /proc/TID.
func (s *subject) procOf(t *testing.T, tid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", tid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMappings(t *testing.T) {
	s := start(t, "plain")
	const size = 64 << 10
	var base uint64
	content := bytes.Repeat([]byte("page"), 2*pageSize/4)
	r := s.changed(t, func(m *memoryImage, p *image.Process) {
		base = gaps(p.Mappings)[0] &^ 0xfffff
		place := image.Place{Offset: uint64(len(m.pages))}
		m.pages = append(m.pages, content...)
		add := func(v image.Mapping) {
			p.Mappings = append(p.Mappings, v)
		}
		pages := func(at uint64) []image.Run { return []image.Run{{Start: at, Count: 2, Place: place}} }
		rw := uint32(syscall.PROT_READ | syscall.PROT_WRITE)
		add(image.Mapping{Start: base, End: base + size, Kind: image.Anonymous, Protection: rw, Flags: syscall.MAP_PRIVATE,
			VMFlags: []string{"rd", "wr", "mr", "mw", "me", "ac", "dc", "dd", "wf", "nh", "lo", "lf"}, Name: "some name",
			Pages: pages(base + pageSize), Guards: []image.Span{{Start: base + 8*pageSize, End: base + 10*pageSize}}})
		add(image.Mapping{Start: base + 2*size, End: base + 3*size, Kind: image.Anonymous, Flags: syscall.MAP_PRIVATE | mapNoReserve,
			VMFlags: []string{"mr", "mw", "me", "nr", "rr"}, Pages: pages(base + 2*size)})
		m.image.Objects = []image.Object{
			{Kind: objectShared, Size: size, Pages: pages(pageSize)},
			{Kind: objectMemfd, Name: "a memfd", Size: size + 100, Pages: pages(0), Seals: 0x2 /* F_SEAL_SHRINK */},
		}
		add(image.Mapping{Start: base + 4*size, End: base + 5*size, Kind: image.InObject, Object: 0, Protection: rw, Flags: syscall.MAP_SHARED})
		add(image.Mapping{Start: base + 6*size, End: base + 6*size + 2*pageSize, Kind: image.InObject, Object: 0, Offset: pageSize,
			Protection: syscall.PROT_READ, Flags: syscall.MAP_SHARED})
		add(image.Mapping{Start: base + 8*size, End: base + 9*size, Kind: image.InObject, Object: 1, Protection: rw, Flags: syscall.MAP_SHARED})
		slices.SortFunc(p.Mappings, func(a, b image.Mapping) int { return int(int64(a.Start) - int64(b.Start)) })
	})
	s.report(t)
	process, err := procfs.Open(s.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	memory, err := process.OpenMemoryForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for name, at := range map[string]uint64{"anonymous": base + pageSize, "protected": base + 2*size, "shared": base + 4*size + pageSize,
		"shared a second time": base + 6*size, "a memfd": base + 8*size} {
		got := make([]byte, len(content))
		if _, err := memory.ReadAt(got, int64(at)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s memory differs: %v", name, err)
		}
	}
	if _, err := memory.WriteAt([]byte("else"), int64(base+4*size+pageSize)); err != nil {
		t.Error(err)
	}
	var word [4]byte
	if _, err := memory.ReadAt(word[:], int64(base+6*size)); err != nil || string(word[:]) != "else" {
		t.Errorf("what is shared is not seen at its other place: %q, %v", word, err)
	}
	name := "[anon:some name]"
	if len(r.Notes) > 0 && strings.Contains(r.Notes[0], "name") {
		name = "" // CONFIG_ANON_VMA_NAME
	}
	smaps := s.proc(t, "smaps")
	for at, want := range map[uint64][2]string{
		base:          {name, "rd wr mr mw me lf ac wf dd dc nh"},
		base + 2*size: {"", "mr mw me nr rr"},
		base + 4*size: {"/dev/zero (deleted)", "rd wr sh mr mw me ms"},
		base + 8*size: {"/memfd:a memfd (deleted)", "rd wr sh mr mw me ms"},
	} {
		_, text, ok := strings.Cut("\n"+smaps, fmt.Sprintf("\n%x-", at))
		if !ok {
			t.Errorf("nothing is mapped at %#x", at)
			continue
		}
		line, text, _ := strings.Cut(text, "\n")
		flags := strings.Fields(field(text, "VmFlags"))
		for _, flag := range strings.Fields(want[1]) {
			if !slices.Contains(flags, flag) {
				t.Errorf("mapping %#x has the flags %q, not %s", at, flags, flag)
			}
		}
		if !strings.HasSuffix(line, want[0]) {
			t.Errorf("mapping %#x is %q, want %s", at, line, want[0])
		}
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	guards, err := kernel.AppendPages(nil, pagemap, base, base+size, &kernel.PageQuery{All: kernel.PageGuard, Return: kernel.PageGuard})
	if err != nil || len(guards) != 1 || guards[0].Start != base+8*pageSize || guards[0].End != base+10*pageSize {
		t.Errorf("guard pages are at %v: %v", guards, err)
	}
}
