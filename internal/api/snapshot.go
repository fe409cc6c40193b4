package api

import "time"

// The outcomes of checkpoints and restores, beside Planned, Refused and Failed;
// Restored is that of a redirection, too.
const (
	Checkpointed Outcome = "checkpointed"
	Restarted    Outcome = "restarted"
)

// CheckRequest asks whether programs could be checkpointed. Nothing is stopped.
type CheckRequest struct {
	Target  Target // Module is ""
	Inherit []int  // as those of CheckpointRequest
	Tree    bool   // likewise
}

// A Check says what a checkpoint of one process would need.
type Check struct {
	PID            int       `json:"pid"`
	Program        string    `json:"program"`
	Model          string    `json:"model"`          // "minimal", "enhanced" or "full": how much of its surroundings its state needs
	Checkpointable bool      `json:"checkpointable"` //
	Threads        int       `json:"threads"`        //
	MappedBytes    uint64    `json:"mapped_bytes"`   //
	KeptBytes      uint64    `json:"kept_bytes"`     // of memory that an image would hold, as of now
	Descriptors    int       `json:"descriptors"`    //
	Refusals       []Refusal `json:"refusals"`       // what stands in the way
	Notes          []string  `json:"notes"`          // what a restore takes beside the image
}

// CheckpointRequest asks to write the state of a program down.
type CheckpointRequest struct {
	Target       Target // Module is ""; one process
	Directory    string // to be made; with Every the folder of images, which may be there
	LeaveRunning bool
	Tree         bool     // with all that descends from the process
	Inherit      []int    // descriptors that whoever restores gives
	Compression  string   // "none" or "zstd"
	Parent       string   // directory of the image before, whose pages are not written again
	Recipients   []string // age recipients to encrypt to
	Identities   []string // files of age identities, to read an encrypted parent
	DryRun       bool
	Every        time.Duration          // make one each time, until the context or the program ends; the program goes on
	Keep         int                    // with Every: how many
	Progress     func(SnapshotProgress) `json:"-"`
}

// RestoreRequest asks to build the program of an image again.
type RestoreRequest struct {
	Directory  string
	ForceFiles bool              // files may have changed since
	Map        map[string]string // paths: what is to be opened instead
	Inherit    map[int]int       // descriptors of the program: the caller's own numbers
	Identities []string          // files of age identities to decrypt with
	Here       bool              // in the namespaces of vOS, where the program had others
	AnyPID     bool              // where ids are taken, in a pid namespace of its own
	DryRun     bool

	// CloseConnections tells the program that its connections of TCP have ended.
	CloseConnections bool

	Progress func(SnapshotProgress) `json:"-"`
}

// A SnapshotProgress says how far a long checkpoint or restore has come.
type SnapshotProgress struct {
	Done, Total uint64 // bytes of memory
}

// A Snapshot is how the checkpoint or restore of one process ended.
type Snapshot struct {
	PID      int       `json:"pid"`
	Program  string    `json:"program"`
	Outcome  Outcome   `json:"outcome"`
	Model    string    `json:"model"`
	FreezeUS int64     `json:"freeze_us"` // all threads stopped; of a restore, 0
	TotalUS  int64     `json:"total_us"`
	Bytes    int64     `json:"bytes"` // of the image on its disk
	Image    string    `json:"image"` // directory
	Steps    []string  `json:"steps,omitempty"`
	Residual []string  `json:"residual"` // what is not as it was
	Refusals []Refusal `json:"refusals"`
	Error    string    `json:"error,omitempty"`
}

// ImageRequest asks what an image holds.
type ImageRequest struct {
	Directory  string
	Identities []string
	CRIU       string // a directory to make, for the same in CRIU's format
}

// An Image is what is known of a checkpoint on disk.
type Image struct {
	Directory string         `json:"directory"`
	ID        string         `json:"id"`
	Parent    string         `json:"parent"` // ID, "" for none
	Taken     time.Time      `json:"taken"`
	Model     string         `json:"model"`
	Kernel    string         `json:"kernel"`
	Hostname  string         `json:"hostname"`
	CPU       string         `json:"cpu"`
	Bytes     int64          `json:"bytes"` // on its disk
	Processes []ImageProcess `json:"processes"`
	Ended     []ImageEnded   `json:"ended,omitempty"`
	// Namespaces are those that were the program's own: "mnt", "net", …
	Namespaces []string `json:"namespaces,omitempty"`
	CRIU       string   `json:"criu,omitempty"`     // the directory that was made
	Residual   []string `json:"residual,omitempty"` // what is not in it as it was
}

// An ImageProcess is a process in an image.
type ImageProcess struct {
	PID         int               `json:"pid"`
	Parent      int               `json:"parent"`
	Program     string            `json:"program"`
	Command     []string          `json:"command"`
	Executable  string            `json:"executable"`
	Threads     int               `json:"threads"`
	MappedBytes uint64            `json:"mapped_bytes"`
	KeptBytes   uint64            `json:"kept_bytes"`
	Mappings    []ImageMapping    `json:"mappings,omitempty"`
	Descriptors []ImageDescriptor `json:"descriptors,omitempty"`
}

// An ImageEnded is a process in an image that has ended and was not waited for.
type ImageEnded struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"parent"`
	Program string `json:"program"`
	Status  string `json:"status"` // "exit code 7", "signal 9"
}

// An ImageMapping is an area of memory in an image.
type ImageMapping struct {
	Start      string `json:"start"` // "0x…"
	End        string `json:"end"`
	Kind       string `json:"kind"`
	Protection string `json:"protection"` // "rwx"
	Name       string `json:"name"`       // path, or the kernel's name for it
	KeptBytes  uint64 `json:"kept_bytes"`
}

// An ImageDescriptor is an open file in an image.
type ImageDescriptor struct {
	FD   int    `json:"fd"`
	Kind string `json:"kind"`
	Path string `json:"path"` // or address, where it has one
}
