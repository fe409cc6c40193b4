package restore

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
)

const (
	maskBytes    = 8 // of a kernel's sigset_t
	siginfoBytes = 128
	ignored      = 1 // SIG_IGN
)

// lastSignal is SIGRTMAX, 64.
const lastSignal = 64

// setActions sets the signals' actions, the default ones too: what vOS ignores, as by
// nohup, the process has inherited. That of SIGTRAP is left for the end if it is to
// be ignored, as the interpreter's trap would take that back; it is returned.
func (p *process) setActions(actions []image.Action) (trap *image.Action, err error) {
	b := p.batch()
	for signal := 1; signal <= max(lastSignal, len(actions)); signal++ {
		if signal == int(syscall.SIGKILL) || signal == int(syscall.SIGSTOP) {
			continue
		}
		a := &image.Action{}
		if signal <= len(actions) {
			a = &actions[signal-1]
		}
		if signal == int(syscall.SIGTRAP) && a.Handler == ignored {
			trap = a
			continue
		}
		at, err := b.place(encodeAction(a))
		if err != nil {
			return nil, err
		}
		b.add(fmt.Sprintf("set the action of signal %d", signal), syscall.SYS_RT_SIGACTION, uint64(signal), at, 0, maskBytes)
	}
	_, err = b.run()
	return trap, err
}

// encodeAction lays out the kernel's struct sigaction.
func encodeAction(a *image.Action) (b []byte) {
	for _, v := range []uint64{a.Handler, a.Flags, a.Restorer, a.Mask} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// addPending adds the calls by which a thread sends itself what was pending: for itself,
// or for the process.
func (b *batch) addPending(pid, tid int, own, shared []image.Signal) error {
	for _, s := range own {
		at, err := b.place(s)
		if err != nil {
			return err
		}
		b.add("send itself a signal that was pending", sysTgsigqueueinfo, uint64(pid), uint64(tid), uint64(signalNumber(s)), at)
	}
	for _, s := range shared {
		at, err := b.place(s)
		if err != nil {
			return err
		}
		b.add("send itself a signal that was pending", syscall.SYS_RT_SIGQUEUEINFO, uint64(pid), uint64(signalNumber(s)), at)
	}
	return nil
}

// addIntervals adds the start of the timers of setitimer(2).
func (b *batch) addIntervals(intervals [3]image.Interval) error {
	for which, t := range intervals {
		if t.Left == 0 {
			continue
		}
		at, err := b.place(encodeInterval(t, time.Microsecond))
		if err != nil {
			return err
		}
		b.add("start an interval timer", syscall.SYS_SETITIMER, uint64(which), at, 0)
	}
	return nil
}

// encodeInterval lays out struct itimerval or itimerspec, by the unit of its parts of a
// second. What is left is at least one unit, as 0 stops a timer.
func encodeInterval(t image.Interval, unit time.Duration) (b []byte) {
	for _, d := range []time.Duration{t.Every, max(t.Left, unit)} {
		b = binary.LittleEndian.AppendUint64(b, uint64(d/time.Second))
		b = binary.LittleEndian.AppendUint64(b, uint64(d%time.Second/unit))
	}
	return b
}

// signalNumber reads si_signo.
func signalNumber(s image.Signal) int { return int(int32(binary.LittleEndian.Uint32(s))) }
