package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
)

// An epoll is kept with its registrations, which are made again in the process itself:
// the kernel knows one by its number and file. One whose number leads to something
// else by now can't be made again, and is refused. What waits with EPOLLET is told
// once more of what is ready, as after any EPOLL_CTL_MOD. What is disarmed by
// EPOLLONESHOT becomes so again by firing, which needs something that is ready.
type epoll struct{}

const (
	epollPrivate uint32 = 1<<28 | 1<<29 | 1<<30 | 1<<31 // EPOLLEXCLUSIVE, WAKEUP, ONESHOT, ET
	epollOneshot uint32 = 1 << 30
	epollAny     uint32 = 1 | 2 | 4 | 0x2000 // EPOLLIN, PRI, OUT, RDHUP

	sysEpollWait = 232
	sysEpollCtl  = 233
	epollAdd     = 1
)

// disarmed reports whether events are those that the kernel leaves of a registration
// with EPOLLONESHOT that has fired.
func disarmed(events uint32) bool { return events&epollOneshot != 0 && events&^epollPrivate == 0 }

func (epoll) look(l *looking, h *handle.Handle) (refusals []api.Refusal) {
	seen := map[int]bool{}
	for _, r := range h.Epoll {
		current, err := handle.Registered(h.PID, h.FD, r.FD)
		if err != nil && !errors.Is(err, handle.ErrClosed) {
			return append(refusals, refusal(codeStale, h, fmt.Sprintf("what it waits for under number %d can't be told: %v", r.FD, err), "run vos as root"))
		}
		if !current && !l.waits(h, r) {
			continue
		}
		if !current || seen[r.FD] {
			refusals = append(refusals, refusal(codeStale, h, fmt.Sprintf("it waits for what descriptor %d led to, which is closed, or leads to something else", r.FD),
				"none is known: the program has forgotten it"))
		}
		seen[r.FD] = true
	}
	return refusals
}

// waits reports whether an epoll instance has a registration still: what a running program
// closes goes away, also between two looks.
func (l *looking) waits(h *handle.Handle, r handle.Registration) bool {
	now, err := handle.Read(l.process(h.PID), h.FD)
	return err != nil || slices.ContainsFunc(now.Epoll, func(o handle.Registration) bool { return o.FD == r.FD && o.Inode == r.Inode })
}

func (epoll) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	for _, r := range h.Epoll {
		file, ok := d.files[place{h.PID, r.FD}]
		if !ok {
			return fmt.Errorf("what it waits for under number %d is not there", r.FD)
		}
		if disarmed(r.Events) {
			ready, err := d.taken[file].Ready(int16(epollAny) | kernel.EventError | kernel.EventHangUp)
			if err != nil {
				return err
			}
			if !ready {
				return refusal(codeOneshot, h, fmt.Sprintf("the program is at work on descriptor %d, for which it waits no more (EPOLLONESHOT)", r.FD), TryAgain)
			}
		}
		f.Epoll = append(f.Epoll, image.Watched{Number: r.FD, Process: h.PID, File: file, Events: r.Events, Data: r.Data})
	}
	return nil
}

func (epoll) plan(*planning, int) []api.Refusal { return nil }

func (epoll) open(o *Opened, i int) (kernel.Raw, error) {
	return withFlags(o, i, kernel.NewEpoll)
}

func (epoll) wire(o *Opened, p remote.Process, i, number int, process *image.Process) error {
	b := batch{process: p}
	f := &o.image.Files[i]
	// Those that are disarmed come first: nothing else can fire then.
	for _, w := range f.Epoll {
		if w.Process != process.PID || !disarmed(w.Events) {
			continue
		}
		b.add(sysEpollCtl, uint64(number), epollAdd, uint64(w.Number), b.place(epollEvent(w.Events|epollAny, w.Data)))
		b.returns(1, sysEpollWait, uint64(number), b.place(make([]byte, 16)), 1, 0)
	}
	for _, w := range f.Epoll {
		if w.Process == process.PID && !disarmed(w.Events) {
			b.add(sysEpollCtl, uint64(number), epollAdd, uint64(w.Number), b.place(epollEvent(w.Events, w.Data)))
		}
	}
	err := b.run()
	if errors.Is(err, syscall.EPERM) {
		err = fmt.Errorf("it waits for a file that can't be waited for: %w", err)
	}
	return err
}

// epollEvent is the kernel's struct epoll_event, which is packed.
func epollEvent(events uint32, data uint64) []byte {
	b := binary.NativeEndian.AppendUint32(nil, events)
	return binary.NativeEndian.AppendUint64(b, data)
}
