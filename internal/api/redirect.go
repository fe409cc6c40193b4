package api

// RedirectRequest asks to bind a descriptor of a program to something else.
type RedirectRequest struct {
	Target   Target // Module is ""
	FD       int
	To       string // file:PATH, append:PATH, tcp:HOST:PORT, unix:PATH, fd:PID:N
	Back     bool   // to what it was bound to before the first redirection
	Forget   bool   // give up what is kept of before
	All      bool   // in the processes that the target has started, too
	AsCaller bool   // open files and sockets by vOS's own rights
	AtRest   bool   // of a connection, wait until nothing is under way on it
	DryRun   bool
	Steps    bool // tell the plan in Steps
}

// The outcomes of redirections, beside Planned, Refused and Failed.
const (
	Redirected Outcome = "redirected"
	Restored   Outcome = "restored"
	Forgotten  Outcome = "forgotten"
)

// A Redirection is what was done to the descriptors of one process.
type Redirection struct {
	PID           int       `json:"pid"`
	Program       string    `json:"program"`
	FD            int       `json:"fd"` // that was named
	From          string    `json:"from"`
	To            string    `json:"to"`
	Outcome       Outcome   `json:"outcome"`
	PauseUS       int64     `json:"pause_us"` // all threads stopped, first stop to last resume
	TotalUS       int64     `json:"total_us"`
	Descriptors   []int     `json:"descriptors"`     // all that were bound to the same, and are bound anew
	Registrations int       `json:"registrations"`   // with epolls, carried over
	Kept          int       `json:"kept"`            // the descriptor by which what was before is kept; -1 is none
	Steps         []string  `json:"steps,omitempty"` // the plan, with --dry-run or -v
	Residual      []string  `json:"residual"`        // what else has to be known
	Refusals      []Refusal `json:"refusals"`
	Error         string    `json:"error,omitempty"`
}
