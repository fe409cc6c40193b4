package descriptor

import (
	"fmt"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
)

// Refusals of keeping descriptors.
const (
	codeKind       api.Code = "descriptor_kind"
	codeOutside    api.Code = "end_outside"
	codeShared     api.Code = "shared_outside"
	codeTables     api.Code = "descriptor_tables"
	codeLocks      api.Code = "file_locks"
	codeDeleted    api.Code = "file_deleted"
	codeHidden     api.Code = "file_hidden"
	codeProc       api.Code = "process_file"
	codeDevice     api.Code = "device"
	codePackets    api.Code = "pipe_packets"
	codeSignal     api.Code = "signal_owner"
	codeStale      api.Code = "stale_registration"
	codeOneshot    api.Code = "oneshot_disarmed"
	codeMoving     api.Code = "descriptors_changing"
	codeFilter     api.Code = "socket_filter"
	codeNetwork    api.Code = "network_namespace"
	codeConnection api.Code = "connection"
	codeWaiting    api.Code = "not_received"
	codeInFlight   api.Code = "in_flight"
	codeTerminal   api.Code = "terminal"
)

// Refusals of making them again.
const (
	codeMissing   api.Code = "file_missing"
	codeChanged   api.Code = "file_changed"
	codeInherited api.Code = "not_inherited"
	codeAddress   api.Code = "address_taken"
	codeLocked    api.Code = "lock_taken"

	codeTerminalTaken api.Code = "terminal_taken"
	codeLost          api.Code = "connection_lost"
)

// TryAgain is the remedy for what lasts for a moment only: whoever is refused by nothing else
// does well to follow it by himself.
const TryAgain = "try again"

func subject(pid, fd int) string { return fmt.Sprintf("descriptor %d of process %d", fd, pid) }

// refusal is one of keeping what a handle leads to.
func refusal(code api.Code, h *handle.Handle, detail, remedy string) api.Refusal {
	return api.Refusal{Code: code, Subject: subject(h.PID, h.FD), Detail: detail, Remedy: remedy}
}

// leadsTo says in words what a handle leads to.
func leadsTo(h *handle.Handle) string {
	what := h.Link
	if h.Path != "" {
		what = h.Path
	}
	if s := h.Socket; s != nil {
		what = strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Family, s.Type, s.State))
		if a := s.LocalAddress(); a != "" {
			what += " at " + a
		}
		if a := s.RemoteAddress(); a != "" {
			what += " to " + a
		}
	}
	return fmt.Sprintf("it leads to a %s: %s", h.Kind, what)
}

// holdersText names the first holders and how many there are.
func holdersText(holders []handle.Holder) string {
	o := holders[0]
	text := fmt.Sprintf("process %d (%s) as descriptor %d", o.PID, o.Program, o.FD)
	if n := len(holders) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

func inheritRemedy(fd int) string {
	return fmt.Sprintf("--inherit %d: whoever restores gives it", fd)
}
