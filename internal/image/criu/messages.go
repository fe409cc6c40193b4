package criu

// The messages of CRIU's images, as its images/*.proto have them: names and numbers are
// CRIU's. Fields that vos has nothing for are left out where they are optional.

type inventory struct {
	Version      uint32 `pb:"1"`
	FdinfoPerID  bool   `pb:"2"`
	RootIDs      ids    `pb:"3"`
	NamespacesID bool   `pb:"4"`
	LSM          uint32 `pb:"6"`
}

// ids are the tables and namespaces that a process has, numbered by us.
type ids struct {
	Memory   uint32 `pb:"1"`
	Files    uint32 `pb:"2"`
	FS       uint32 `pb:"3"`
	Handlers uint32 `pb:"4"`
	PID      uint32 `pb:"5"`
	Network  uint32 `pb:"6"`
	IPC      uint32 `pb:"7"`
	UTS      uint32 `pb:"8"`
	Mounts   uint32 `pb:"9"`
	User     uint32 `pb:"10"`
	CGroup   uint32 `pb:"11"`
	Time     uint32 `pb:"12"`
}

type pstree struct {
	PID     uint32   `pb:"1"`
	Parent  uint32   `pb:"2"`
	Group   uint32   `pb:"3"`
	Session uint32   `pb:"4"`
	Threads []uint32 `pb:"5"`
}

type directories struct {
	Current uint32 `pb:"1"`
	Root    uint32 `pb:"2"`
	Umask   uint32 `pb:"3"`
}

type core struct {
	Machine uint32      `pb:"1"`
	X86     *threadX86  `pb:"2"`
	Task    *task       `pb:"3"`
	Thread  *threadCore `pb:"5"`
}

type threadX86 struct {
	ClearTID  uint64           `pb:"1"`
	Registers registers        `pb:"2"`
	FPU       fpu              `pb:"3"`
	TLS       []userDescriptor `pb:"4"`
}

type registers struct {
	R15     uint64 `pb:"1"`
	R14     uint64 `pb:"2"`
	R13     uint64 `pb:"3"`
	R12     uint64 `pb:"4"`
	BP      uint64 `pb:"5"`
	BX      uint64 `pb:"6"`
	R11     uint64 `pb:"7"`
	R10     uint64 `pb:"8"`
	R9      uint64 `pb:"9"`
	R8      uint64 `pb:"10"`
	AX      uint64 `pb:"11"`
	CX      uint64 `pb:"12"`
	DX      uint64 `pb:"13"`
	SI      uint64 `pb:"14"`
	DI      uint64 `pb:"15"`
	OrigAX  uint64 `pb:"16"`
	IP      uint64 `pb:"17"`
	CS      uint64 `pb:"18"`
	Flags   uint64 `pb:"19"`
	SP      uint64 `pb:"20"`
	SS      uint64 `pb:"21"`
	FSBase  uint64 `pb:"22"`
	GSBase  uint64 `pb:"23"`
	DS      uint64 `pb:"24"`
	ES      uint64 `pb:"25"`
	FS      uint64 `pb:"26"`
	GS      uint64 `pb:"27"`
	Compact uint32 `pb:"28"` // 1: of 64 bits
}

type fpu struct {
	Control   uint32   `pb:"1"`
	Status    uint32   `pb:"2"`
	Tag       uint32   `pb:"3"`
	Opcode    uint32   `pb:"4"`
	IP        uint64   `pb:"5"`
	Data      uint64   `pb:"6"`
	MXCSR     uint32   `pb:"7"`
	MXCSRMask uint32   `pb:"8"`
	ST        []uint32 `pb:"9"`
	XMM       []uint32 `pb:"10"`
	XSave     *xsave   `pb:"13"`
}

type xsave struct {
	Components uint64   `pb:"1"`
	YMM        []uint32 `pb:"2"`
	BoundRegs  []uint64 `pb:"3"`
	BoundCSR   []uint64 `pb:"4"`
	OpMask     []uint64 `pb:"5"`
	ZMMUpper   []uint64 `pb:"6"`
	Hi16ZMM    []uint64 `pb:"7"`
	PKRU       []uint32 `pb:"8"`
}

// A userDescriptor is a segment of the thread's own; those of vos's images are empty.
type userDescriptor struct {
	Entry      uint32 `pb:"1"`
	Base       uint32 `pb:"2"`
	Limit      uint32 `pb:"3"`
	Seg32      bool   `pb:"4"`
	ContentsH  bool   `pb:"5"`
	ContentsL  bool   `pb:"6"`
	ReadExec   bool   `pb:"7"`
	InPages    bool   `pb:"8"`
	NotPresent bool   `pb:"9"`
	Usable     bool   `pb:"10"`
}

type task struct {
	State       uint32   `pb:"1"`
	ExitCode    uint32   `pb:"2"`
	Personality uint32   `pb:"3"`
	Flags       uint32   `pb:"4"`
	Blocked     uint64   `pb:"5"`
	Name        string   `pb:"6"`
	Timers      *timers  `pb:"7"`
	Limits      *limits  `pb:"8"`
	Pending     *signals `pb:"10"`
	OOMAdjust   *int32   `pb:"14"`
	Actions     []action `pb:"15"`
	Subreaper   bool     `pb:"18"`
}

type timers struct {
	Real    interval     `pb:"1"`
	Virtual interval     `pb:"2"`
	Profile interval     `pb:"3"`
	POSIX   []posixTimer `pb:"4"`
}

type interval struct {
	EverySec  uint64 `pb:"1"`
	EveryUsec uint64 `pb:"2"`
	LeftSec   uint64 `pb:"3"`
	LeftUsec  uint64 `pb:"4"`
}

type posixTimer struct {
	ID        uint32 `pb:"1"`
	Clock     uint32 `pb:"2"`
	Signal    uint32 `pb:"3"`
	Notify    uint32 `pb:"4"`
	Value     uint64 `pb:"5"`
	Overrun   uint32 `pb:"6"`
	EverySec  uint64 `pb:"7"`
	EveryNsec uint64 `pb:"8"`
	LeftSec   uint64 `pb:"9"`
	LeftNsec  uint64 `pb:"10"`
	Thread    *int32 `pb:"11"`
}

type limits struct {
	All []limit `pb:"1"`
}

type limit struct {
	Soft uint64 `pb:"1"`
	Hard uint64 `pb:"2"`
}

type signals struct {
	All []siginfo `pb:"1"`
}

type siginfo struct {
	Info []byte `pb:"1"`
}

type action struct {
	Handler  uint64 `pb:"1"`
	Flags    uint64 `pb:"2"`
	Restorer uint64 `pb:"3"`
	Mask     uint64 `pb:"4"`
	Compat   bool   `pb:"5"`
}

type threadCore struct {
	Robust     uint64      `pb:"1"`
	RobustSize uint32      `pb:"2"`
	Nice       int32       `pb:"3,zigzag"`
	Policy     uint32      `pb:"4"`
	Priority   *uint32     `pb:"5"`
	Blocked    uint64      `pb:"6"`
	AltStack   altStack    `pb:"7"`
	DeathSig   *uint32     `pb:"8"`
	Pending    signals     `pb:"9"`
	Rights     credentials `pb:"10"`
	Seccomp    *uint32     `pb:"11"` // mode
	Filter     *uint32     `pb:"12"`
	Name       string      `pb:"13"`
	Rseq       *rseq       `pb:"15"`
}

type seccomp struct {
	Filters []seccompFilter `pb:"1"`
}

type seccompFilter struct {
	Code   []byte  `pb:"1"`
	Before *uint32 `pb:"2"` // the one that was set before it
	Flags  *uint32 `pb:"3"`
}

type altStack struct {
	Address uint64 `pb:"1"`
	Size    uint64 `pb:"2"`
	Flags   uint32 `pb:"3"`
}

type credentials struct {
	UID         uint32   `pb:"1"`
	GID         uint32   `pb:"2"`
	EUID        uint32   `pb:"3"`
	EGID        uint32   `pb:"4"`
	SUID        uint32   `pb:"5"`
	SGID        uint32   `pb:"6"`
	FSUID       uint32   `pb:"7"`
	FSGID       uint32   `pb:"8"`
	Inheritable []uint32 `pb:"9"`
	Permitted   []uint32 `pb:"10"`
	Effective   []uint32 `pb:"11"`
	Bounding    []uint32 `pb:"12"`
	SecureBits  uint32   `pb:"13"`
	Groups      []uint32 `pb:"14"`
	NoNew       *uint32  `pb:"18"` // since CRIU 4.0
	Ambient     []uint32 `pb:"19"` // since CRIU 4.2
}

type rseq struct {
	Address   uint64 `pb:"1"`
	Size      uint32 `pb:"2"`
	Signature uint32 `pb:"3"`
}

type memory struct {
	StartCode  uint64   `pb:"1"`
	EndCode    uint64   `pb:"2"`
	StartData  uint64   `pb:"3"`
	EndData    uint64   `pb:"4"`
	StartStack uint64   `pb:"5"`
	StartBreak uint64   `pb:"6"`
	Break      uint64   `pb:"7"`
	ArgStart   uint64   `pb:"8"`
	ArgEnd     uint64   `pb:"9"`
	EnvStart   uint64   `pb:"10"`
	EnvEnd     uint64   `pb:"11"`
	Executable uint32   `pb:"12"`
	Auxv       []uint64 `pb:"13"`
	Mappings   []vma    `pb:"14"`
	Dumpable   int32    `pb:"15"`
	NoTHP      bool     `pb:"17"`
}

type vma struct {
	Start      uint64  `pb:"1"`
	End        uint64  `pb:"2"`
	Offset     uint64  `pb:"3"`
	ID         uint64  `pb:"4"` // of a file, or of shared memory
	Protection uint32  `pb:"5"`
	Flags      uint32  `pb:"6"`
	Status     uint32  `pb:"7"`
	Descriptor int64   `pb:"8,zigzag"` // -1
	Advice     *uint64 `pb:"9"`
	OpenedFor  *uint32 `pb:"10"`
}

type pagemapHead struct {
	Pages uint32 `pb:"1"` // number of the file
}

type pagemap struct {
	Start uint64 `pb:"1"`
	Count uint32 `pb:"2"`
	Flags uint32 `pb:"4"`
}
