package handle

import (
	"io/fs"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Kind is what a descriptor has open, as it is printed.
type Kind string

// The kinds. What the kernel calls an anonymous inode and is none of these is
// KindAnonymous, its name in Handle.Link.
const (
	KindFile      Kind = "file"
	KindDirectory Kind = "directory"
	KindMemfd     Kind = "memfd"
	KindPipe      Kind = "pipe"
	KindFIFO      Kind = "fifo" // a pipe that has a path
	KindSocket    Kind = "socket"
	KindTerminal  Kind = "terminal" // a pseudo terminal, either end, or a console
	KindDevice    Kind = "device"
	KindPath      Kind = "path" // O_PATH: names a file and has it not open
	KindEpoll     Kind = "epoll"
	KindEventfd   Kind = "eventfd"
	KindTimerfd   Kind = "timerfd"
	KindSignalfd  Kind = "signalfd"
	KindPidfd     Kind = "pidfd"
	KindInotify   Kind = "inotify"
	KindFanotify  Kind = "fanotify"
	KindIOUring   Kind = "io_uring"
	KindNamespace Kind = "namespace"
	KindAnonymous Kind = "anonymous"
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{KindFile, KindDirectory, KindMemfd, KindPipe, KindFIFO, KindSocket, KindTerminal, KindDevice, KindPath,
		KindEpoll, KindEventfd, KindTimerfd, KindSignalfd, KindPidfd, KindInotify, KindFanotify, KindIOUring, KindNamespace, KindAnonymous}
}

// anonymous are the kinds by the names of the kernel's anonymous inodes.
var anonymous = map[string]Kind{
	"[eventpoll]": KindEpoll, "[eventfd]": KindEventfd, "[timerfd]": KindTimerfd, "[signalfd]": KindSignalfd,
	"[pidfd]": KindPidfd, "inotify": KindInotify, "[fanotify]": KindFanotify, "[io_uring]": KindIOUring,
}

const (
	anonPrefix  = "anon_inode:"
	memfdPrefix = "/memfd:"
	deletedMark = " (deleted)"
)

// kindOf tells the kind of a file from its type, what its link says and how it was
// opened. Names of real files begin with a slash, those of the kernel's own do not.
func kindOf(stat kernel.FileStat, link string, flags Flags) Kind {
	named := strings.HasPrefix(link, "/")
	if name, ok := strings.CutPrefix(link, anonPrefix); ok {
		if kind, ok := anonymous[name]; ok {
			return kind
		}
		return KindAnonymous
	}
	if strings.HasPrefix(link, "pidfd:[") {
		return KindPidfd
	}
	if named && flags&FlagPath != 0 {
		return KindPath
	}
	switch stat.Mode {
	case 0:
		switch {
		case !named && strings.HasSuffix(link, "]"):
			return KindNamespace
		case isMemfd(stat, link):
			return KindMemfd
		}
		return KindFile
	case fs.ModeDir:
		return KindDirectory
	case fs.ModeNamedPipe:
		if named {
			return KindFIFO
		}
		return KindPipe
	case fs.ModeSocket:
		return KindSocket
	case fs.ModeDevice | fs.ModeCharDevice:
		if isTerminal(stat.Special) {
			return KindTerminal
		}
		return KindDevice
	case fs.ModeDevice:
		return KindDevice
	}
	return KindAnonymous
}

// isTerminal goes by the numbers of Documentation/admin-guide/devices.txt:
// consoles and serial lines (4), /dev/tty, console and ptmx (5), and the slaves of
// pseudo terminals (136 to 143).
func isTerminal(device uint64) bool {
	major, minor := kernel.Device(device)
	return major == 4 || major == 5 && minor <= 2 || major >= 136 && major <= 143
}

// isMemfd tells a memfd from a deleted file of that name in a root directory: it is
// in a file system that the kernel keeps for itself, without a device.
func isMemfd(stat kernel.FileStat, link string) bool {
	if !strings.HasPrefix(link, memfdPrefix) || !strings.HasSuffix(link, deletedMark) {
		return false
	}
	major, _ := kernel.Device(stat.Device)
	return major == 0 && stat.Links == 0
}
