package criu

import "github.com/virtualizing-os/vos/internal/image"

const (
	modeFilter = 2      // SECCOMP_MODE_FILTER
	flagLog    = 1 << 1 // SECCOMP_FILTER_FLAG_LOG
)

// A filterPlace tells apart filters behind which others stand: the same one in another
// chain is another one for CRIU.
type filterPlace struct {
	pid, filter int
	before      int // number of the one before, or -1
}

// filters returns the number of a thread's last filter, with those before it added.
func (x *export) filters(p *image.Process, t *image.Thread) *uint32 {
	last := -1
	for _, n := range t.Filters {
		key := filterPlace{p.PID, n, last}
		id, ok := x.chains[key]
		if !ok {
			e := seccompFilter{Code: p.Filters[n].Code}
			if last >= 0 {
				e.Before = new(uint32(last))
			}
			if p.Filters[n].Log {
				e.Flags = new(uint32(flagLog))
			}
			id = len(x.seccomp.Filters)
			x.chains[key] = id
			x.seccomp.Filters = append(x.seccomp.Filters, e)
		}
		last = id
	}
	if last < 0 {
		return nil
	}
	return new(uint32(last))
}
