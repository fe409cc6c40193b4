package dump

import (
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// lookAtSpaces refuses processes of the program that have their address space in common
// with another process, as a parent and its child in vfork: each would have one of its own.
func (p *Plan) lookAtSpaces() ([]api.Refusal, error) {
	pids := slices.Clone(p.PIDs)
	var failed error
	compare := func(a, b int) int {
		order, err := kernel.CompareMemory(a, b)
		failed = errors.Join(failed, err)
		return order
	}
	slices.SortFunc(pids, compare)
	sharing := func(pid, other int) ([]api.Refusal, error) {
		return []api.Refusal{refused(codeSharedWith, processSubject(pid), fmt.Sprintf("process %d has its address space, too", other),
			"try again when that runs another program, or end it")}, nil
	}
	for i := 1; i < len(pids); i++ {
		if compare(pids[i-1], pids[i]) == 0 && failed == nil {
			return sharing(pids[i-1], pids[i])
		}
	}
	if failed != nil {
		return nil, failed
	}
	others, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if slices.Contains(p.PIDs, other) {
			continue
		}
		failed = nil // it has ended, or is nobody's whom vos may ask
		if i, found := slices.BinarySearchFunc(pids, other, compare); found && failed == nil {
			return sharing(pids[i], other)
		}
	}
	return nil, nil
}
