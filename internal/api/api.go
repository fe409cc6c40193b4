// Package api holds what the faces of vOS, the executive of one machine and
// the manager of many exchange: targets, requests, results and refusals, and
// the one interface that carries out commands.
//
// The JSON of these types is what `vos --json` prints: keys are snake_case and
// stable. A list is printed as one object a line, in the order emitted.
//
// The package stands beside the floors: all may import it, it imports none.
package api

import "context"

// An Executive carries out commands. The machine itself implements it in
// process (internal/vex); a daemon's socket and the community's manager will
// implement it over the wire, so every face works through any of them.
//
// Results are handed to emit as they come to be, from one goroutine at a time.
// A returned error joins what failed; a target that is refused as a whole is a
// Refusal (see Refusals), one that disappeared wraps ErrGone.
type Executive interface {
	// Programs emits the processes that match, grouped by program.
	Programs(ctx context.Context, r ProgramsRequest, emit func(Program) error) error
	// Modules emits every module of every process of the target.
	Modules(ctx context.Context, r ModulesRequest, emit func(Module) error) error
	// Verify emits one Verification a process and module.
	Verify(ctx context.Context, r VerifyRequest, emit func(Verification) error) error
	// Refresh emits one Operation a process and module.
	Refresh(ctx context.Context, r RefreshRequest, emit func(Operation) error) error
	// Replace emits one Operation a process and module: all processes of the
	// target's program are done, or none.
	Replace(ctx context.Context, r ReplaceRequest, emit func(Operation) error) error
	// Rollback emits one Operation a process and module, likewise.
	Rollback(ctx context.Context, r RollbackRequest, emit func(Operation) error) error
	// Menu emits one Menu a process.
	Menu(ctx context.Context, r MenuRequest, emit func(Menu) error) error
	// Control emits one Control a process.
	Control(ctx context.Context, r ControlRequest, emit func(Control) error) error
	// Attach emits one Interception a process.
	Attach(ctx context.Context, r AttachRequest, emit func(Interception) error) error
	// Detach emits one Interception a process.
	Detach(ctx context.Context, r DetachRequest, emit func(Interception) error) error
	// Usage emits one UsageReport a reading.
	Usage(ctx context.Context, r UsageRequest, emit func(UsageReport) error) error
	// Outdated emits one Currency a process, also of those that are up to date.
	Outdated(ctx context.Context, r OutdatedRequest, emit func(Currency) error) error
	// Handles emits one Holdings a process.
	Handles(ctx context.Context, r HandlesRequest, emit func(Holdings) error) error
	// Functions emits one FunctionHandles a process and module.
	Functions(ctx context.Context, r FunctionsRequest, emit func(FunctionHandles) error) error
	// Redirect emits one Redirection a process that has the descriptor's description
	// open: all are done, or none.
	Redirect(ctx context.Context, r RedirectRequest, emit func(Redirection) error) error
	// Check emits one Check a process.
	Check(ctx context.Context, r CheckRequest, emit func(Check) error) error
	// Checkpoint emits one Snapshot a process.
	Checkpoint(ctx context.Context, r CheckpointRequest, emit func(Snapshot) error) error
	// Restore emits one Snapshot a process.
	Restore(ctx context.Context, r RestoreRequest, emit func(Snapshot) error) error
	// Restart emits one Restart a process.
	Restart(ctx context.Context, r RestartRequest, emit func(Restart) error) error
	// Image returns what an image holds, checked.
	Image(ctx context.Context, r ImageRequest) (Image, error)
}

// ProgramsRequest asks for programs.
type ProgramsRequest struct {
	Target Target // Program "" and All select every process that has modules
	Quick  bool   // leave out what costs most: memory and corruption
}

// A Program is one running service: a process and those of its descendants
// that run the same executable (nginx: master and workers).
type Program struct {
	Name      string    `json:"name"`
	PID       int       `json:"pid"` // of the root process
	AgeMS     int64     `json:"age_ms"`
	Threads   int       `json:"threads"`
	PSSBytes  int64     `json:"pss_bytes"` // of those processes that could be read
	Modules   int       `json:"modules"`
	Outdated  int       `json:"outdated"` // modules whose file was replaced or deleted on disk
	Corrupt   int       `json:"corrupt"`  // modules with text that differs from the file, quick check
	Partial   bool      `json:"partial"`  // something could not be read; see Unread
	Unread    []string  `json:"unread,omitempty"`
	Refusals  []Refusal `json:"refusals,omitempty"` // why processes can't be looked into
	Processes []Process `json:"processes"`
}

// A Process is one process of a program.
type Process struct {
	PID             int      `json:"pid"`
	PPID            int      `json:"ppid"`
	Name            string   `json:"name"`
	Executable      string   `json:"executable"`
	UID             int      `json:"uid"`
	State           string   `json:"state"` // R S D T t Z, of proc_pid_stat(5)
	AgeMS           int64    `json:"age_ms"`
	Threads         int      `json:"threads"`
	PSSBytes        int64    `json:"pss_bytes"`
	Modules         int      `json:"modules"`
	OutdatedModules []string `json:"outdated_modules,omitempty"`
	CorruptModules  []string `json:"corrupt_modules,omitempty"`
	Unread          []string `json:"unread,omitempty"` // what could not be read, with the reason

	// Refusals tell why nobody can look into the process, root neither.
	Refusals []Refusal `json:"refusals,omitempty"`
}

// UnreadNotPermitted ends an entry of Unread that a user with more rights could
// read.
const UnreadNotPermitted = "not permitted"

// ModulesRequest asks for the modules of a target.
type ModulesRequest struct {
	Target Target
}

// What became of a module's file on disk since it was mapped.
const (
	FileSame     = "same"
	FileReplaced = "replaced" // another inode is at the path now
	FileDeleted  = "deleted"
	FileModified = "modified" // the same inode, written since the process started
	FileNone     = "none"     // memory only: the vDSO
	FileUnknown  = "unknown"  // it may not be read
)

// A Module is an ELF object mapped in a process.
type Module struct {
	PID            int       `json:"pid"`
	Program        string    `json:"program"` // the process's name
	Module         string    `json:"module"`  // soname, or the file's name where it has none
	Path           string    `json:"path"`    // as the process sees it
	BuildID        string    `json:"build_id"`
	Base           string    `json:"base"` // load address, "0x…"
	Kind           string    `json:"kind"` // executable, library, loader, vdso
	TextBytes      int64     `json:"text_bytes"`
	DataBytes      int64     `json:"data_bytes"`
	MappedBytes    int64     `json:"mapped_bytes"`
	DirtyTextPages int       `json:"dirty_text_pages"` // private, no longer the file's
	File           string    `json:"file"`             // same, replaced, deleted, …
	Outdated       bool      `json:"outdated"`
	Corrupt        bool      `json:"corrupt"`
	Generation     int       `json:"generation"` // that calls reach; 0 is the one that the program loaded
	Staged         bool      `json:"staged"`     // a build that vOS mapped; Generation is its number
	Refreshable    bool      `json:"refreshable"`
	Refusals       []Refusal `json:"refusals"`    // why it can't be refreshed
	Replaceable    bool      `json:"replaceable"` // by a build that nothing else speaks against
	Obstacles      []Refusal `json:"obstacles"`   // why no build can replace it

	Imported *int `json:"imported,omitempty"` // functions that it has import slots for; nil where that is not known
	Used     *int `json:"used,omitempty"`     // of these, called since they are counted; nil where they are not
}

// VerifyRequest asks whether the modules of a target are what their files say.
type VerifyRequest struct {
	Target Target
	Full   bool // every page, not only those the kernel knows as private
}

// What a difference comes from. Only Corruption makes a module corrupt.
const (
	KindCorruption = "corruption"
	KindBreakpoint = "breakpoint" // a lone int3 at an instruction: uprobe or debugger
	KindTextrel    = "textrel"    // DT_TEXTREL: the loader relocates text
	KindVOS        = "vos"        // written by vOS itself
)

// A Difference is one run of bytes, or one relocated word, that differs.
type Difference struct {
	PID      int    `json:"pid"`
	Program  string `json:"program"`
	Module   string `json:"module"`
	Section  string `json:"section"`
	Function string `json:"function"` // nearest, as name+0x10; "" where none is known
	Address  string `json:"address"`  // in the process, "0x…"
	Offset   string `json:"offset"`   // in the object's own addresses, "0x…"
	Length   int    `json:"length"`   // bytes that differ
	Found    string `json:"found"`    // hex, at most 64 bytes of it
	Expected string `json:"expected"` // hex, likewise; of a bound import "in a module that defines NAME"
	Kind     string `json:"kind"`
}

// A Verification is what verifying one module of one process showed.
type Verification struct {
	PID         int          `json:"pid"`
	Program     string       `json:"program"`
	Module      string       `json:"module"`
	Path        string       `json:"path"`
	Pages       int          `json:"pages"` // compared with the file
	Words       int          `json:"words"` // relocated words checked
	Differences []Difference `json:"differences"`
	Corrupt     bool         `json:"corrupt"`
	TotalUS     int64        `json:"total_us"`
	Refusals    []Refusal    `json:"refusals"`

	// Unchecked tells what was left out of a module that was compared.
	Unchecked []Refusal `json:"unchecked,omitempty"`
}

// RefreshRequest asks to heal the modules of a target.
type RefreshRequest struct {
	Target Target
	DryRun bool // emit what would be done, do nothing
	Full   bool // look at every page first, not only at private ones
	Steps  bool // tell the plan of each operation in its Steps
}

// ReplaceRequest asks to let another build of modules take over.
type ReplaceRequest struct {
	Target   Target
	With     string // the other build's file; "" is what is at the module's path now
	Debug    string // its debug file, or "": structures are then compared by it
	OldDebug string // the running build's debug file, or ""
	Outdated bool   // all modules of the target whose file was replaced on disk
	Partial  bool   // where a process refuses, do the others
	DryRun   bool
	Steps    bool // tell the plan of each operation in its Steps

	Progress func(Progress) `json:"-"` // may be nil
}

// RollbackRequest asks to let the generation before take over again.
type RollbackRequest struct {
	Target  Target
	Partial bool
	DryRun  bool
	Steps   bool

	Progress func(Progress) `json:"-"` // may be nil
}

// A Progress is how far a request has come whose results are emitted at its end,
// as all is planned before anything is done. It is handed to the request's
// Progress from the goroutine that emits, whenever there is more to say.
type Progress struct {
	Processes int // of the target, as many as are known
	Inspected int // of these, looked into
	Planned   int // modules for which a plan was made, refused ones included
	Settled   int // of these, carried out, or not to be
}

// An Outcome is how an operation on one module ended.
type Outcome string

// The outcomes of operations on modules.
const (
	Refreshed  Outcome = "refreshed"
	Replaced   Outcome = "replaced"
	RolledBack Outcome = "rolled_back"
	Clean      Outcome = "clean"   // there was nothing to do
	Planned    Outcome = "planned" // --dry-run
	Refused    Outcome = "refused"
	Failed     Outcome = "failed"
)

// An Operation is what was done to one module of one process.
type Operation struct {
	PID        int       `json:"pid"`
	Program    string    `json:"program"`
	Module     string    `json:"module"`
	Path       string    `json:"path"`
	Outcome    Outcome   `json:"outcome"`
	PauseUS    int64     `json:"pause_us"`  // all threads stopped, first stop to last resume
	BorrowUS   int64     `json:"borrow_us"` // one thread borrowed, the others running
	TotalUS    int64     `json:"total_us"`
	From       string    `json:"from"` // build-id before
	To         string    `json:"to"`   // and after
	Pages      int       `json:"pages"`
	Words      int       `json:"words"`
	Functions  int       `json:"functions"`            // redirected, of a replacement
	Generation int       `json:"generation"`           // that runs afterwards, 0 is what the program loaded
	Finishing  int       `json:"finishing"`            // threads that were within the build before, and finish there
	DrainedUS  int64     `json:"drained_us,omitempty"` // from the switch until all of these had left
	Remaining  int       `json:"remaining,omitempty"`  // of these, that may still be within a tenth of a second later
	Steps      []string  `json:"steps,omitempty"`      // the plan, with --dry-run or -v
	Residual   []string  `json:"residual"`             // what still differs, and why
	Refusals   []Refusal `json:"refusals"`
	Error      string    `json:"error,omitempty"`
}
