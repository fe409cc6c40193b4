package handle

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/kernel"
)

const common = "pos:\t448\nflags:\t02102001\nmnt_id:\t27\nino:\t77\n"

func TestParseInfo(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want info
	}{
		"file": {"", info{}},
		"locks": {
			"lock:\t1: FLOCK  ADVISORY  WRITE 14638 fe:00:9977906 0 EOF\nlock:\t2: POSIX  MANDATORY READ -1 fe:00:9977940 5 14\n",
			info{locks: []Lock{
				{Type: "FLOCK", Mode: "WRITE", PID: 14638, End: -1},
				{Type: "POSIX", Mode: "READ", Mandatory: true, PID: -1, Start: 5, End: 14},
			}},
		},
		"epoll": {
			"tfd:        4 events: 80000019 data: ffff0000deadbeef  pos:12 ino:52e508 sdev:fe00002\ntfd:  5 events: 1 data: 7\n",
			info{kind: KindEpoll, epoll: []Registration{
				{FD: 4, Events: 0x80000019, Data: 0xffff0000deadbeef, Offset: 12, Inode: 0x52e508, Device: kernel.DeviceNumber(254, 2)},
				{FD: 5, Events: 1, Data: 7},
			}},
		},
		"eventfd": {
			"eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n",
			info{kind: KindEventfd, event: Event{31, true}},
		},
		"timerfd": {
			"clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (8, 982601744)\nit_interval: (5, 0)\n",
			info{kind: KindTimerfd, timer: Timer{1, 3, 1, 8982601744 * time.Nanosecond, 5 * time.Second}},
		},
		"signalfd": {"sigmask:\t0000000000000200\n", info{kind: KindSignalfd, signals: 1 << 9}},
		"pidfd":    {"Pid:\t-1\nNSpid:\t-1\n", info{kind: KindPidfd, process: Target{-1}}},
		"inotify": {
			"inotify wd:a ino:3c4a3 sdev:f mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a3c4030000000000\n",
			info{kind: KindInotify, watches: []Watch{{10, kernel.DeviceNumber(0, 15), 0x3c4a3, 2, []byte{0xa3, 0xc4, 3, 0, 0, 0, 0, 0}, 1}}},
		},
		"terminal": {"tty-index:\t5\n", info{terminal: 5}},
		"io_uring": {
			"SqMask:\t0x7\nSqHead:\t0\nCqMask:\t0xf\nUserFiles:\t2\nUserBufs:\t3\nPollList:\n",
			info{kind: KindIOUring, ring: Ring{8, 16, 2, 3}},
		},
		"a driver's own lines": {"drm-driver:\tx\npos:\t9\nflags:\t0\nnothing\n:\n", info{}},
	} {
		test.want.offset, test.want.flags, test.want.mount, test.want.inode, test.want.hasInode = 448, 0o2102001, 27, 77, true
		if test.want.terminal == 0 {
			test.want.terminal = -1
		}
		got, err := parseInfo([]byte(common + test.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.want, *got, cmp.AllowUnexported(info{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, bad := range []string{"", "pos:\t1\n", "flags:\t0\n", "pos:\tx\nflags:\t0\n", common + "tfd: x\n", common + "lock:\t1: FLOCK\n",
		common + "it_value: (1, 1000000000)\n", common + "it_value: (9223372036854775807, 0)\n", common + "sigmask:\t10000000000000000\n"} {
		if in, err := parseInfo([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, in)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte(common + "tfd: 4 events: 19 data: 4 pos:0 ino:5 sdev:f\nit_value: (8, 9)\ninotify wd:1 ino:1 sdev:1 mask:1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		in, err := parseInfo(text)
		if err == nil && len(in.epoll)+len(in.watches)+len(in.locks) > len(text)/8 {
			t.Error("more entries than there can be lines")
		}
	})
}

func TestFlags(t *testing.T) {
	for flags, want := range map[Flags]struct {
		access Access
		names  string
	}{
		0:           {AccessRead, ""},
		0o100001:    {AccessWrite, ""},
		0o2106002:   {AccessReadWrite, "O_APPEND O_CLOEXEC O_NONBLOCK"},
		0o12000000:  {AccessNone, "O_CLOEXEC O_PATH"},
		0o3:         {AccessNone, ""},
		0o4010001:   {AccessWrite, "O_SYNC"},
		0o10001:     {AccessWrite, "O_DSYNC"},
		0o20200002:  {AccessReadWrite, "O_TMPFILE"},
		0o200000:    {AccessRead, "O_DIRECTORY"},
		1 << 40:     {AccessRead, ""},
		0o100040000: {AccessRead, "O_DIRECT"},
	} {
		if got := strings.Join(flags.Names(), " "); got != want.names || flags.Access() != want.access {
			t.Errorf("%#o: %s %q, want %s %q", flags, flags.Access(), got, want.access, want.names)
		}
	}
}

// A name does not make a kind.
func TestKindGoesByTheFile(t *testing.T) {
	for _, test := range []struct {
		stat kernel.FileStat
		link string
		want Kind
	}{
		{kernel.FileStat{Device: kernel.DeviceNumber(254, 0)}, "/memfd:x (deleted)", KindFile},
		{kernel.FileStat{Device: kernel.DeviceNumber(0, 1)}, "/memfd:x (deleted)", KindMemfd},
		{kernel.FileStat{Device: kernel.DeviceNumber(0, 1), Links: 1}, "/memfd:x (deleted)", KindFile},
		{kernel.FileStat{Device: kernel.DeviceNumber(0, 1)}, "/memfd:x", KindFile},
		{kernel.FileStat{}, "/anon_inode:[eventpoll]", KindFile},
		{kernel.FileStat{}, "/tmp/socket:[1]", KindFile},
		{kernel.FileStat{}, "net:[4026531833]", KindNamespace},
	} {
		if got := kindOf(test.stat, test.link, 0); got != test.want {
			t.Errorf("%s with %+v: %s, want %s", test.link, test.stat, got, test.want)
		}
	}
}
