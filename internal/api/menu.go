package api

// MenuRequest asks to put an item "vOS" into the menu bars of programs, or to take
// it out. Its entries start commands of vos.
type MenuRequest struct {
	Target Target
	Remove bool
	DryRun bool
	Steps  bool // tell the plan in the result's Steps
}

// The outcomes of operations on menus, beside those on modules.
const (
	Added   Outcome = "added"
	Removed Outcome = "removed"
)

// A Menu is what became of the menu bars of one process.
type Menu struct {
	PID      int       `json:"pid"`
	Program  string    `json:"program"`
	Outcome  Outcome   `json:"outcome"`
	MenuBars int       `json:"menu_bars"`        // that it has
	Changed  int       `json:"changed"`          // of these, in which the item was added or removed
	Mapped   string    `json:"mapped,omitempty"` // what the program has for it now: "0x…-0x…"
	PauseUS  int64     `json:"pause_us"`         // all threads stopped, first stop to last resume
	BorrowUS int64     `json:"borrow_us"`        // one thread borrowed, the others running; the longest time
	TotalUS  int64     `json:"total_us"`
	Steps    []string  `json:"steps,omitempty"`
	Residual []string  `json:"residual"` // what a removal left in the program, and why
	Refusals []Refusal `json:"refusals"`
	Error    string    `json:"error,omitempty"`
}

// A Verb is what a program's user asks vOS to do with that program.
type Verb string

// The verbs of a ControlRequest.
const (
	VerbStatus  Verb = "status"  // age, modules, what is outdated or corrupted
	VerbVerify  Verb = "verify"  // compare running code with its files
	VerbRefresh Verb = "refresh" // heal it

	VerbCheckpoint Verb = "checkpoint" // write its state to a directory of its user; it goes on
)

// Verbs are all verbs.
var Verbs = []Verb{VerbStatus, VerbVerify, VerbRefresh, VerbCheckpoint}

// ControlRequest asks for one verb on each process of a target.
type ControlRequest struct {
	Target Target
	Verb   Verb
	Show   bool // show the lines in a dialog of the program, by its menu
}

// A Control is how a verb ended for one process, in words for its user.
type Control struct {
	PID      int       `json:"pid"`
	Program  string    `json:"program"`
	Verb     Verb      `json:"verb"`
	Outcome  Outcome   `json:"outcome"`           // done, refreshed, clean, corrupt, checkpointed, refused, failed
	Lines    []string  `json:"lines"`             // in words
	Shown    bool      `json:"shown"`             // by the program itself
	Unshown  string    `json:"unshown,omitempty"` // why not, where that was asked for
	Refusals []Refusal `json:"refusals"`
	Error    string    `json:"error,omitempty"`
}

// The outcomes of verbs, beside those of operations.
const (
	Done    Outcome = "done"
	Corrupt Outcome = "corrupt" // running code differs from its file
)
