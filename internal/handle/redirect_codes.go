package handle

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// Refusals of redirections.
const (
	codeClosed        api.Code = "descriptor_closed"
	codeWrongType     api.Code = "wrong_type"
	codeAccessMode    api.Code = "access_mode"
	codeUnreachable   api.Code = "unreachable"
	codeNoPermission  api.Code = "no_permission"
	codeNotPollable   api.Code = "not_pollable"
	codeLocksHeld     api.Code = "locks_held"
	codeIOUring       api.Code = "io_uring"
	codeExhausted     api.Code = "descriptors_exhausted"
	codeTables        api.Code = "descriptor_tables"
	codeStale         api.Code = "stale_registration"
	codeOneshot       api.Code = "oneshot_disarmed"
	codeTooMany       api.Code = "too_many_references"
	codeNotAtOnce     api.Code = "not_at_once"
	codeNotRedirected api.Code = "not_redirected"
	codeRebound       api.Code = "rebound"
	codeShared        api.Code = "shared_signals"
	codeBlocking      api.Code = "blocking_differs"
	codeChanging      api.Code = "still_changing"
	codeInUse         api.Code = "connection_in_use"
	codeCall          api.Code = "call_failed"
	codeOther         api.Code = "other_process"
)

func subject(pid, fd int) string { return fmt.Sprintf("descriptor %d of process %d", fd, pid) }

func closedRefusal(pid, fd int) error {
	return api.Refusal{Code: codeClosed, Subject: subject(pid, fd), Detail: "it is not open",
		Remedy: "vos handles lists the descriptors that are"}
}

func exhaustedRefusal(pid, limit int) error {
	return api.Refusal{Code: codeExhausted, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("vOS needs six more descriptors in it for a moment, and its limit is %d", limit),
		Remedy: fmt.Sprintf("raise its limit: prlimit --pid %d --nofile=N", pid)}
}

func callRefusal(pid int, what string, err error) error {
	return fmt.Errorf("%w: %w", api.Refusal{Code: codeCall, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("it can't %s: %v", what, err), Remedy: "try again; if it is the same, restart the program with another setting"}, err)
}
