package handle

import (
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Handle is one descriptor of one process and what it has open. Of the fields
// that are about certain kinds only the own kind's is set.
type Handle struct {
	PID, FD int
	Kind    Kind
	Link    string // what /proc/PID/fd/FD says, from the reader's root directory
	Path    string // of a file, as the program sees it; "" of what has no path
	Deleted bool   // no name leads to the file any more

	Device, Inode uint64 // of the file; Device as stat(2) has it
	Special       uint64 // of a device, which one
	Size          int64  // of a file or memfd, bytes
	Mount         int    // the id of the mount that it was opened on

	Offset int64 // of the description
	Flags  Flags
	Locks  []Lock // that are held on the file by this description or process

	Epoll   []Registration   // KindEpoll
	Event   *Event           // KindEventfd
	Timer   *Timer           // KindTimerfd
	Signals procfs.SignalSet // KindSignalfd
	Process *Target          // KindPidfd
	Watches []Watch          // KindInotify
	Ring    *Ring            // KindIOUring

	// Socket is what is known of a KindSocket: the protocol, or, where Survey found
	// it in its network namespace, the rest too.
	Socket *Socket

	// Peers hold another end of a pipe or socket, Sharers the same description; see
	// Survey.
	Peers, Sharers []Holder

	Own Own    // whether vOS has it there
	Was string // what it was bound to before a redirection, in words; "" of most

	// Terminal is the number of a pseudo terminal, in /dev/pts; -1 if it is none.
	Terminal int
}

// A File identifies the file behind a handle: descriptors with different files are
// of different descriptions. Anonymous inodes are one file for all of a kind.
type File struct {
	Device, Inode uint64
	Link          string
}

// File returns the file that the handle has open.
func (h *Handle) File() File { return File{h.Device, h.Inode, h.Link} }
