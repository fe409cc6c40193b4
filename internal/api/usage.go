package api

import "time"

// UsageRequest asks what the modules of a target call, allocate and hold.
type UsageRequest struct {
	Target    Target
	Attach    bool          // attach first: what is counted already goes on
	Memory    bool          // bytes, too
	For       time.Duration // two readings so far apart, and three between; 0: one reading
	Every     time.Duration // readings so far apart until the context ends; 0: not again and again
	Functions bool          // tell of each function that was called
	Samples   bool          // tell where blocks were allocated that nobody has freed
}

// A UsageReport is what one reading of all processes showed.
type UsageReport struct {
	Round         int
	Interceptions []Interception // what was attached for it, and what was refused
	Usages        []Usage        // by processes, and then by calls
	Samples       []SampledBlocks
	Ended         []int // processes that have ended since the reading before
}

// A Usage is what one module of one process has called, allocated and holds.
type Usage struct {
	PID      int    `json:"pid"`
	Program  string `json:"program"`
	Module   string `json:"module"` // or ByPointer
	Base     string `json:"base"`   // "0x…", "" for ByPointer
	Round    int    `json:"round,omitempty"`
	Gone     bool   `json:"gone,omitempty"` // the program has closed it since
	Imported int    `json:"imported"`       // functions that it has import slots for
	Used     int    `json:"used"`           // of these, called since they are counted
	Calls    uint64 `json:"calls"`

	// ForUS is the time that rates and growth are of, 0 where there was one reading.
	ForUS          int64   `json:"for_us,omitempty"`
	CallsPerSecond float64 `json:"calls_per_second,omitempty"`

	Opens  uint64 `json:"opens"`  // calls that open descriptors, as many as they would open
	Closes uint64 `json:"closes"` // calls that close one

	Memory         bool  `json:"memory"` // the rest is counted
	AllocatedBytes int64 `json:"allocated_bytes"`
	FreedBytes     int64 `json:"freed_bytes"`
	HeldBytes      int64 `json:"held_bytes"`  // the difference: negative where it frees what others allocate
	OwnedBytes     int64 `json:"owned_bytes"` // that it allocated and nobody has freed: estimated from samples

	HeldBytesPerSecond  float64 `json:"held_bytes_per_second,omitempty"`
	OwnedBytesPerSecond float64 `json:"owned_bytes_per_second,omitempty"`
	OwnedErrorBytes     int64   `json:"owned_error_bytes,omitempty"` // standard error of what it has grown by
	Grows               bool    `json:"grows"`                       // what it owns grew steadily all the time

	Functions []FunctionUsage `json:"functions,omitempty"` // that were called
	Uncounted []Uncounted     `json:"uncounted,omitempty"`
}

// ByPointer is the module of calls by pointers, which may be any module's.
const ByPointer = "(by pointer)"

// A FunctionUsage is what a module has called one function for.
type FunctionUsage struct {
	Function       string  `json:"function"` // NAME or NAME@VERSION
	Of             string  `json:"of"`       // module that defines it, "" where that is mapped no more
	Calls          uint64  `json:"calls"`
	CallsPerSecond float64 `json:"calls_per_second,omitempty"`
	AllocatedBytes int64   `json:"allocated_bytes,omitempty"`
	FreedBytes     int64   `json:"freed_bytes,omitempty"`
}

// SampledBlocks are blocks that nobody has freed, of one place in the program.
type SampledBlocks struct {
	PID      int
	Program  string
	Module   string // that called
	Caller   string // function that it called from
	Function string // that it called
	Bytes    int64  // estimated
}
