package criu

// fdinfo is a descriptor.
type fdinfo struct {
	ID    uint32 `pb:"1"`
	Flags uint32 `pb:"2"`
	Type  uint32 `pb:"3"`
	FD    uint32 `pb:"4"`
}

// file is an entry of files.img: a type, and the message for it.
type file struct {
	Type    uint32       `pb:"1"`
	ID      uint32       `pb:"2"`
	Regular *regFile     `pb:"3"`
	Inet    *inetSocket  `pb:"4"`
	Event   *eventFile   `pb:"8"`
	Epoll   *epollFile   `pb:"9"`
	Signal  *signalFile  `pb:"10"`
	Timer   *timerFile   `pb:"12"`
	Inotify *inotifyFile `pb:"13"`
	Unix    *unixSocket  `pb:"16"`
	FIFO    *fifoFile    `pb:"17"`
	Pipe    *pipeFile    `pb:"18"`
	Memory  *memoryFile  `pb:"20"`
}

type owner struct {
	UID    uint32 `pb:"1"`
	EUID   uint32 `pb:"2"`
	Signal uint32 `pb:"3"`
	Type   uint32 `pb:"4"`
	ID     uint32 `pb:"5"`
}

type regFile struct {
	ID       uint32   `pb:"1"`
	Flags    uint32   `pb:"2"`
	Position uint64   `pb:"3"`
	Owner    owner    `pb:"5"`
	Name     string   `pb:"6"`
	Size     *uint64  `pb:"8"`
	External *bool    `pb:"9"`
	Mode     *uint32  `pb:"10"`
	BuildID  []uint32 `pb:"11"`
}

type eventFile struct {
	ID      uint32 `pb:"1"`
	Flags   uint32 `pb:"2"`
	Owner   owner  `pb:"3"`
	Counter uint64 `pb:"4"`
}

type epollFile struct {
	ID      uint32        `pb:"1"`
	Flags   uint32        `pb:"2"`
	Owner   owner         `pb:"3"`
	Targets []epollTarget `pb:"4"`
}

type epollTarget struct {
	ID     uint32 `pb:"1"`
	FD     uint32 `pb:"2"`
	Events uint32 `pb:"3"`
	Data   uint64 `pb:"4"`
}

type signalFile struct {
	ID    uint32 `pb:"1"`
	Flags uint32 `pb:"2"`
	Owner owner  `pb:"3"`
	Mask  uint64 `pb:"4"`
}

type timerFile struct {
	ID        uint32 `pb:"1"`
	Flags     uint32 `pb:"2"`
	Owner     owner  `pb:"3"`
	Clock     uint32 `pb:"4"`
	Ticks     uint64 `pb:"5"`
	SetFlags  uint32 `pb:"6"`
	LeftSec   uint64 `pb:"7"`
	LeftNsec  uint64 `pb:"8"`
	EverySec  uint64 `pb:"9"`
	EveryNsec uint64 `pb:"10"`
}

type inotifyFile struct {
	ID      uint32         `pb:"1"`
	Flags   uint32         `pb:"2"`
	Owner   owner          `pb:"4"`
	Watches []inotifyWatch `pb:"5"`
}

type inotifyWatch struct {
	ID      uint32     `pb:"1"`
	Inode   uint64     `pb:"2"`
	Mask    uint32     `pb:"3"`
	Ignored uint32     `pb:"4"`
	Device  uint32     `pb:"5"`
	Number  uint32     `pb:"6"`
	Handle  fileHandle `pb:"7"`
}

type fileHandle struct {
	Bytes  uint32   `pb:"1"`
	Type   uint32   `pb:"2"`
	Handle []uint64 `pb:"3"`
	Path   string   `pb:"4"`
}

type fifoFile struct {
	ID      uint32 `pb:"1"`
	Pipe    uint32 `pb:"2"`
	Regular uint32 `pb:"3"`
}

type pipeFile struct {
	ID    uint32 `pb:"1"`
	Pipe  uint32 `pb:"2"`
	Flags uint32 `pb:"3"`
	Owner owner  `pb:"4"`
}

// pipeData is followed by Bytes bytes.
type pipeData struct {
	Pipe  uint32 `pb:"1"`
	Bytes uint32 `pb:"2"`
	Size  uint32 `pb:"3"`
}

type memoryFile struct {
	ID       uint32 `pb:"1"`
	Flags    uint32 `pb:"2"`
	Position uint64 `pb:"3"`
	Owner    owner  `pb:"4"`
	Inode    uint32 `pb:"5"`
}

type memoryInode struct {
	Name   string  `pb:"1"`
	UID    uint32  `pb:"2"`
	GID    uint32  `pb:"3"`
	Size   uint64  `pb:"4"`
	Shared uint32  `pb:"5"` // number of the shared memory
	Seals  uint32  `pb:"6"`
	Inode  uint64  `pb:"7"`
	Mode   *uint32 `pb:"9"` // since CRIU 4.0
}

type socketOptions struct {
	SendBuffer    uint32  `pb:"1"`
	ReceiveBuffer uint32  `pb:"2"`
	SendSec       uint64  `pb:"3"`
	SendUsec      uint64  `pb:"4"`
	ReceiveSec    uint64  `pb:"5"`
	ReceiveUsec   uint64  `pb:"6"`
	ReuseAddress  bool    `pb:"7"`
	Priority      uint32  `pb:"8"`
	LowWater      uint32  `pb:"9"`
	Mark          *uint32 `pb:"10"`
	PassCred      bool    `pb:"11"`
	PassSec       bool    `pb:"12"`
	DontRoute     bool    `pb:"13"`
	NoCheck       bool    `pb:"14"`
	Device        *string `pb:"15"`
	ReusePort     bool    `pb:"17"`
	Broadcast     bool    `pb:"18"`
	KeepAlive     bool    `pb:"19"`
	KeepCount     *uint32 `pb:"20"`
	KeepIdle      *uint32 `pb:"21"`
	KeepInterval  *uint32 `pb:"22"`
	OutOfBand     uint32  `pb:"23"`
	Linger        *uint32 `pb:"24"`
	BuffersAreSet uint32  `pb:"25"`
}

type inetSocket struct {
	ID         uint32        `pb:"1"`
	Inode      uint32        `pb:"2"`
	Family     uint32        `pb:"3"`
	Type       uint32        `pb:"4"`
	Protocol   uint32        `pb:"5"`
	State      uint32        `pb:"6"`
	SourcePort uint32        `pb:"7"`
	PeerPort   uint32        `pb:"8"`
	Flags      uint32        `pb:"9"`
	Backlog    uint32        `pb:"10"`
	Source     []uint32      `pb:"11"`
	Peer       []uint32      `pb:"12"`
	Owner      owner         `pb:"13"`
	Options    socketOptions `pb:"14"`
	V6Only     *bool         `pb:"15"`
	IP         ipOptions     `pb:"16"`
	Interface  *string       `pb:"17"`
	Namespace  uint32        `pb:"18"`
	Shutdown   *uint32       `pb:"19"`
	TCP        *tcpOptions   `pb:"20"` // since CRIU 4.0
}

type tcpOptions struct {
	Cork         *bool   `pb:"1"`
	NoDelay      *bool   `pb:"2"`
	KeepCount    *uint32 `pb:"3"`
	KeepIdle     *uint32 `pb:"4"`
	KeepInterval *uint32 `pb:"5"`
}

type ipOptions struct {
	FreeBind   bool    `pb:"1"`
	PacketInfo bool    `pb:"5"`
	TOS        *uint32 `pb:"6"` // since CRIU 4.0
	TTL        *uint32 `pb:"7"`
}

type unixSocket struct {
	ID        uint32        `pb:"1"`
	Inode     uint32        `pb:"2"`
	Type      uint32        `pb:"3"`
	State     uint32        `pb:"4"`
	Flags     uint32        `pb:"5"`
	OwnFlags  uint32        `pb:"6"`
	Backlog   uint32        `pb:"7"`
	Peer      uint32        `pb:"8"`
	Owner     owner         `pb:"9"`
	Options   socketOptions `pb:"10"`
	Name      []byte        `pb:"11"`
	Shutdown  *uint32       `pb:"12"`
	File      *permissions  `pb:"13"`
	Namespace uint32        `pb:"16"`
}

type permissions struct {
	Mode uint32 `pb:"1"`
	UID  uint32 `pb:"2"`
	GID  uint32 `pb:"3"`
}

// tcpStream is followed by what was received, and what was written.
type tcpStream struct {
	Received        uint32  `pb:"1"`
	ReceiveSequence uint32  `pb:"2"`
	Written         uint32  `pb:"3"`
	SendSequence    uint32  `pb:"4"`
	Options         uint32  `pb:"5"`
	SendScale       uint32  `pb:"6"`
	MostSegment     uint32  `pb:"7"`
	ReceiveScale    *uint32 `pb:"8"`
	Timestamp       *uint32 `pb:"9"`
	Unsent          uint32  `pb:"12"`
	SendFrom        uint32  `pb:"13"`
	SendWindow      uint32  `pb:"14"`
	MostWindow      uint32  `pb:"15"`
	Window          uint32  `pb:"16"`
	WindowAt        uint32  `pb:"17"`
}

// packet is followed by Bytes bytes.
type packet struct {
	For    uint32     `pb:"1"` // file
	Bytes  uint32     `pb:"2"`
	Passed []inFlight `pb:"4"`
}

// inFlight are descriptions that go with a packet.
type inFlight struct {
	Type  uint32   `pb:"1"` // SCM_RIGHTS
	Files []uint32 `pb:"2"`
}

// ghost is a file without a name: chunks with their bytes follow.
type ghost struct {
	UID    uint32 `pb:"1"`
	GID    uint32 `pb:"2"`
	Mode   uint32 `pb:"3"`
	Chunks bool   `pb:"9"`
	Size   uint64 `pb:"10"`
}

// chunk is followed by Bytes bytes.
type chunk struct {
	Bytes  uint64 `pb:"1"`
	Offset uint64 `pb:"2"`
}

// remap says that a file by path is that of a ghost.
type remap struct {
	File  uint32 `pb:"1"`
	Ghost uint32 `pb:"2"`
	Type  uint32 `pb:"3"`
}

type fileLock struct {
	Kind   uint32 `pb:"1"`
	Type   uint32 `pb:"2"`
	PID    int32  `pb:"3"`
	FD     int32  `pb:"4"`
	Start  int64  `pb:"5"`
	Length int64  `pb:"6"`
}
