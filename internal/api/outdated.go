package api

// OutdatedRequest asks which modules of a target are no longer what is on disk.
type OutdatedRequest struct {
	Target Target
}

// A Currency tells how current one process is: which of its modules were
// replaced or deleted on disk since they were mapped.
type Currency struct {
	PID      int
	Program  string
	Modules  int // that were looked at
	Outdated []OutdatedModule
	Unknown  []UncomparedModule
}

// A Verdict is what helps a program that runs an outdated module.
type Verdict string

// The verdicts.
const (
	VerdictReplace Verdict = "replace" // vos replace lets the new build take over while it runs
	VerdictRestart Verdict = "restart" // it runs the new build once it is started afresh
	// VerdictNone is of a module that was deleted from a folder for temporary
	// files: the program put it there for itself, and nothing newer exists.
	VerdictNone Verdict = "none"
)

// An OutdatedModule is a module of a process whose file was replaced by other
// bytes, or deleted, since it was mapped.
//
// Versions and build-ids are "" where they are not known. A file that was
// deleted may have a successor: the one that the module's soname leads to now.
type OutdatedModule struct {
	PID              int       `json:"pid"`
	Program          string    `json:"program"` // the process's name
	Module           string    `json:"module"`  // soname, or the file's name where it has none
	Path             string    `json:"path"`
	Package          string    `json:"package"`                   // that owns the path, in the process's root directory
	PackageProblem   string    `json:"package_problem,omitempty"` // why a package database that is there does not tell
	RunningVersion   string    `json:"running_version"`
	InstalledVersion string    `json:"installed_version"`
	RunningBuildID   string    `json:"running_build_id"`
	InstalledBuildID string    `json:"installed_build_id"`
	Change           string    `json:"change"` // FileReplaced or FileDeleted
	Verdict          Verdict   `json:"verdict"`
	Unit             string    `json:"unit"`                // the systemd service to restart
	UserUnit         bool      `json:"user_unit,omitempty"` // it is one of the user's own systemd
	Container        string    `json:"container,omitempty"` // the innermost one that the process is in
	Obstacles        []Refusal `json:"obstacles,omitempty"` // why only a restart helps
	Refusals         []Refusal `json:"refusals"`            // what could not be looked at
}

// An UncomparedModule is one whose file can't be compared with its path: whether
// it is outdated is not known.
type UncomparedModule struct {
	Module, Path string
	Refusal      Refusal
}
