package tracee

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// findGadgets looks for the instructions that Gadgets needs in the code that
// the process has mapped, outside of what is to be avoided. The vDSO comes first,
// as it is in every process and no file's, then the C library, which has them
// all. For what only Session.Ask needs no more mappings are read.
func findGadgets(process *procfs.Process, memory *procfs.Memory, avoid []Range) (Gadgets, error) {
	maps, err := process.Maps()
	if err != nil {
		return Gadgets{}, err
	}
	maps = slices.DeleteFunc(maps, func(m procfs.Mapping) bool {
		return m.Perms&procfs.Exec == 0 || m.Perms&procfs.Read == 0 || m.Kind == procfs.KindVsyscall
	})
	slices.SortStableFunc(maps, func(a, b procfs.Mapping) int { return searchRank(&a) - searchRank(&b) })
	var g Gadgets
	buf := make([]byte, 256<<10)
	for _, m := range maps {
		for _, part := range without(Range{m.Start, m.End}, avoid) {
			for at := part.Start; at < part.End && !g.Pops(); {
				n, err := memory.ReadAt(buf[:min(uint64(len(buf)), part.End-at)], int64(at))
				if errors.Is(err, procfs.ErrGone) {
					return Gadgets{}, err
				}
				if n == 0 && err != nil {
					break // pages beyond the end of a file cannot be read
				}
				g.Add(buf[:n], at)
				at += uint64(n)
			}
		}
		if g.Complete() {
			return g, nil
		}
	}
	if g.Sufficient() {
		return g, nil
	}
	return Gadgets{}, api.Refusal{Code: codeNoGadget, Subject: fmt.Sprintf("process %d", process.PID()),
		Detail: "its code has no system call instruction that returns, or none that ends a signal handler",
		Remedy: "try again if it has only just been started; otherwise restart it"}
}

func searchRank(m *procfs.Mapping) int {
	file := path.Base(m.Path)
	switch {
	case m.Kind == procfs.KindVDSO:
		return 0
	case strings.HasPrefix(file, "libc.so"), strings.HasPrefix(file, "libc-"), strings.HasPrefix(file, "ld-musl"):
		return 1
	case strings.HasPrefix(file, "ld-linux"):
		return 2
	}
	return 3
}

// without returns the parts of r that none of the ranges covers.
func without(r Range, avoid []Range) []Range {
	parts := []Range{r}
	for _, a := range avoid {
		var left []Range
		for _, p := range parts {
			if a.End <= p.Start || a.Start >= p.End {
				left = append(left, p)
				continue
			}
			if p.Start < a.Start {
				left = append(left, Range{p.Start, a.Start})
			}
			if a.End < p.End {
				left = append(left, Range{a.End, p.End})
			}
		}
		parts = left
	}
	return parts
}
