package descriptor

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

func (h *held) timer(number, clock, flags int, first, every time.Duration) {
	h.t.Helper()
	fd := h.call(syscall.SYS_TIMERFD_CREATE, clock, nonBlock)
	h.call(sysDup3, fd, number, 0)
	h.call(sysClose, fd)
	var spec []byte
	for _, d := range []time.Duration{every, first} {
		spec = binary.NativeEndian.AppendUint64(spec, uint64(d/time.Second))
		spec = binary.NativeEndian.AppendUint64(spec, uint64(d%time.Second))
	}
	h.call(syscall.SYS_TIMERFD_SETTIME, number, flags, spec, 0)
}

func TestTimersAreKept(t *testing.T) {
	h := newHeld(t)
	real, err := kernel.ClockNow(0)
	if err != nil {
		t.Fatal(err)
	}
	h.timer(50, 1, 0, 0, 0)                                 // never set
	h.timer(51, 1, 0, 1000*time.Second, 5*time.Second)      // waits
	h.timer(52, 7, 0, time.Nanosecond, 0)                   // has fired, once
	h.timer(53, 1, 0, time.Nanosecond, 1000*time.Second)    // has fired, and will again
	h.timer(54, 0, timerAbsolute, real+1000*time.Second, 0) // at a time of day
	h.timer(55, 0, timerAbsolute|timerCancel, real+2000*time.Second, 0)
	h.call(sysDup3, 51, 60, 0)
	for _, fd := range []int{52, 53} {
		for fired := false; !fired; {
			r, err := handle.Read(h.process(), fd)
			if err != nil {
				t.Fatal(err)
			}
			fired = r.Timer.Ticks > 0
		}
	}

	before := seen(t, h)
	im := keep(t, h)
	h.kill()
	h = again(t, im, Restoring{})
	after := seen(t, h)
	left := cmpopts.IgnoreFields(handle.Timer{}, "Remaining")
	if diff := cmp.Diff(before, after, ignored, left); diff != "" {
		t.Errorf("(-kept +restored):\n%s", diff)
	}
	for i := range after {
		was, is := before[i].Timer.Remaining, after[i].Timer.Remaining
		// That of 53 is only known once its ticks are counted.
		if wrong := is > was || (is == 0) != (was == 0); wrong && after[i].FD != 53 {
			t.Errorf("timer %d had %v left, and has %v", after[i].FD, was, is)
		}
		if after[i].FD == 53 && (is <= 0 || is > 1000*time.Second) {
			t.Errorf("the periodic one has %v left", is)
		}
	}
	h.shares(51, 60, true)
	h.wants(52, "\x01\x00\x00\x00\x00\x00\x00\x00")
	h.wants(53, "\x01\x00\x00\x00\x00\x00\x00\x00")
	for _, fd := range []int{50, 51, 52, 53, 54, 55} {
		if _, err := h.read(fd, 8); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("timer %d: %v", fd, err)
		}
	}
}

// TestTimersOfClocks: what was set to a time of a clock fires when that time has passed
// meanwhile, but not where the clock has begun anew.
func TestTimersOfClocks(t *testing.T) {
	now, err := kernel.ClockNow(1)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		timer image.TimerFD
		fires bool
	}{
		"passed":    {image.TimerFD{Clock: 1, Absolute: true, Now: now - 20, Time: image.Interval{Left: 10}}, true},
		"relative":  {image.TimerFD{Clock: 1, Now: now - 20*time.Hour, Time: image.Interval{Left: 10 * time.Hour}}, false},
		"new clock": {image.TimerFD{Clock: 1, Absolute: true, Now: now + time.Hour, Time: image.Interval{Left: 10 * time.Hour}}, false},
		"of day":    {image.TimerFD{Clock: 0, Absolute: true, Now: time.Hour, Time: image.Interval{Left: 10 * time.Hour}}, true},
	} {
		im := &image.Image{Files: []image.File{{Kind: "timerfd", Flags: nonBlock, TimerFD: &test.timer}},
			Processes: []image.Process{{PID: 1, Descriptors: []image.Descriptor{{Number: 3}}}}}
		h := again(t, im, Restoring{})
		_, err := h.read(3, 8)
		if fired := err == nil; fired != test.fires {
			t.Errorf("%s: fired %v", name, fired)
		}
	}
}

func TestSignalfdsAreKept(t *testing.T) {
	h := newHeld(t)
	mask := make([]byte, 8)
	binary.NativeEndian.PutUint64(mask, 1<<(syscall.SIGUSR1-1)|1<<(syscall.SIGHUP-1))
	fd := h.call(syscall.SYS_SIGNALFD4, -1, mask, 8, nonBlock)
	h.call(sysDup3, fd, 9, syscall.O_CLOEXEC)
	h.newEpoll(20)
	h.watch(20, 9, epollIn, 9)

	h = roundTrip(t, h)

	h.call(syscall.SYS_RT_SIGPROCMASK, 0, mask, 0, 8)
	h.call(syscall.SYS_KILL, h.pid, int(syscall.SIGUSR1))
	h.fires(20, "9:1")
	got, err := h.read(9, 128)
	if err != nil || len(got) != 128 || got[0] != byte(syscall.SIGUSR1) {
		t.Errorf("read %q, error %v", got, err)
	}
}
