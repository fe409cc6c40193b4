package api

// RestartRequest asks to give programs fresh memory.
type RestartRequest struct {
	Target   Target // Module is ""
	DryRun   bool
	Progress func(SnapshotProgress) `json:"-"`
}

// A Restart is how the restart of one process ended.
type Restart struct {
	PID          int          `json:"pid"`
	Program      string       `json:"program"`
	Outcome      Outcome      `json:"outcome"`
	FreezeUS     int64        `json:"freeze_us"` // the longest that all threads were stopped
	PausedUS     int64        `json:"paused_us"` // all in all
	TotalUS      int64        `json:"total_us"`
	Rounds       int          `json:"rounds"`
	Bytes        int64        `json:"bytes"`         // of memory that is fresh now, or would be
	DroppedBytes int64        `json:"dropped_bytes"` // pages of zeroes that are there no more
	Before       MemoryState  `json:"before"`
	After        MemoryState  `json:"after"`
	Left         []LeftMemory `json:"left"` // what stays as it is
	Refusals     []Refusal    `json:"refusals"`
	Error        string       `json:"error,omitempty"`
}

// A MemoryState is how much a process has.
type MemoryState struct {
	Mappings        int   `json:"mappings"`
	ResidentBytes   int64 `json:"resident_bytes"`
	PageTablesBytes int64 `json:"page_tables_bytes"`
}

// A LeftMemory is memory that a restart leaves as it is.
type LeftMemory struct {
	Reason   string `json:"reason"`
	Mappings int    `json:"mappings"`
	Bytes    int64  `json:"bytes"` // of address space
}
