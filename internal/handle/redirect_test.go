package handle

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/tracee"
)

func TestParseResource(t *testing.T) {
	for text, want := range map[string]resource{
		"file:/var/log/x":      {kind: toFile, path: "/var/log/x"},
		"append:/a:b":          {kind: toAppend, path: "/a:b"},
		"tcp:db:6379":          {kind: toTCP, host: "db", port: "6379"},
		"tcp:[::1]:80":         {kind: toTCP, host: "::1", port: "80"},
		"unix:/run/x.sock":     {kind: toUnix, path: "/run/x.sock"},
		"unix:@abstract":       {kind: toUnix, path: "@abstract"},
		"fd:12:0":              {kind: toFD, pid: 12},
		"":                     {},
		"file":                 {},
		"file:":                {},
		"file:relative":        {},
		"append:@x":            {},
		"file:/a\x00b":         {},
		"tcp:6379":             {},
		"tcp::6379":            {},
		"tcp:db:0":             {},
		"tcp:db:65536":         {},
		"tcp:db:http":          {},
		"unix:@":               {},
		"fd:12":                {},
		"fd:0:1":               {},
		"fd:12:-1":             {},
		"fd:x:1":               {},
		"http://example.com/":  {},
		"fd:12:99999999999999": {},
	} {
		got, err := parseResource(text)
		if got != want {
			t.Errorf("%q is %+v, want %+v", text, got, want)
		}
		if wrong := want == (resource{}); wrong != errors.Is(err, api.ErrUsage) {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func exampleRecord() *redirectRecord {
	return &redirectRecord{ID: [16]byte{1, 2, 255}, Begun: time.Unix(1700000000, 42), New: identity{8, 99}, Was: identity{9, 1}, Old: identity{7, 1 << 40},
		Kept: 63, Staged: 8, Previous: 61, Record: 62, Number: 5, Back: true, Bound: []int{5, 7}, Others: []otherProcess{{12, 34}, {13, 35}},
		From: "/var/log/x", To: "append:/y"}
}

func TestRecordIsReadAsWritten(t *testing.T) {
	want := exampleRecord()
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i := range b {
		changed := bytes.Clone(b)
		changed[i] ^= 1
		if _, err := decodeRecord(changed); err == nil {
			t.Errorf("a record with byte %d changed is read", i)
		}
		if _, err := decodeRecord(b[:i]); err == nil {
			t.Errorf("%d bytes of a record are read", i)
		}
	}
	if _, err := decodeRecord(append(b, 0)); err == nil {
		t.Error("a record with a byte more is read")
	}
}

func TestRecordIsBounded(t *testing.T) {
	r := exampleRecord()
	r.From = strings.Repeat("x", 1<<17)
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeRecord(b); err != nil || len(got.From) != maxRecordText {
		t.Errorf("a long text: %v", err)
	}
	r.Bound = make([]int, maxBound+1)
	if _, err := r.encode(); err == nil {
		t.Error("a record of too many descriptors is written")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := exampleRecord().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(recordMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("read and written anew it is %x, %v; it was %x", again, err, b)
		}
	})
}

func TestRegistrationsOf(t *testing.T) {
	text := "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t10\n" +
		"tfd:        5 events:       19 data:                5  pos:0 ino:1f sdev:8\n" +
		"tfd:        5 events: 80000019 data: ffffffffffffffff  pos:0 ino:2a sdev:8\n" +
		"tfd:        7 events:       19 data:                7  pos:0 ino:2ab sdev:8\n" +
		"tfd:        9 events: c0000000 data:                9  pos:0 ino:2a sdev:8\n"
	got, err := parseRegistrationsOf([]byte(text), 0x2a)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].FD != 5 || got[0].nth != 1 || got[0].Events != 0x80000019 || got[0].Data != 1<<64-1 || got[1].FD != 9 || got[1].nth != 0 {
		t.Fatalf("registrations: %+v", got)
	}
	if r := (registered{events: got[1].Events}); !r.disarmed() {
		t.Error("a one-shot registration without events is not disarmed")
	}
	if r := (registered{events: got[0].Events}); r.disarmed() {
		t.Error("one by edges is disarmed")
	}
	if _, err := parseRegistrationsOf([]byte("tfd: x ino:2a sdev:8\n"), 0x2a); err == nil {
		t.Error("a malformed line is read")
	}
}

func TestRebindCallsInOrder(t *testing.T) {
	calls := rebindCalls([]bound{{5, false}, {7, true}}, []registered{{epoll: 3, fd: 5}, {epoll: 4, fd: 7}}, 60, 0x2002, 0x1000)
	var got []string
	for _, c := range calls {
		got = append(got, fmt.Sprintf("%d %x", c.Number, c.Args[:4]))
	}
	want := []string{
		fmt.Sprintf("%d [3 2 5 0]", syscall.SYS_EPOLL_CTL), fmt.Sprintf("%d [4 2 7 0]", syscall.SYS_EPOLL_CTL),
		fmt.Sprintf("%d [5 4 2 0]", syscall.SYS_FCNTL), // without O_ASYNC
		fmt.Sprintf("%d [3c 5 0 0]", sysDup3), fmt.Sprintf("%d [3c 7 80000 0]", sysDup3),
		fmt.Sprintf("%d [5 4 2002 0]", syscall.SYS_FCNTL),
		fmt.Sprintf("%d [3 1 5 1000]", syscall.SYS_EPOLL_CTL), fmt.Sprintf("%d [4 1 7 100c]", syscall.SYS_EPOLL_CTL),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// closed returns the descriptors that calls close.
func closedBy(calls []tracee.Call) (fds []int) {
	for _, c := range calls {
		if c.Number == syscall.SYS_CLOSE {
			fds = append(fds, int(c.Args[0]))
		}
	}
	return fds
}

func TestWhatIsClosed(t *testing.T) {
	first := placed{record: 10, staged: 11, sockets: [2]int{8, 9}, marker: -1, kept: 63, previous: 63, recordAt: 62}
	again := placed{record: 10, staged: 11, sockets: [2]int{8, 9}, marker: -1, kept: 63, previous: 61, recordAt: 62}
	for name, test := range map[string]struct{ got, want []int }{
		"first, done":           {closedBy(first.finishCalls(false, false)), []int{11, 10, 8, 9}},
		"first, undone":         {closedBy(first.undoCalls(false)), []int{11, 63, 10, 8, 9}},
		"another, done":         {closedBy(again.finishCalls(false, true)), []int{11, 61, 10, 8, 9}},
		"another, undone":       {closedBy(again.undoCalls(true)), []int{11, 61, 10, 8, 9}},
		"back, done":            {closedBy(again.finishCalls(true, true)), []int{11, 61, 63, 62, 10, 8, 9}},
		"nothing came in":       {closedBy(nothingPlacedCopy().undoCalls(false)), nil},
		"sockets alone, undone": {closedBy((&placed{-1, -1, [2]int{8, 9}, 7, -1, -1, -1}).undoCalls(false)), []int{8, 9, 7}},
	} {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func nothingPlacedCopy() *placed { p := nothingPlaced; return &p }

func TestMeeting(t *testing.T) {
	var failure = errors.New("failure")
	for name, test := range map[string]struct {
		fails, leaves, last bool
	}{
		"all go on":        {},
		"one fails":        {fails: true},
		"one never comes":  {leaves: true},
		"the last can't":   {last: true},
		"fails and leaves": {fails: true, leaves: true},
	} {
		t.Run(name, func(t *testing.T) {
			const members = 5
			m := newMeeting(members)
			results := make([]error, members)
			ran := 0
			var all sync.WaitGroup
			for i := range members {
				all.Go(func() {
					if test.leaves && i == 3 {
						results[i] = failure
						m.leave(failure)
						return
					}
					var own error
					if test.fails && i == 1 {
						own = failure
					}
					results[i] = m.meet(own, func() error {
						ran++
						if test.last {
							return failure
						}
						return nil
					})
					if results[i] == nil {
						results[i] = m.meet(nil, nil)
					}
					m.leave(results[i])
				})
			}
			all.Wait()
			good := !test.fails && !test.leaves && !test.last
			for i, err := range results {
				if (err == nil) != good || !good && !errors.Is(err, failure) {
					t.Errorf("member %d: %v", i, err)
				}
			}
			if runs := ran > 0; runs != (good || test.last) || ran > 1 {
				t.Errorf("what the last one does was done %d times", ran)
			}
		})
	}
}
