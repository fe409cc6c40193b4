package handle

import (
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Registration is one file in an epoll instance, as epoll_ctl(2) put it there.
// It is of a description, under the number that the descriptor had then: that
// descriptor may be closed, or another, since.
type Registration struct {
	FD     int
	Events uint32 // EPOLLIN, EPOLLET, …
	Data   uint64 // the program's own, of epoll_event

	Offset        int64
	Device, Inode uint64 // of the file, as stat(2) has it; 0 before Linux 4.13
}

// addRegistration reads "tfd: 4 events: 19 data: 4 pos:0 ino:52e508 sdev:f", where
// all but tfd and pos is hexadecimal, and sdev the kernel's own device number.
func (in *info) addRegistration(line string) error {
	if len(in.epoll) == maxEntries {
		return errEntries
	}
	var r Registration
	var device uint64
	n, err := fmt.Sscanf(line, "tfd: %d events: %x data: %x pos:%d ino:%x sdev:%x",
		&r.FD, &r.Events, &r.Data, &r.Offset, &r.Inode, &device)
	if n < 3 {
		return err
	}
	if n == 6 {
		r.Device = kernelDevice(device)
	}
	in.epoll = append(in.epoll, r)
	return nil
}

// kernelDevice turns the kernel's dev_t, which has 20 bits for the minor number,
// into that of stat(2).
func kernelDevice(device uint64) uint64 {
	return kernel.DeviceNumber(uint32(device>>20), uint32(device&(1<<20-1)))
}

var eventNames = []struct {
	event uint32
	name  string
}{
	{1, "EPOLLIN"}, {2, "EPOLLPRI"}, {4, "EPOLLOUT"}, {8, "EPOLLERR"}, {0x10, "EPOLLHUP"},
	{0x40, "EPOLLRDNORM"}, {0x80, "EPOLLRDBAND"}, {0x100, "EPOLLWRNORM"}, {0x200, "EPOLLWRBAND"},
	{0x400, "EPOLLMSG"}, {0x2000, "EPOLLRDHUP"}, {1 << 28, "EPOLLEXCLUSIVE"}, {1 << 29, "EPOLLWAKEUP"},
	{1 << 30, "EPOLLONESHOT"}, {1 << 31, "EPOLLET"},
}

// always are waited for whether they are asked for or not.
const always = 8 | 0x10

// EventNames returns the events by their names, without those that the kernel adds
// to all, EPOLLERR and EPOLLHUP.
func (r Registration) EventNames() []string {
	names := []string{}
	for _, n := range eventNames {
		if r.Events&^always&n.event != 0 {
			names = append(names, n.name)
		}
	}
	return slices.Clip(names)
}
