package restart

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// Refusals of this package.
const (
	codePinned api.Code = "pinned_memory"
	codeShared api.Code = "shared_address_space"
)

func pinned(pid int, detail string) api.Refusal {
	return api.Refusal{Code: codePinned, Subject: fmt.Sprintf("process %d", pid), Detail: detail,
		Remedy: "vos checkpoint and vos restore, or restart the program"}
}

func shared(pid, other int) api.Refusal {
	return api.Refusal{Code: codeShared, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("process %d has the same address space and can't be stopped with it", other),
		Remedy: "try again when that process has ended, or has become another program"}
}
