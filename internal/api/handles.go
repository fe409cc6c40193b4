package api

// HandlesRequest asks what the descriptors of a target lead to.
type HandlesRequest struct {
	Target Target
	Kinds  []string // of these kinds only; none is all
	FDs    []int    // these descriptors only; none is all

	IDsOnly bool // leave the handles out: then no rights are needed
}

// HandleKinds are the kinds of handles.
var HandleKinds = []string{"file", "directory", "memfd", "pipe", "fifo", "socket", "terminal", "device", "path", "epoll",
	"eventfd", "timerfd", "signalfd", "pidfd", "inotify", "fanotify", "io_uring", "namespace", "anonymous"}

// Holdings are the handles of one process.
type Holdings struct {
	IDs
	Handles []Handle

	// Restless are descriptors that were opened and closed too often to be looked
	// at, Unread what else is left out, Unseen how many processes of the machine may
	// not be looked at: peers and sharers among them are not told.
	Restless []int
	Unread   []string
	Unseen   int

	// Uncounted are functions that open descriptors whose calls are not counted, of a
	// process that is attached: OpenedBy lacks who calls them.
	Uncounted []Uncounted
}

// IDs are the numbers by which one process and its threads are known.
type IDs struct {
	PID     int      `json:"pid"`
	Program string   `json:"program"` // the process's name
	PPID    int      `json:"ppid"`
	PGID    int      `json:"pgid"`
	SID     int      `json:"sid"`
	NSPIDs  []int    `json:"ns_pids"` // its pid in each pid namespace, from vos's inwards
	Threads []Thread `json:"threads"`
}

// A Thread is one of a process, by its ids.
type Thread struct {
	TID    int   `json:"tid"`
	NSTIDs []int `json:"ns_tids"`
}

// A Handle is one descriptor and what it has open. Which of the lists and objects
// behind Inode there are depends on the kind.
type Handle struct {
	PID     int      `json:"pid"`
	Program string   `json:"program"`
	FD      int      `json:"fd"`
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`              // what /proc/PID/fd/FD says
	Path    string   `json:"path,omitempty"`    // as the program sees it
	Deleted bool     `json:"deleted,omitempty"` // no name leads to the file any more
	Access  string   `json:"access"`            // read, write, read_write, none
	Flags   []string `json:"flags"`             // O_APPEND, …, O_CLOEXEC
	Offset  int64    `json:"offset"`
	Device  string   `json:"device"` // of the file system, "254:0"
	Inode   uint64   `json:"inode"`
	Mine    bool     `json:"mine"` // vos itself has it there

	// Own tells why: record (of a redirection), kept (what was there before, for the
	// way back), left (by a vos that was killed). RedirectedFrom is what a descriptor
	// was bound to before a redirection, in words.
	Own            string `json:"own,omitempty"`
	RedirectedFrom string `json:"redirected_from,omitempty"`

	Size    *int64         `json:"size,omitempty"`    // of a file or memfd, bytes
	Special string         `json:"special,omitempty"` // which device, "1:3"
	Socket  *Socket        `json:"socket,omitempty"`
	Epoll   []Registration `json:"epoll,omitempty"`
	Eventfd *Eventfd       `json:"eventfd,omitempty"`
	Timerfd *Timerfd       `json:"timerfd,omitempty"`
	Signals []int          `json:"signals,omitempty"` // of a signalfd
	Pidfd   *Pidfd         `json:"pidfd,omitempty"`
	Watches []Watch        `json:"watches,omitempty"` // of an inotify instance
	Ring    *Ring          `json:"io_uring,omitempty"`
	Pty     *int           `json:"pty,omitempty"` // the number in /dev/pts
	Locks   []Lock         `json:"locks,omitempty"`

	// OpenedBy are the modules that called functions which open such a descriptor, since
	// calls are counted, those with most calls first: if it was opened since, by one of
	// them. It is empty where no calls are counted.
	OpenedBy []string `json:"opened_by"`

	Peers  []HandleRef `json:"peers"`  // who holds another end of the pipe or socket
	Shared []HandleRef `json:"shared"` // who else holds the same open file description
}

// A HandleRef is a descriptor of a process.
type HandleRef struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
	FD      int    `json:"fd"`
}

// A Socket is what the kernel tells of one. Of one that is neither bound nor
// connected, only the first three are known.
type Socket struct {
	Family   string `json:"family"`             // inet, inet6, unix, netlink, packet, …
	Type     string `json:"type,omitempty"`     // stream, dgram, …
	Protocol string `json:"protocol,omitempty"` // tcp, udp, mptcp, …
	State    string `json:"state,omitempty"`    // established, listen, unconnected, …
	Local    string `json:"local,omitempty"`    // ADDRESS:PORT, a path, @ and an abstract name
	Remote   string `json:"remote,omitempty"`
	Abstract bool   `json:"abstract,omitempty"`

	// Bytes in the queues; where it listens, the connections that wait to be
	// accepted, and how many may.
	ReceiveQueue uint32 `json:"receive_queue"`
	SendQueue    uint32 `json:"send_queue"`
}

// A Registration is one file in an epoll instance. Open tells that the descriptor
// still has that file open; otherwise another one keeps it registered.
type Registration struct {
	FD     int      `json:"fd"`
	Events []string `json:"events"`
	Data   string   `json:"data"` // the program's own 64 bits, "0x…"
	Open   bool     `json:"open"`
	Kind   string   `json:"kind,omitempty"` // of that descriptor
}

// An Eventfd is the state of one.
type Eventfd struct {
	Count     uint64 `json:"count"`
	Semaphore bool   `json:"semaphore"`
}

// A Timerfd is the state of one.
type Timerfd struct {
	Clock       string `json:"clock"`
	Ticks       uint64 `json:"ticks"`        // that were not read yet
	RemainingNS int64  `json:"remaining_ns"` // until it fires; 0 is never
	IntervalNS  int64  `json:"interval_ns"`  // 0 is once
}

// A Pidfd is the process behind one: -1 has ended, 0 is out of sight.
type Pidfd struct {
	PID int `json:"pid"`
}

// A Watch is what an inotify instance watches.
type Watch struct {
	Number int      `json:"wd"`
	Device string   `json:"device"`
	Inode  uint64   `json:"inode"`
	Events []string `json:"events"`
}

// A Ring is an io_uring: entries of its queues, and what is registered.
type Ring struct {
	SubmissionEntries uint64 `json:"submission_entries"`
	CompletionEntries uint64 `json:"completion_entries"`
	Files             int    `json:"files"`
	Buffers           int    `json:"buffers"`
}

// A Lock is held on a file.
type Lock struct {
	Type  string `json:"type"` // FLOCK, POSIX, OFDLCK, LEASE
	Mode  string `json:"mode"` // READ, WRITE
	PID   int    `json:"pid"`  // that took it; -1 of OFDLCK
	Start int64  `json:"start"`
	End   int64  `json:"end"` // the last byte; -1 is the file's end
}

// FunctionsRequest asks for the function handles of a target.
type FunctionsRequest struct {
	Target Target
}

// FunctionHandles are the import slots of one module of one process, through which
// it calls functions.
type FunctionHandles struct {
	PID        int            `json:"pid"`
	Program    string         `json:"program"`
	Module     string         `json:"module"`
	Path       string         `json:"path"`
	Generation int            `json:"generation"` // of this module, that calls to it reach
	Slots      int            `json:"slots"`
	Lazy       int            `json:"lazy"` // not called yet, and so not bound
	Led        int            `json:"led"`  // that lead to a vIN
	Imports    []FunctionSlot `json:"imports"`
}

// A FunctionSlot is one import slot.
type FunctionSlot struct {
	Address    string `json:"address"`
	Symbol     string `json:"symbol"`
	Target     string `json:"target"`           // what it says, "0x…"
	Module     string `json:"module,omitempty"` // where a call arrives; "" is not known
	Lazy       bool   `json:"lazy"`
	Led        bool   `json:"led"`
	Generation int    `json:"generation"` // of that module, to which a vIN leads
}
