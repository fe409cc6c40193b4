package descriptor

import (
	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A timer is a timerfd, kept with the time that is left and the ticks that were not
// read. One that was set to a time of its clock fires at that time, though it may have
// passed meanwhile; for others the clock stands still until they are made again.
type timer struct{}

const (
	timerAbsolute = 1 // TFD_TIMER_ABSTIME
	timerCancel   = 2 // TFD_TIMER_CANCEL_ON_SET
)

func (timer) look(*looking, *handle.Handle) []api.Refusal { return nil }

func (timer) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	if err := raw.SettleTimer(); err != nil {
		return err
	}
	settled, err := handle.Read(d.process(h.PID), h.FD)
	if err != nil {
		return err
	}
	now, err := kernel.ClockNow(clockRead(settled.Timer.Clock))
	if err != nil {
		return err
	}
	t := settled.Timer
	f.TimerFD = &image.TimerFD{Clock: t.Clock, Ticks: t.Ticks, Absolute: t.Flags&timerAbsolute != 0, CancelOnSet: t.Flags&timerCancel != 0,
		Time: image.Interval{Every: t.Interval, Left: t.Remaining}, Now: now}
	return nil
}

// clockRead returns the clock to read for one that also wakes the machine.
func clockRead(clock int) int {
	return map[int]int{0: 0, 1: 1, 7: 7, 8: 0, 9: 7}[clock]
}

func (timer) plan(*planning, int) []api.Refusal { return nil }

func (timer) open(o *Opened, i int) (kernel.Raw, error) {
	t := o.image.Files[i].TimerFD
	return withFlags(o, i, func() (kernel.Raw, error) {
		raw, err := kernel.NewTimer(t.Clock)
		if err != nil {
			return -1, err
		}
		if err := setTimer(raw, t); err != nil {
			_ = raw.Close()
			return -1, err
		}
		return raw, nil
	})
}

func setTimer(raw kernel.Raw, t *image.TimerFD) error {
	flags, first := 0, t.Time.Left
	if first <= 0 && t.Ticks > 0 {
		first = t.Time.Every // it had expired: the kernel goes on with it when it is read
	}
	if t.Absolute {
		now, err := kernel.ClockNow(clockRead(t.Clock))
		if err != nil {
			return err
		}
		// A clock that shows less has begun anew, with the machine: its times
		// mean nothing there.
		if now >= t.Now || clockRead(t.Clock) == 0 {
			flags |= timerAbsolute
			if first > 0 {
				first += t.Now
			}
		}
	}
	if t.CancelOnSet {
		flags |= timerCancel
	}
	if err := raw.SetTimer(flags, max(0, first), max(0, t.Time.Every)); err != nil {
		return err
	}
	if t.Ticks > 0 {
		return raw.SetTicks(t.Ticks)
	}
	return nil
}
