package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
)

const (
	sigeventBytes = 64
	// How many timers are made and deleted again, at most, until one has the id that it
	// is to have, where the kernel can't be told (before Linux 6.15).
	maxTimerIDs = 1 << 14
)

// makeTimers makes the timers of timer_create(2). Threads that are told by them exist.
func (p *process) makeTimers(timers []image.Timer) error {
	if len(timers) == 0 {
		return nil
	}
	timers = slices.SortedFunc(slices.Values(timers), func(a, b image.Timer) int { return a.ID - b.ID })
	b := p.batch()
	b.add("choose the ids of timers", syscall.SYS_PRCTL, prctlTimerIDs, 1, 0, 0, 0)
	_, err := b.run()
	chosen := err == nil
	if err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	next := 0
	for _, t := range timers {
		at, err := b.place(encodeTimer(&t))
		if err != nil {
			return err
		}
		id := at + sigeventBytes
		for ; !chosen && next < t.ID; next++ {
			if t.ID > maxTimerIDs {
				return fmt.Errorf("build process %d: timer %d can't have its id on this kernel; use Linux 6.15 or newer", p.pid, t.ID)
			}
			b.add("count timers up", syscall.SYS_TIMER_CREATE, clockMonotonic, 0, id+8)
			b.add("count timers up", syscall.SYS_TIMER_DELETE, uint64(next))
		}
		next++
		b.add(fmt.Sprintf("make timer %d", t.ID), syscall.SYS_TIMER_CREATE, uint64(t.Clock), at, id)
		if t.Time.Left != 0 {
			b.add(fmt.Sprintf("start timer %d", t.ID), syscall.SYS_TIMER_SETTIME, uint64(t.ID), 0, id+16, 0)
		}
		if _, err := b.run(); err != nil {
			return err
		}
		var made [4]byte
		if err := p.Read(id, made[:]); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint32(made[:]); got != uint32(t.ID) {
			return fmt.Errorf("build process %d: timer %d got the id %d", p.pid, t.ID, got)
		}
	}
	if chosen {
		b.add("let the kernel choose the ids of timers", syscall.SYS_PRCTL, prctlTimerIDs, 0, 0, 0, 0)
	}
	_, err = b.run()
	return err
}

const clockMonotonic = 1

// encodeTimer lays out struct sigevent, the timer's id, room for another, and its time.
func encodeTimer(t *image.Timer) []byte {
	b := make([]byte, sigeventBytes)
	binary.LittleEndian.PutUint64(b, t.Value)
	binary.LittleEndian.PutUint32(b[8:], uint32(t.Signal))
	binary.LittleEndian.PutUint32(b[12:], uint32(t.Notify))
	binary.LittleEndian.PutUint32(b[16:], uint32(t.Thread))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.ID))
	b = binary.LittleEndian.AppendUint64(b, 0)
	return append(b, encodeInterval(t.Time, time.Nanosecond)...)
}
