package image

import "time"

// A Descriptor is a number that leads to an open file.
type Descriptor struct {
	_       struct{} `cbor:",toarray"`
	Number  int
	File    int  // in Image.Files
	OnClose bool // FD_CLOEXEC
}

// A File is an open file description. Which of the pointers is set is told by Kind,
// whose names are those of `vos handles`.
type File struct {
	Kind   string `cbor:"kind"`
	Flags  uint32 `cbor:"flags"` // O_… as fcntl(F_GETFL) returns them
	Offset int64  `cbor:"offset,omitempty"`
	Owner  *Owner `cbor:"owner,omitempty"` // F_SETOWN, F_SETSIG
	Locks  []Lock `cbor:"locks,omitempty"`
	Was    string `cbor:"was,omitempty"` // of an inherited one, for people

	Regular  *Regular  `cbor:"regular,omitempty"`  // file, directory, device: by path
	Content  []byte    `cbor:"content,omitempty"`  // of pipes: what is in them
	Pipe     *Pipe     `cbor:"pipe,omitempty"`     //
	Event    *Event    `cbor:"event,omitempty"`    // eventfd
	TimerFD  *TimerFD  `cbor:"timerfd,omitempty"`  //
	Signals  uint64    `cbor:"signals,omitempty"`  // signalfd: mask
	Epoll    []Watched `cbor:"epoll,omitempty"`    //
	Inotify  []Inotify `cbor:"inotify,omitempty"`  //
	PIDFD    int       `cbor:"pidfd,omitempty"`    // pid
	Object   int       `cbor:"object,omitempty"`   // memfd: in Image.Objects
	Socket   *Socket   `cbor:"socket,omitempty"`   //
	Terminal *Terminal `cbor:"terminal,omitempty"` //
}

// Inherited is the Kind of a description that is not in the image: whoever restores
// gives it (the terminal or pipes that the program was started with). Was says what it
// led to.
const Inherited = "inherited"

// An Owner gets the signals of a descriptor.
type Owner struct {
	Type   int `cbor:"type"` // F_OWNER_…
	ID     int `cbor:"id"`
	Signal int `cbor:"signal"`
}

// A Lock is one of flock(2) or fcntl(2) on a file.
type Lock struct {
	Kind  string `cbor:"kind"` // "flock", "posix", "ofd", "lease"
	Type  int    `cbor:"type"` // F_RDLCK, F_WRLCK
	PID   int    `cbor:"pid,omitempty"`
	Start int64  `cbor:"start"`
	End   int64  `cbor:"end"` // last byte, or -1
}

// A Regular is a file with a name, or one without that the image holds.
type Regular struct {
	FileRef
	Mode    uint32 `cbor:"mode"`
	Deleted bool   `cbor:"deleted,omitempty"`
	Mapped  bool   `cbor:"mapped,omitempty"`  // of a deleted one: File.Object has it
	Content []Run  `cbor:"content,omitempty"` // of a deleted one that is not mapped, by offset
	Device  uint64 `cbor:"rdev,omitempty"`    // of a device node
	UID     uint32 `cbor:"uid,omitempty"`     // of a deleted one
	GID     uint32 `cbor:"gid,omitempty"`
}

// A Pipe is one end, or both, of a pipe or FIFO.
type Pipe struct {
	ID     uint64 `cbor:"id"`     // inode: ends of one pipe have one
	Size   int    `cbor:"size"`   // F_GETPIPE_SZ
	Path   string `cbor:"path"`   // of a FIFO
	Packet bool   `cbor:"packet"` // O_DIRECT
}

// An Event is an eventfd.
type Event struct {
	Count     uint64 `cbor:"count"`
	Semaphore bool   `cbor:"semaphore"`
}

// A TimerFD is a timerfd.
type TimerFD struct {
	Clock       int           `cbor:"clock"`
	Ticks       uint64        `cbor:"ticks"`
	Absolute    bool          `cbor:"absolute"`
	CancelOnSet bool          `cbor:"cancel_on_set,omitempty"`
	Time        Interval      `cbor:"time"`
	Now         time.Duration `cbor:"now"` // what the clock showed
}

// A Watched is a registration of an epoll. Number is the descriptor by which it was
// made, Process whose it was; File is what it leads to.
type Watched struct {
	Number  int    `cbor:"number"`
	Process int    `cbor:"process"`
	File    int    `cbor:"file"`
	Events  uint32 `cbor:"events"`
	Data    uint64 `cbor:"data"`
}

// An Inotify is a watch.
type Inotify struct {
	ID    int    `cbor:"id"`
	Path  string `cbor:"path"`
	Mask  uint32 `cbor:"mask"`
	Inode uint64 `cbor:"inode"`
}

// A Socket is a socket of any family.
type Socket struct {
	Family      int          `cbor:"family"`
	Type        int          `cbor:"type"`
	Protocol    int          `cbor:"protocol"`
	ID          uint64       `cbor:"id"`                    // inode
	State       string       `cbor:"state"`                 // "unconnected", "listening", "established", "closed" …
	Local       []byte       `cbor:"local"`                 // struct sockaddr
	Peer        []byte       `cbor:"peer"`                  //
	PeerID      uint64       `cbor:"peer_id"`               // inode, of unix sockets
	Backlog     int          `cbor:"backlog"`               //
	Options     []Option     `cbor:"options"`               //
	Queue       []Packet     `cbor:"queue"`                 // received, and not read yet
	Filter      []byte       `cbor:"filter,omitempty"`      // struct sock_filter, of classic BPF
	Groups      []int        `cbor:"groups,omitempty"`      // of netlink: that it listens to
	Memberships []Membership `cbor:"memberships,omitempty"` // in multicast groups
	TCP         *TCP         `cbor:"tcp,omitempty"`         // of a connection
	Path        *SocketPath  `cbor:"path,omitempty"`        // of a unix socket that is bound to one
	Shutdown    int          `cbor:"shutdown"`              // bit 1: no more receiving, bit 2: no more sending
}

// A SocketPath is what the file of a unix socket is like. Socket.Local says where it was
// made; it may have been renamed since.
type SocketPath struct {
	Path string `cbor:"path"` // where it is
	Mode uint32 `cbor:"mode"`
	UID  uint32 `cbor:"uid"`
	GID  uint32 `cbor:"gid"`
}

// An Option is one of setsockopt(2).
type Option struct {
	_     struct{} `cbor:",toarray"`
	Level int
	Name  int
	Value []byte
}

// A Membership is a multicast group that a socket has joined on an interface.
type Membership struct {
	Level  int    `cbor:"level"`  // IPPROTO_IP or IPPROTO_IPV6
	Device string `cbor:"device"` // name of the interface
	Filter []byte `cbor:"filter"` // struct group_filter; the interface's number in it means nothing
}

// A Packet is bytes in a queue; of streams the boundaries mean nothing.
type Packet struct {
	Data  []byte `cbor:"data"`
	From  []byte `cbor:"from,omitempty"`  // struct sockaddr
	Files []int  `cbor:"files,omitempty"` // descriptors in flight: in Image.Files
}

// A TCP is the state of a connection that its program was ended with, by TCP_REPAIR.
type TCP struct {
	SendSequence    uint32   `cbor:"send_sequence"`    // behind what was written, and the end if that was sent
	ReceiveSequence uint32   `cbor:"receive_sequence"` // behind what was received
	Sent            []byte   `cbor:"sent"`             // written, and not acknowledged yet
	Unsent          []byte   `cbor:"unsent"`           // written, and not sent yet
	Received        []byte   `cbor:"received"`         // and not read yet
	Options         []Option `cbor:"options"`          // TCP_REPAIR_OPTIONS: code, value
	Window          []byte   `cbor:"window"`           // struct tcp_repair_window
	Timestamp       uint32   `cbor:"timestamp"`
	PeerEnded       bool     `cbor:"peer_ended,omitempty"` // its end was received, and has a sequence number
	SendBuffer      int      `cbor:"send_buffer"`          // SO_SNDBUF, which the kernel may have chosen
	ReceiveBuffer   int      `cbor:"receive_buffer"`
}

// A Terminal is an end of a pseudo terminal. What is beside Index is the master's to tell.
type Terminal struct {
	Index      int       `cbor:"index"` // of /dev/pts
	Master     bool      `cbor:"master,omitempty"`
	Settings   []byte    `cbor:"settings,omitempty"` // struct termios2
	Window     [4]uint16 `cbor:"window"`             // struct winsize
	Foreground int       `cbor:"foreground,omitempty"`
	Packet     bool      `cbor:"packet,omitempty"` // TIOCPKT
	Locked     bool      `cbor:"locked,omitempty"` // TIOCSPTLCK
	UID        uint32    `cbor:"uid,omitempty"`    // of the other end's node
	GID        uint32    `cbor:"gid,omitempty"`
	Mode       uint32    `cbor:"mode,omitempty"`
}
