package procfs

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const statSample = "4711 (a) b (c\n) R 1 2) S 1 4711 4711 34816 4711 4194560 1234 99 5 0 17 4 0 0 20 0 12 0 86400 " +
	"223113216 1409 18446744073709551615 1 1 0 0 0 0 0 16781312 134235881 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"

func TestParseStat(t *testing.T) {
	got, err := ParseStat([]byte(statSample))
	if err != nil {
		t.Fatal(err)
	}
	want := Stat{
		PID: 4711, Command: "a) b (c\n) R 1 2", State: 'S', PPID: 1, ProcessGrp: 4711, Session: 4711,
		Terminal: 34816, Flags: 4194560, MinorFaults: 1234, MajorFaults: 5, UserTicks: 17, SystemTicks: 4,
		Threads: 12, StartTicks: 86400, VirtualSize: 223113216, ResidentSet: 1409, ExitSignal: 17,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if age := got.Age(1000 * time.Second); age != 136*time.Second {
		t.Errorf("age %v, want 136s", age)
	}
	thread, err := ParseStat([]byte("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 18446744073709551615 0 0 0 0 0 0 0 2147483647 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"))
	if err != nil || !thread.KernelThread() {
		t.Errorf("%+v, %v: want a kernel thread", thread, err)
	}
	for _, text := range []string{"", "1", "1 (", "1 ()", ")(", "1 (a) ", "1 (a) S x", "1 (a) S 1 2 3", "x (a) S" + strings.Repeat(" 1", 30)} {
		if _, err := ParseStat([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

const statusSample = `Name:	a\nTgid:\t1\\b
Umask:	0022
State:	t (tracing stop)
Tgid:	4711
Ngid:	0
Pid:	4712
PPid:	1
TracerPid:	99
Uid:	1000	1001	1002	1003
Gid:	100	101	102	103
FDSize:	64
Groups:	 
NStgid:	4711	7
NSpid:	4712	8	1
VmPeak:	    2520 kB
VmHWM:	    1300 kB
VmRSS:	    1200 kB
Threads:	64
SigQ:	3/15442
SigPnd:	0000000000000001
ShdPnd:	8000000000000000
SigBlk:	0000000000010000
SigIgn:	0000000000001000
SigCgt:	00000001800004ec
CapInh:	0000000000000001
CapPrm:	0000000000000002
CapEff:	000001ffffffffff
CapBnd:	0000000000000004
CapAmb:	0000000000000008
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	3
x86_Thread_features:	shstk wrss 
x86_Thread_features_locked:	shstk 
`

func TestParseStatus(t *testing.T) {
	got, err := ParseStatus([]byte(statusSample))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Name: "a\nTgid:\\t1\\b", State: 't', TGID: 4711, PID: 4712, PPID: 1, TracerPID: 99,
		UIDs: IDs{1000, 1001, 1002, 1003}, GIDs: IDs{100, 101, 102, 103}, NSPIDs: []int{4712, 8, 1},
		Slots:   64,
		Threads: 64, QueuedSignals: 3, QueueLimit: 15442,
		Pending: 1, SharedPending: 1 << 63, Blocked: 1 << 16, Ignored: 1 << 12, Caught: 0x1800004ec,
		Umask: 0o22, CapInheritable: 1, CapPermitted: 2, CapBounding: 4, CapAmbient: 8,
		CapEffective: 0x1ffffffffff, NoNewPrivs: true, Seccomp: SeccompFilter, SeccompFilters: 3,
		ThreadFeatures: []string{"shstk", "wrss"}, PeakResident: 1300 << 10, Resident: 1200 << 10,
	}
	// The kernel escapes the newline and the backslash, a tab it leaves.
	want.Name = "a\nTgid:" + `\t` + "1" + `\b`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !got.Caught.Has(11) || got.Caught.Has(9) || got.Caught.Has(0) || got.SharedPending.Has(65) || !got.SharedPending.Has(64) {
		t.Errorf("signals of %x and %x", got.Caught, got.SharedPending)
	}
	for _, text := range []string{"", "Name:\ta\n", "Name:\ta\nPid:\tx\n", "Name:\ta\nPid:\t1\nSigQ:\t1/x\n", "Name:\ta\nPid:\t1\nNSpid:\t1\tx\n"} {
		if _, err := ParseStatus([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestParseSyscall(t *testing.T) {
	for text, want := range map[string]Syscall{
		"running\n":           {Running: true, Number: -1},
		"-1 0x7ffd0 0x7f00\n": {Number: -1, StackPtr: 0x7ffd0, ProgramPC: 0x7f00},
		"0 0x3 0xffffffffffffffff 0x400 0x0 0x5 0x6 0x7ffd0 0x7f00\n": {
			InCall: true, Args: [6]uint64{3, 1<<64 - 1, 0x400, 0, 5, 6}, StackPtr: 0x7ffd0, ProgramPC: 0x7f00,
		},
	} {
		if got, err := ParseSyscall([]byte(text)); got != want || err != nil {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1 0x1", "-1 12 0x3", "x"} {
		if _, err := ParseSyscall([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestParseMaps(t *testing.T) {
	const file = "7f0000000000-7f0000001000 r-xp 00002000 fd:12 1048577                    "
	for line, want := range map[string]Mapping{
		file + "/usr/lib/libz.so.1": {Path: "/usr/lib/libz.so.1", Kind: KindFile},
		file + "/a b  c ":           {Path: "/a b  c ", Kind: KindFile},
		file + `/a\012b`:            {Path: "/a\nb", Kind: KindFile},
		file + `/a\b\134`:           {Path: `/a\b\134`, Kind: KindFile},
		file + "/a (deleted)":       {Path: "/a", Kind: KindFile, Deleted: true},
		file + "/a (deleted) (deleted)": {
			Path: "/a (deleted)", Kind: KindFile, Deleted: true,
		},
		file + "/memfd:x (deleted)":            {Path: "/memfd:x", Kind: KindMemfd, Deleted: true},
		file + "/memfd:x":                      {Path: "/memfd:x", Kind: KindFile},
		file + "/dev/zero (deleted)":           {Path: "/dev/zero", Kind: KindSharedAnonymous, Deleted: true},
		file + "/dev/zero":                     {Path: "/dev/zero", Kind: KindFile},
		file + "/SYSV00000000 (deleted)":       {Path: "/SYSV00000000", Kind: KindSysV, Deleted: true},
		file + "/SYSVINIT (deleted)":           {Path: "/SYSVINIT", Kind: KindFile, Deleted: true},
		file + "anon_inode:[perf_event]":       {Path: "anon_inode:[perf_event]", Kind: KindAnonInode},
		file + "/[heap]":                       {Path: "/[heap]", Kind: KindFile},
		file + "[anon_shmem:x]":                {Path: "[anon_shmem:x]", Kind: KindSharedAnonymous},
		file:                                   {Kind: KindFile},
		strings.TrimRight(file, " "):           {Kind: KindFile},
		file + "/é\xff":                        {Path: "/é\xff", Kind: KindFile},
		file + "/a 7f00-7f01 r--p 0 0:0 0  /b": {Path: "/a 7f00-7f01 r--p 0 0:0 0  /b", Kind: KindFile},
	} {
		want.Start, want.End, want.Perms, want.Offset = 0x7f0000000000, 0x7f0000001000, Read|Exec, 0x2000
		want.DevMajor, want.DevMinor, want.Inode = 0xfd, 0x12, 1048577
		got, err := ParseMaps(nil, []byte(line+"\n"))
		if err != nil {
			t.Errorf("%q: %v", line, err)
		} else if diff := cmp.Diff([]Mapping{want}, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
	for name, kind := range map[string]Kind{
		"": KindAnonymous, "[heap]": KindHeap, "[stack]": KindStack, "[vdso]": KindVDSO, "[vvar]": KindVVar,
		"[vvar_vclock]": KindVVar, "[vsyscall]": KindVsyscall, "[anon:libc malloc]": KindNamedAnonymous, "[uprobes]": KindSpecial,
	} {
		line := "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  " + name + "\n"
		got, err := ParseMaps(nil, []byte(line))
		if err != nil || len(got) != 1 || got[0].Kind != kind || got[0].Path != name || got[0].End != 0xffffffffff601000 {
			t.Errorf("%q: %+v, %v; want %v", name, got, err, kind)
		}
	}
	before := []Mapping{{Start: 1}}
	for _, line := range []string{
		"\n", "x\n", "1000\n", "1000-2000\n", "1000-2000 r-xp\n", "1000-2000 r-xp 0 fd:1\n", "1000-2000 r-xp 0 fd 1 /a\n",
		"2000-1000 r-xp 0 0:0 0\n", "1000-2000 rxwp 0 0:0 0\n", "1000-2000 r-x 0 0:0 0\n", "10000000000000000-2 r-xp 0 0:0 0\n",
		"1000-2000 r-xp 0 100000000:0 0\n", "1000-2000 r-xp 0 0:0 9x /a\n",
	} {
		if got, err := ParseMaps(before, []byte(line)); err == nil || len(got) != 1 {
			t.Errorf("%q: %v, %v; want an error", line, got, err)
		}
	}
}

func TestPermsString(t *testing.T) {
	for _, want := range []string{"---p", "r--p", "r-xp", "rw-s", "rwxs", "---s"} {
		got, err := ParseMaps(nil, []byte("1000-2000 "+want+" 0 0:0 0\n"))
		if err != nil || got[0].Perms.String() != want {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
}

func TestParseSmallFiles(t *testing.T) {
	if got := ParseCmdline([]byte("a\x00\x00b\nc\x00")); cmp.Diff([]string{"a", "", "b\nc"}, got) != "" {
		t.Errorf("cmdline %q", got)
	}
	if got := ParseCmdline(nil); got != nil {
		t.Errorf("no cmdline %q", got)
	}
	if got, err := ParsePSS([]byte("5-7 ---p 0 0:0 0 [rollup]\nRss:  9 kB\nPss:                1234 kB\nPss_Dirty: 3 kB\n")); got != 1234<<10 || err != nil {
		t.Errorf("pss %d, %v", got, err)
	}
	if _, err := ParsePSS([]byte("Rss: 1 kB\n")); err == nil {
		t.Error("no error without a Pss line")
	}
	if got, err := parseUptime([]byte("350735.47 234388.90\n")); got != 350735470*time.Millisecond || err != nil {
		t.Errorf("uptime %v, %v", got, err)
	}
	if got, err := ParseNamespace("mnt:[4026531841]"); got != 4026531841 || err != nil {
		t.Errorf("namespace %d, %v", got, err)
	}
	if _, err := ParseNamespace("mnt:4026531841"); err == nil {
		t.Error("no error for a namespace without brackets")
	}
	want := TimeOffsets{Monotonic: -time.Second + 5, Boottime: 86400 * time.Second}
	if got, err := ParseTimeOffsets([]byte("monotonic          -1         5\nboottime        86400         0\n")); got != want || err != nil {
		t.Errorf("offsets %v, %v", got, err)
	}
}

// Whatever the bytes, parsers return.
func FuzzParse(f *testing.F) {
	f.Add([]byte(statSample))
	f.Add([]byte(statusSample))
	f.Add([]byte("0 0x3 0x0 0x400 0x0 0x5 0x6 0x7ffd0 0x7f00\n"))
	f.Add([]byte("7f00-7f01 r-xp 00002000 fd:12 77   /a\\012b (deleted)\n7f01-7f02 rw-p 0 00:00 0\n"))
	f.Add([]byte("12:pids:/docker/" + id1 + "\n0::/system.slice/a.slice/b.service/c\n"))
	f.Add([]byte("monotonic -1 5\nPss: 12 kB\nmnt:[12]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ParseStat(data)
		ParseStatus(data)
		ParseSyscall(data)
		ParseAuxv(data)
		ParseCmdline(data)
		ParsePSS(data)
		ParseNamespace(string(data))
		ParseTimeOffsets(data)
		parseUptime(data)
		c := ParseCgroup(string(data))
		if strings.Contains(c.Unit, "/") || strings.Contains(c.Container, "/") {
			t.Errorf("names with a slash: %+v", c)
		}
		maps, err := ParseMaps(nil, data)
		if err == nil && len(maps) != len(bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))) && len(data) > 0 {
			t.Errorf("%d mappings of %q", len(maps), data)
		}
		for _, m := range maps {
			if m.End < m.Start || strings.Contains(m.Path, "\n") && !bytes.Contains(data, []byte(`\012`)) {
				t.Errorf("mapping %+v of %q", m, data)
			}
		}
	})
}

// manyMappings is the maps file of a large program: modules of four mappings
// each, and anonymous memory between them.
func manyMappings(lines int) []byte {
	var b bytes.Buffer
	for i := range lines {
		at := 0x7f0000000000 + i*0x10000
		fmt.Fprintf(&b, "%x-%x r-xp %08x fd:01 %-26d ", at, at+0x8000, i%5*0x1000, 1000+i/5)
		if i%5 != 4 {
			fmt.Fprintf(&b, "/usr/lib/x86_64-linux-gnu/libmodule%d.so.1", i/5)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func BenchmarkParseMaps5000(b *testing.B) {
	text := manyMappings(5000)
	var maps []Mapping
	var err error
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if maps, err = ParseMaps(maps[:0], text); err != nil || len(maps) != 5000 {
			b.Fatal(len(maps), err)
		}
	}
}

func BenchmarkStat(b *testing.B) {
	p := self(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Stat(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMaps(b *testing.B) {
	_, p := sleeper(b)
	b.ReportAllocs()
	var maps []Mapping
	var err error
	for b.Loop() {
		if maps, err = p.AppendMaps(maps[:0]); err != nil {
			b.Fatal(err)
		}
	}
}
