package api

import "context"

// AttachRequest asks to count the calls between the modules of programs.
type AttachRequest struct {
	Target   Target
	Memory   bool // count bytes that modules allocate and free, too
	Pointers bool // count calls by pointers that the loader stored, too
	DryRun   bool
	Steps    bool // tell the plan in the result's Steps
}

// DetachRequest asks to take what counts out again.
type DetachRequest struct {
	Target Target
	DryRun bool
	Steps  bool
}

// The outcomes of an Interception, beside Clean, Planned, Refused and Failed.
const (
	Attached Outcome = "attached"
	Detached Outcome = "detached"
)

// An Interception is what became of the interceptor of one process.
type Interception struct {
	PID       int         `json:"pid"`
	Program   string      `json:"program"`
	Outcome   Outcome     `json:"outcome"`
	Memory    bool        `json:"memory"`   // bytes are counted, too
	Pointers  bool        `json:"pointers"` // so are calls by pointers
	Modules   int         `json:"modules"`  // that import, and whose calls are counted now
	Functions int         `json:"functions"`
	Slots     int         `json:"slots"`  // that were written
	Mapped    int64       `json:"mapped"` // bytes of address space that the process has for it now
	PauseUS   int64       `json:"pause_us"`
	BorrowUS  int64       `json:"borrow_us"`
	TotalUS   int64       `json:"total_us"`
	Restarted bool        `json:"restarted,omitempty"` // counts began anew, as memory was not counted before
	Uncounted []Uncounted `json:"uncounted,omitempty"` // what is not counted, with reasons
	Steps     []string    `json:"steps,omitempty"`     // the plan, with --dry-run or -v
	Residual  []string    `json:"residual"`            // what a detachment left in the process, and why
	Refusals  []Refusal   `json:"refusals"`
	Error     string      `json:"error,omitempty"`
}

// Uncounted are imported functions of one module whose calls are not counted, or not
// wholly, for one reason.
type Uncounted struct {
	Module    string   `json:"module"`
	Why       string   `json:"why"`
	Functions []string `json:"functions"`
}

// A Launcher starts programs whose calls are counted from their first instruction. The
// machine that vos runs on is one: a program is a child of the vos that starts it.
type Launcher interface {
	// Launch starts a program, calls held once its calls are counted and before it
	// begins, lets it begin, waits for its end, and returns its exit code, or 128 and
	// the number of the signal that killed it. Where the calls can't be counted, or held
	// fails, the program does not begin.
	Launch(ctx context.Context, r LaunchRequest, held func(Interception) error) (exitCode int, err error)
}

// LaunchRequest asks to start a program with the environment, the folder and the
// standard descriptors of vos.
type LaunchRequest struct {
	Path     string   // of the executable
	Args     []string // the first one is what the program is called by
	Memory   bool     // as in AttachRequest
	Pointers bool
}
