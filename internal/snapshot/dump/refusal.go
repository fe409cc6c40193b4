package dump

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// Refusals of checkpoints.
const (
	codeChildren   api.Code = "child_processes"
	codeSession    api.Code = "session_lost"
	codeGroup      api.Code = "process_group_lost"
	codeNamespace  api.Code = "foreign_namespace"
	codeSeccomp    api.Code = "seccomp_filter"
	codeTerminal   api.Code = "controlling_terminal"
	codeDevice     api.Code = "device_mapping"
	codeHuge       api.Code = "huge_pages"
	codeAIO        api.Code = "aio_context"
	codeFault      api.Code = "userfaultfd"
	codeMapping    api.Code = "mapping_unknown"
	codeDeleted    api.Code = "mapped_file_deleted"
	codeSharedWith api.Code = "memory_shared"
	codeRoot       api.Code = "root_directory"
	codeThreadIDs  api.Code = "thread_credentials"
	codeTimers     api.Code = "timers_unknown"
	codeMoving     api.Code = "still_changing_memory"
	codeZombie     api.Code = "main_thread_ended"
	codeKeys       api.Code = "keyring"
)

const noRemedy = "none is known"

func refused(code api.Code, subject, detail, remedy string) api.Refusal {
	return api.Refusal{Code: code, Subject: subject, Detail: detail, Remedy: remedy}
}

func processSubject(pid int) string { return fmt.Sprintf("process %d", pid) }

func mappingSubject(pid int, start, end uint64) string {
	return fmt.Sprintf("mapping %x-%x of process %d", start, end, pid)
}
