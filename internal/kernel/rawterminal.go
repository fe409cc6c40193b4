package kernel

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TerminalSettings is the kernel's struct termios2.
type TerminalSettings [44]byte

// TerminalSize is struct winsize: rows, columns, and both in pixels.
type TerminalSize [4]uint16

// Requests of ioctl_tty(2) that package unix does not name.
const (
	getSettings   = 0x802c542a // TCGETS2
	setSettings   = 0x402c542b // TCSETS2
	getPacketMode = 0x80045438 // TIOCGPKT
	getLocked     = 0x80045439 // TIOCGPTLCK
	maxTerminals  = 4096       // kernel.pty.max, by default
)

func (r Raw) control(request uintptr, what string, at unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r), request, uintptr(at)); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// NewTerminal makes the pseudo terminal of a number and returns its master. It is EBUSY
// where somebody has it. Others are made meanwhile, and closed again.
func NewTerminal(number int) (_ Raw, err error) {
	var below []Raw
	defer func() {
		for _, r := range below {
			_ = r.Close() // nobody knows of it
		}
	}()
	for range maxTerminals {
		fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("make a pseudo terminal: %w", err)
		}
		r := Raw(fd)
		got, err := r.TerminalNumber()
		switch {
		case err == nil && got == number:
			return r, nil
		case err == nil && got < number:
			below = append(below, r)
		case err == nil:
			err = fmt.Errorf("make pseudo terminal %d: %w", number, unix.EBUSY)
			fallthrough
		default:
			_ = r.Close()
			return -1, err
		}
	}
	return -1, fmt.Errorf("make pseudo terminal %d: %w", number, unix.EBUSY)
}

// TerminalNumber returns the number of a master's pseudo terminal.
func (r Raw) TerminalNumber() (int, error) {
	var n uint32
	err := r.control(unix.TIOCGPTN, "read the number of a pseudo terminal", unsafe.Pointer(&n))
	return int(n), err
}

// OpenSlave opens the other end of a master, without making it a controlling terminal.
func (r Raw) OpenSlave(flags int) (Raw, error) {
	// With O_CLOEXEC the description would show this flag ever after, in fdinfo, whatever
	// its descriptors have.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r), unix.TIOCGPTPEER, uintptr(flags|unix.O_NOCTTY))
	if errno != 0 {
		return -1, fmt.Errorf("open a pseudo terminal: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	return Raw(fd), nil
}

// Settings returns the settings of a terminal; of a master those of its other end.
func (r Raw) Settings() (s TerminalSettings, err error) {
	err = r.control(getSettings, "read the settings of a terminal", unsafe.Pointer(&s))
	return s, err
}

// SetSettings sets them.
func (r Raw) SetSettings(s TerminalSettings) error {
	return r.control(setSettings, "set the settings of a terminal", unsafe.Pointer(&s))
}

// TerminalSize returns the size of a terminal.
func (r Raw) TerminalSize() (s TerminalSize, err error) {
	err = r.control(unix.TIOCGWINSZ, "read the size of a terminal", unsafe.Pointer(&s))
	return s, err
}

// SetTerminalSize sets it.
func (r Raw) SetTerminalSize(s TerminalSize) error {
	return r.control(unix.TIOCSWINSZ, "set the size of a terminal", unsafe.Pointer(&s))
}

// PacketMode reports whether a master is in packet mode.
func (r Raw) PacketMode() (bool, error) {
	var on int32
	err := r.control(getPacketMode, "read the packet mode of a terminal", unsafe.Pointer(&on))
	return on != 0, err
}

// SetPacketMode sets that.
func (r Raw) SetPacketMode(on bool) error {
	return r.setFlag(unix.TIOCPKT, "set the packet mode of a terminal", on)
}

// Locked reports whether the other end of a master can't be opened by its name.
func (r Raw) Locked() (bool, error) {
	var on int32
	err := r.control(getLocked, "read the lock of a terminal", unsafe.Pointer(&on))
	return on != 0, err
}

// SetLocked sets that.
func (r Raw) SetLocked(on bool) error {
	return r.setFlag(unix.TIOCSPTLCK, "set the lock of a terminal", on)
}

func (r Raw) setFlag(request uintptr, what string, on bool) error {
	var n int32
	if on {
		n = 1
	}
	return r.control(request, what, unsafe.Pointer(&n))
}

// Foreground returns the process group in the foreground of a master's terminal; 0 is
// none.
func (r Raw) Foreground() (int, error) {
	var group int32
	err := r.control(unix.TIOCGPGRP, "read the foreground of a terminal", unsafe.Pointer(&group))
	return int(group), err
}

// SlavePath is the path of a pseudo terminal's other end.
func SlavePath(number int) string { return fmt.Sprintf("/dev/pts/%d", number) }

// OpenTerminal opens it, without making it a controlling terminal.
func OpenTerminal(number int) (*os.File, error) {
	return os.OpenFile(SlavePath(number), os.O_RDWR|unix.O_NOCTTY, 0)
}
