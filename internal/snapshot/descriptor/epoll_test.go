package descriptor

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/tracee"
)

func (h *held) newEpoll(number int) {
	h.t.Helper()
	fd := h.call(syscall.SYS_EPOLL_CREATE1, 0)
	if fd != number {
		h.call(sysDup3, fd, number, 0)
		h.call(sysClose, fd)
	}
}

func (h *held) watch(epoll, fd int, events uint32, data uint64) {
	h.t.Helper()
	h.call(sysEpollCtl, epoll, epollAdd, fd, epollEvent(events, data))
}

// fired returns the data of what is ready, sorted, with the events.
func (h *held) fired(epoll int) []string {
	h.t.Helper()
	b := make([]byte, 12*64)
	n := h.call(sysEpollWait, epoll, b, 64, 0)
	all := []string{}
	for i := range n {
		events, data := binary.NativeEndian.Uint32(b[12*i:]), binary.NativeEndian.Uint64(b[12*i+4:])
		all = append(all, fmt.Sprintf("%x:%x", data, events))
	}
	slices.Sort(all)
	return all
}

func (h *held) fires(epoll int, want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.fired(epoll), cmpEmpty); diff != "" {
		h.t.Errorf("epoll %d (-want +got):\n%s", epoll, diff)
	}
}

var cmpEmpty = cmp.Transformer("empty", func(s []string) string { return strings.Join(s, " ") })

const (
	epollIn  = 1
	epollOut = 4
	epollET  = 1 << 31
)

func TestEpollsAreKept(t *testing.T) {
	h := newHeld(t)
	h.newEpoll(50)
	h.newEpoll(51) // nested in 50, and made before what it watches
	h.pipe(10, 11, nonBlock)
	h.pipe(12, 13, nonBlock)
	h.pipe(14, 15, nonBlock)
	h.pipe(16, 17, nonBlock)
	h.watch(50, 10, epollIn, 1<<60|10)
	h.watch(50, 12, epollIn|epollET, 12)
	h.watch(50, 14, epollIn|epollOneshot, 14)
	h.watch(50, 15, epollOut|epollOneshot, 15)
	h.watch(50, 51, epollIn, 51)
	h.watch(51, 16, epollIn, 16)
	h.watch(51, 13, epollOut|1<<28, 13)
	h.call(sysDup3, 50, 60, 0)
	h.fires(50, "33:1", "f:4") // the registration of 15 is disarmed by it
	h.fires(50, "33:1")

	h = roundTrip(t, h)

	h.shares(50, 60, true)
	h.fires(51, "d:4")
	h.fires(60, "33:1")
	h.write(11, "x")
	h.write(13, "x")
	h.fires(50, "100000000000000a:1", "33:1", "c:1")
	h.fires(50, "100000000000000a:1", "33:1") // 12 is told of by edge
	h.write(15, "x")
	h.fires(50, "100000000000000a:1", "33:1", "e:1")
	h.fires(50, "100000000000000a:1", "33:1")
	h.call(sysEpollCtl, 50, 3, 15, epollEvent(epollOut, 99)) // EPOLL_CTL_MOD: it is still there
	h.fires(50, "100000000000000a:1", "33:1", "63:4")
	h.call(sysEpollCtl, 50, 2, 51, 0)
	h.fires(50, "100000000000000a:1", "63:4")
}

func TestEpollsThatAreRefused(t *testing.T) {
	for name, test := range map[string]func(h *held){
		"closed":   func(h *held) { h.call(sysDup3, 10, 30, 0); h.call(sysClose, 10) },
		"replaced": func(h *held) { h.call(sysDup3, 10, 30, 0); h.call(sysDup3, 11, 10, 0) },
		"another": func(h *held) {
			h.call(sysDup3, 10, 30, 0)
			h.call(sysDup3, 11, 10, 0)
			h.watch(50, 10, epollOut, 2)
		},
	} {
		h := newHeld(t)
		h.newEpoll(50)
		h.pipe(10, 11, 0)
		h.watch(50, 10, epollIn, 1)
		test(h)
		found := refused(t, h, codeStale)
		if len(found) == 1 && (found[0].Subject != subject(h.pid, 50) || !strings.Contains(found[0].Detail, "descriptor 10")) {
			t.Errorf("%s: %v", name, found)
		}
	}
	h := newHeld(t)
	h.newEpoll(50)
	h.pipe(10, 11, nonBlock)
	h.write(11, "x")
	h.watch(50, 10, epollIn|epollOneshot, 1)
	h.fires(50, "1:1")
	h.wants(10, "x")
	refusedNow(t, h, codeOneshot)
}

// room is a process in which little has room at a time.
type room struct {
	*held
	left, runs int
}

func (r *room) Place(data []byte) (uint64, error) {
	if r.left -= len(data); r.left < 0 {
		return 0, errNoRoom
	}
	return r.held.Place(data)
}

var errNoRoom = fmt.Errorf("full: %w", remote.ErrNoRoom)

func (r *room) Run(calls []tracee.Call) ([]uint64, error) {
	r.left, r.runs = 60, r.runs+1
	return r.held.Run(calls)
}

func TestEpollWithLittleRoom(t *testing.T) {
	h := newHeld(t)
	h.newEpoll(5)
	var want []string
	for i := range 40 {
		h.pipe(100+2*i, 101+2*i, nonBlock)
		h.watch(5, 101+2*i, epollOut, uint64(i))
		want = append(want, fmt.Sprintf("%x:4", i))
	}
	slices.Sort(want)
	im := keep(t, h)
	h.kill()
	h = newHeld(t)
	o, err := Open(im, Restoring{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r := &room{held: h, left: 60}
	if err := o.Give(r, &im.Processes[0]); err != nil {
		t.Fatal(err)
	}
	if r.runs < 8 {
		t.Errorf("%d runs", r.runs)
	}
	h.fires(5, want...)
}
