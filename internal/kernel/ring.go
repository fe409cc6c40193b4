package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Ring makes operations on sockets one after the other within one system call,
// io_uring_enter(2): should this process be killed in the middle of it, the rest is still
// done. One goroutine may use it at a time.
type Ring struct {
	fd             int
	rings, entries []byte // of both queues, and what is submitted
	values         []byte // a locked page: what a kill does not make unreadable
	sq, cq         ringOffsets
}

// RingSteps is how many steps one Run may have.
const RingSteps = 64

// A RingStep is one operation on a socket. With Peek it reads what is in the queue that
// TCP_REPAIR_QUEUE has chosen, or has been received, and leaves it there; otherwise it
// sets an option, whose value has at most 16 bytes.
type RingStep struct {
	Socket      Raw
	Level, Name int
	Value       []byte
	Peek        []byte
}

// Numbers of linux/io_uring.h.
const (
	ringOpReceive = 27 // IORING_OP_RECV
	ringOpCommand = 46 // IORING_OP_URING_CMD
	ringSetOption = 3  // SOCKET_URING_OP_SETSOCKOPT

	ringAtEntries = 0x10000000 // IORING_OFF_SQES
	ringOneMap    = 1          // IORING_FEAT_SINGLE_MMAP
	ringEntry     = 64
	ringResult    = 16
	ringValue     = 16
)

// ringOffsets are those of struct io_sqring_offsets and io_cqring_offsets that are used.
type ringOffsets struct{ head, tail, mask, array uint32 }

// OpenRing makes a Ring. It needs Linux 6.7, and kernel.io_uring_disabled not to be 2.
func OpenRing() (_ *Ring, err error) {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, RingSteps, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		if errno == unix.ENOSYS || errno == unix.EPERM {
			return nil, notSupported("io_uring", "reads the state of connections", Version{Major: 6, Minor: 7})
		}
		return nil, fmt.Errorf("make a ring: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	r := &Ring{fd: int(fd)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(params[at:]) }
	if word(20)&ringOneMap == 0 {
		return nil, notSupported("io_uring", "reads the state of connections", Version{Major: 6, Minor: 7})
	}
	r.sq = ringOffsets{head: word(40), tail: word(44), mask: word(48), array: word(64)}
	r.cq = ringOffsets{head: word(80), tail: word(84), mask: word(88), array: word(100)}
	size := max(r.sq.array+word(0)*4, r.cq.array+word(4)*ringResult)
	const shared = unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, shared); err != nil {
		return nil, fmt.Errorf("map a ring: %w", err)
	}
	if r.entries, err = unix.Mmap(r.fd, ringAtEntries, int(word(0))*ringEntry, unix.PROT_READ|unix.PROT_WRITE, shared); err != nil {
		return nil, fmt.Errorf("map a ring: %w", err)
	}
	r.values, err = unix.Mmap(-1, 0, RingSteps*ringValue, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err == nil {
		err = unix.Mlock(r.values)
	}
	if err != nil {
		return nil, fmt.Errorf("map the values of a ring: %w", err)
	}
	return r, nil
}

// Close gives the ring back.
func (r *Ring) Close() error {
	var errs []error
	for _, b := range [][]byte{r.rings, r.entries, r.values} {
		if b != nil {
			errs = append(errs, unix.Munmap(b))
		}
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}

func (r *Ring) word(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[at])) }

// Run makes the steps, at most RingSteps, each of them whatever has become of those
// before, and returns their results: how many bytes were read, or 0, or a negative error
// number. On an error of Run none was made, or the kernel does not make them at once.
func (r *Ring) Run(steps []RingStep) ([]int, error) {
	if len(steps) == 0 || len(steps) > RingSteps {
		return nil, fmt.Errorf("run %d steps at once: %w", len(steps), unix.EINVAL)
	}
	var pins runtime.Pinner
	defer pins.Unpin()
	tail := atomic.LoadUint32(r.word(r.sq.tail))
	mask := atomic.LoadUint32(r.word(r.sq.mask))
	for i, s := range steps {
		at := (tail + uint32(i)) & mask
		e := r.entries[at*ringEntry:][:ringEntry]
		clear(e)
		binary.NativeEndian.PutUint32(e[4:], uint32(s.Socket))
		binary.NativeEndian.PutUint64(e[32:], uint64(i))
		if s.Peek != nil {
			e[0] = ringOpReceive
			pins.Pin(&s.Peek[0])
			binary.NativeEndian.PutUint64(e[16:], uint64(uintptr(unsafe.Pointer(&s.Peek[0]))))
			binary.NativeEndian.PutUint32(e[24:], uint32(len(s.Peek)))
			binary.NativeEndian.PutUint32(e[28:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		} else {
			value := r.values[i*ringValue:][:ringValue]
			e[0] = ringOpCommand
			binary.NativeEndian.PutUint32(e[8:], ringSetOption)
			binary.NativeEndian.PutUint32(e[16:], uint32(s.Level))
			binary.NativeEndian.PutUint32(e[20:], uint32(s.Name))
			binary.NativeEndian.PutUint32(e[44:], uint32(copy(value, s.Value)))
			binary.NativeEndian.PutUint64(e[48:], uint64(uintptr(unsafe.Pointer(&value[0]))))
		}
		*r.word(r.sq.array + 4*at) = at
	}
	atomic.StoreUint32(r.word(r.sq.tail), tail+uint32(len(steps)))
	n, err := retry(func() (int, error) {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(len(steps)), 0, 0, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	})
	if err != nil {
		return nil, fmt.Errorf("enter a ring: %w", err)
	}
	head, end := atomic.LoadUint32(r.word(r.cq.head)), atomic.LoadUint32(r.word(r.cq.tail))
	if n != len(steps) || end-head != uint32(len(steps)) {
		return nil, fmt.Errorf("enter a ring: of %d steps %d were taken and %d made at once", len(steps), n, end-head)
	}
	results := make([]int, len(steps))
	mask = atomic.LoadUint32(r.word(r.cq.mask))
	for ; head != end; head++ {
		c := r.rings[r.cq.array+(head&mask)*ringResult:]
		results[binary.NativeEndian.Uint64(c)%uint64(len(steps))] = int(int32(binary.NativeEndian.Uint32(c[8:])))
	}
	atomic.StoreUint32(r.word(r.cq.head), end)
	return results, nil
}
