package kernel

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewEvent makes an eventfd with a count of 0.
func NewEvent(semaphore bool) (Raw, error) {
	flags := unix.EFD_CLOEXEC
	if semaphore {
		flags |= unix.EFD_SEMAPHORE
	}
	fd, err := unix.Eventfd(0, flags)
	if err != nil {
		return -1, fmt.Errorf("make an eventfd: %w", err)
	}
	return Raw(fd), nil
}

// NewEpoll makes an epoll instance.
func NewEpoll() (Raw, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make an epoll: %w", err)
	}
	return Raw(fd), nil
}

// NewSignals makes a signalfd of signals; bit 0 of mask is signal 1.
func NewSignals(mask uint64) (Raw, error) {
	fd, err := unix.Signalfd(-1, &unix.Sigset_t{Val: [16]uint64{mask}}, unix.SFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a signalfd: %w", err)
	}
	return Raw(fd), nil
}

// NewTimer makes a timerfd of a clock.
func NewTimer(clock int) (Raw, error) {
	fd, err := unix.TimerfdCreate(clock, unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a timerfd: %w", err)
	}
	return Raw(fd), nil
}

// SettleTimer lets a periodic timerfd that has fired count its ticks up to now and
// run on, as reading its time does: before that it has none left.
func (r Raw) SettleTimer() error {
	var spec unix.ItimerSpec
	if err := unix.TimerfdGettime(int(r), &spec); err != nil {
		return fmt.Errorf("read the timerfd behind descriptor %d: %w", r, err)
	}
	return nil
}

// SetTimer sets a timerfd; flags are those of timerfd_settime(2). A first of 0 sets
// its way of keeping time and lets it rest.
func (r Raw) SetTimer(flags int, first, every time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(first)), Interval: unix.NsecToTimespec(int64(every))}
	if err := unix.TimerfdSettime(int(r), flags, &spec, nil); err != nil {
		return fmt.Errorf("set the timerfd behind descriptor %d: %w", r, err)
	}
	return nil
}

// SetTicks sets how often a timerfd has fired since it was read, at least once.
func (r Raw) SetTicks(ticks uint64) error {
	const setTicks = 0x40085400 // TFD_IOC_SET_TICKS
	if err := ioctlPointer(r, setTicks, &ticks); err != nil {
		return fmt.Errorf("set the ticks of the timerfd behind descriptor %d: %w", r, err)
	}
	return nil
}

// ClockNow returns what a clock of clock_gettime(2) shows.
func ClockNow(clock int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(clock), &ts); err != nil {
		return 0, fmt.Errorf("read clock %d: %w", clock, err)
	}
	return time.Duration(ts.Nano()), nil
}

func ioctlPointer(r Raw, request uintptr, value *uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r), request, uintptr(unsafe.Pointer(value))); errno != 0 {
		return errno
	}
	return nil
}
