package image

import "time"

// Version is that of the format. Images of another one are refused.
const Version = 1

// An Image is one checkpoint of one program: a process, or a tree of them.
type Image struct {
	ID        string    `cbor:"id"`               // 32 hexadecimal digits, random
	Parent    string    `cbor:"parent,omitempty"` // ID of the image that holds the pages which did not change
	Taken     time.Time `cbor:"taken"`
	Model     Model     `cbor:"model"`
	Machine   Machine   `cbor:"machine"`
	Processes []Process `cbor:"processes"`       // parents before their children; the first is the root
	Ended     []Ended   `cbor:"ended,omitempty"` // processes that were not waited for
	Files     []File    `cbor:"files,omitempty"`
	Objects   []Object  `cbor:"objects,omitempty"`
	Apart     *Apart    `cbor:"apart,omitempty"`
	Held      string    `cbor:"held,omitempty"` // table of nf_tables that holds the connections that the program was ended with
}

// Apart are the namespaces of a program that was in others than whoever asked for its
// checkpoint.
type Apart struct {
	Kinds  []string `cbor:"kinds"`            // "mnt", "net", …, as in /proc/PID/ns
	Pinned string   `cbor:"pinned,omitempty"` // the folder that holds them until the restore
}

// A Model is how much of a program's surroundings its state needs.
type Model string

// Models, the smaller first.
const (
	Minimal  Model = "minimal"  // memory, threads, and handles that nobody else has
	Enhanced Model = "enhanced" // files and connections, too
	Full     Model = "full"     // process trees, terminals, namespaces
)

// A Machine is what a program ran on.
type Machine struct {
	Kernel     string        `cbor:"kernel"`      // release, as uname(2)
	Hostname   string        `cbor:"hostname"`    //
	BootID     string        `cbor:"boot_id"`     // tells whether pids, inodes and monotonic time still mean the same
	SinceBoot  time.Duration `cbor:"since_boot"`  // CLOCK_BOOTTIME when it was taken
	Monotonic  time.Duration `cbor:"monotonic"`   // CLOCK_MONOTONIC when it was taken, as the program reads it
	CPU        string        `cbor:"cpu"`         // model name, for people
	Features   []string      `cbor:"features"`    // flags of /proc/cpuinfo
	XFeatures  uint64        `cbor:"xfeatures"`   // XCR0: components of the extended state
	XStateSize int           `cbor:"xstate_size"` // bytes of it, in standard form
}

// A Process is one process with all that belongs to it alone. Ids are those of the
// pid namespace that the checkpoint was taken from.
type Process struct {
	PID     int `cbor:"pid"`
	Parent  int `cbor:"parent"` // 0 for the root: whoever restores it
	Group   int `cbor:"group"`
	Session int `cbor:"session"`
	// Terminal is the pseudo terminal, of /dev/pts, that controls it, if its master is the
	// program's.
	Terminal *int     `cbor:"terminal,omitempty"`
	Program  string   `cbor:"program"` // name, for people
	Command  []string `cbor:"command"` // arguments, for people: the memory holds them

	Executable  FileRef     `cbor:"executable"`
	Running     *int        `cbor:"running,omitempty"` // of an executable that was deleted: its file in Image.Objects
	Directory   string      `cbor:"directory"`
	Root        string      `cbor:"root"`
	Umask       uint32      `cbor:"umask"`
	ExitSignal  int         `cbor:"exit_signal"`
	Credentials Credentials `cbor:"credentials"`
	Limits      []Limit     `cbor:"limits"` // by RLIMIT_ number

	ControlGroups []ControlGroup `cbor:"control_groups,omitempty"` // one a hierarchy

	Dumpable        int  `cbor:"dumpable"` // PR_SET_DUMPABLE
	ChildSubreaper  bool `cbor:"child_subreaper,omitempty"`
	NoNewPrivileges bool `cbor:"no_new_privileges,omitempty"`
	NoTHP           bool `cbor:"no_thp,omitempty"` // PR_SET_THP_DISABLE
	OOMScoreAdjust  int  `cbor:"oom_score_adjust,omitempty"`
	ParentDeath     int  `cbor:"parent_death,omitempty"` // PR_SET_PDEATHSIG of the main thread

	Layout      Layout       `cbor:"layout"`
	Mappings    []Mapping    `cbor:"mappings"` // by ascending address
	Descriptors []Descriptor `cbor:"descriptors,omitempty"`
	Threads     []Thread     `cbor:"threads"` // the main thread first
	Actions     []Action     `cbor:"actions"` // of signal 1 and up
	Pending     []Signal     `cbor:"pending,omitempty"`
	Intervals   [3]Interval  `cbor:"intervals"` // ITIMER_REAL, _VIRTUAL, _PROF
	Timers      []Timer      `cbor:"timers,omitempty"`
	Filters     []Filter     `cbor:"filters,omitempty"` // of its threads
}

// An Ended is a process that has ended, and was not waited for.
type Ended struct {
	PID        int    `cbor:"pid"`
	Parent     int    `cbor:"parent"` // one of Image.Processes
	Group      int    `cbor:"group"`
	Session    int    `cbor:"session"`
	Program    string `cbor:"program"` // its name
	Status     uint32 `cbor:"status"`  // as wait(2) has it: of an exit, or of a signal
	ExitSignal int    `cbor:"exit_signal"`
	UID        uint32 `cbor:"uid"` // the real one, as waitid(2) tells it
	GID        uint32 `cbor:"gid"`
}

// CoreDumped is the part of a status that says that a core was dumped.
const CoreDumped = 0x80

// Signal is the signal that ended it; 0 of one that has exited.
func (e *Ended) Signal() int { return int(e.Status&^CoreDumped) & 0x7f }

// Code is the exit code of one that has exited.
func (e *Ended) Code() int { return int(e.Status >> 8) }

// Credentials are ids and privileges.
type Credentials struct {
	UID    [4]uint32 `cbor:"uid"` // real, effective, saved, file system
	GID    [4]uint32 `cbor:"gid"`
	Groups []uint32  `cbor:"groups,omitempty"`

	Inheritable uint64 `cbor:"inheritable,omitempty"`
	Permitted   uint64 `cbor:"permitted,omitempty"`
	Effective   uint64 `cbor:"effective,omitempty"`
	Bounding    uint64 `cbor:"bounding,omitempty"`
	Ambient     uint64 `cbor:"ambient,omitempty"`
	SecureBits  uint32 `cbor:"secure_bits,omitempty"`
}

// A ControlGroup is a place in a hierarchy of cgroups(7).
type ControlGroup struct {
	Controllers string `cbor:"controllers,omitempty"` // of version 1: "cpu,cpuacct", "name=systemd"; "" is version 2
	Path        string `cbor:"path"`                  // from the root of vOS's cgroup namespace
}

// A Filter is one of seccomp(2).
type Filter struct {
	Code []byte `cbor:"code"` // the kernel's struct sock_filter, 8 bytes each
	Log  bool   `cbor:"log,omitempty"`
}

// A Limit is one of getrlimit(2).
type Limit struct {
	Soft uint64 `cbor:"s"`
	Hard uint64 `cbor:"h"`
}

// A FileRef names a file and says how it was, so that another one in its place is
// found out.
type FileRef struct {
	Path     string    `cbor:"path"` // as the program's root directory sees it
	Device   uint64    `cbor:"device"`
	Inode    uint64    `cbor:"inode"`
	Size     int64     `cbor:"size"`
	Modified time.Time `cbor:"modified"`
	BuildID  string    `cbor:"build_id,omitempty"` // of ELF files that are mapped
}

// A Thread is one thread.
type Thread struct {
	TID       int           `cbor:"tid"`
	Name      string        `cbor:"name"`
	Registers Registers     `cbor:"registers"`
	XState    []byte        `cbor:"xstate"` // as NT_X86_XSTATE
	Restart   *Restart      `cbor:"restart,omitempty"`
	Mask      uint64        `cbor:"mask"` // blocked signals
	Pending   []Signal      `cbor:"pending,omitempty"`
	AltStack  AltStack      `cbor:"altstack"`
	ClearTID  uint64        `cbor:"clear_tid,omitempty"` // set_tid_address(2)
	Robust    RobustList    `cbor:"robust"`
	Rseq      *Rseq         `cbor:"rseq,omitempty"`
	Affinity  []uint64      `cbor:"affinity"` // words of the CPU mask
	Scheduler Scheduler     `cbor:"scheduler"`
	Slack     time.Duration `cbor:"slack"`             // PR_SET_TIMERSLACK
	Persona   uint32        `cbor:"persona,omitempty"` // personality(2)
	Filters   []int         `cbor:"filters,omitempty"` // in Process.Filters, the oldest first
}

// Registers are those of ptrace(2)'s user_regs_struct, as the thread is to have them
// in user mode: system calls that were cut short are already made to be redone.
type Registers struct {
	R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8   uint64
	RAX, RCX, RDX, RSI, RDI, OrigRAX, RIP, CS, Flags uint64
	RSP, SS, FSBase, GSBase, DS, ES, FS, GS          uint64
	_                                                struct{} `cbor:",toarray"`
}

// A Restart is a system call with a limit of time that the thread was in: when it
// goes on, Number is called again with Left in place of what its time argument was.
type Restart struct {
	Number uint64        `cbor:"number"`
	Args   [6]uint64     `cbor:"args"`
	Left   time.Duration `cbor:"left"`
}

// An AltStack is sigaltstack(2)'s stack_t.
type AltStack struct {
	Address uint64 `cbor:"address"`
	Size    uint64 `cbor:"size"`
	Flags   uint32 `cbor:"flags"`
}

// A RobustList is that of get_robust_list(2).
type RobustList struct {
	Head   uint64 `cbor:"head"`
	Length uint64 `cbor:"length"`
}

// An Rseq is a registration of rseq(2).
type Rseq struct {
	Address   uint64 `cbor:"address"`
	Size      uint32 `cbor:"size"`
	Signature uint32 `cbor:"signature"`
	Flags     uint32 `cbor:"flags"`
}

// A Scheduler is a policy with its parameters, as sched_setattr(2)'s.
type Scheduler struct {
	Policy   uint32 `cbor:"policy"`
	Flags    uint64 `cbor:"flags"`
	Nice     int32  `cbor:"nice"`
	Priority uint32 `cbor:"priority"`
	Runtime  uint64 `cbor:"runtime,omitempty"`
	Deadline uint64 `cbor:"deadline,omitempty"`
	Period   uint64 `cbor:"period,omitempty"`
}

// An Action is the kernel's struct sigaction.
type Action struct {
	Handler  uint64 `cbor:"h"`
	Flags    uint64 `cbor:"f"`
	Restorer uint64 `cbor:"r"`
	Mask     uint64 `cbor:"m"`
}

// A Signal is a pending one: the kernel's siginfo_t of 128 bytes.
type Signal []byte

// An Interval is that of setitimer(2): both as time spans.
type Interval struct {
	Every time.Duration `cbor:"e"`
	Left  time.Duration `cbor:"l"`
}

// A Timer is one of timer_create(2).
type Timer struct {
	ID      int      `cbor:"id"`
	Clock   int      `cbor:"clock"`
	Notify  int      `cbor:"notify"` // SIGEV_…
	Signal  int      `cbor:"signal"`
	Thread  int      `cbor:"thread,omitempty"`
	Value   uint64   `cbor:"value"` // sigev_value
	Overrun int      `cbor:"overrun,omitempty"`
	Time    Interval `cbor:"time"`
}
