package descriptor

import (
	"fmt"
	"slices"
	"sort"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A group is the descriptors that lead to one description.
type group []*handle.Handle

// groupsOf finds which descriptors lead to one description, in the order of the first
// of each. Only those of the same file come into question; these are compared by
// kcmp, whose order makes that n log n calls where many have one file, as all
// eventfds have. The processes are held still.
func groupsOf(handles []handle.Handle) ([]group, error) {
	var groups []group
	sorted := map[handle.File][]int{} // indices of groups of one file, in kcmp's order
	for i := range handles {
		h := &handles[i]
		own := sorted[h.File()]
		var failed error
		compare := func(at int) int {
			o := groups[own[at]][0]
			order, err := kernel.CompareFiles(o.PID, o.FD, h.PID, h.FD)
			if err != nil {
				failed = err
			}
			return order
		}
		at := sort.Search(len(own), func(at int) bool { return failed != nil || compare(at) >= 0 })
		if failed == nil && at < len(own) && compare(at) == 0 {
			groups[own[at]] = append(groups[own[at]], h)
			continue
		}
		if failed != nil {
			return nil, fmt.Errorf("compare %s with others: %w", subject(h.PID, h.FD), failed)
		}
		sorted[h.File()] = slices.Insert(own, at, len(groups))
		groups = append(groups, group{h})
	}
	return groups, nil
}
