package bench

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Heal measures the healing of one page and of all code of the C library, on
// programs with blocked and busy threads.
func Heal(ctx context.Context, runs int) ([]Figure, error) {
	var figures []Figure
	for _, c := range threadCases {
		for _, whole := range []bool{false, true} {
			what := "one page"
			if whole {
				what = "all code of libc"
			}
			label := fmt.Sprintf("%s, %s threads, %s", what, c[0], c[1])
			held := Figure{Name: "refresh of " + label + ": held up"}
			total := Figure{Name: "refresh of " + label + ": in all"}
			if !whole && c[0] == "1" {
				held.Aim = "200 µs"
			}
			err := withThreads(ctx, c[0], c[1], func(p *procfs.Process) error {
				for range runs {
					times, all, err := healOnce(ctx, p.PID(), whole)
					if err != nil {
						return err
					}
					held.Samples = append(held.Samples, max(times.Pause, times.Borrow))
					total.Samples = append(total.Samples, all)
				}
				return nil
			})
			if err != nil {
				return figures, err
			}
			figures = append(figures, held, total)
		}
	}
	return figures, nil
}

// healOnce corrupts the C library of a process, in padding between functions
// that nobody runs, and heals it.
func healOnce(ctx context.Context, pid int, whole bool) (times tracee.Times, total time.Duration, err error) {
	p, err := module.Open(pid)
	if err != nil {
		return times, 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	libc := find(p, "libc.so.6")
	if libc == nil {
		return times, 0, fmt.Errorf("process %d has no libc.so.6", pid)
	}
	if err := corruptPadding(p, libc, whole); err != nil {
		return times, 0, err
	}
	begin := time.Now()
	plan, err := p.Plan(ctx, libc, false)
	if err != nil {
		return times, 0, err
	}
	if plan.Empty() {
		return times, 0, errors.New("the corruption was not found")
	}
	done, err := p.Commit(ctx, []*module.Plan{plan})
	return done.Times, time.Since(begin), err
}

func find(p *module.Process, name string) *module.Module {
	for _, m := range p.Modules {
		if strings.HasPrefix(m.Name, name) {
			return m
		}
	}
	return nil
}

// corruptPadding changes a byte between two functions on one page, or on every
// page of the code that has such a byte.
func corruptPadding(p *module.Process, m *module.Module, every bool) (err error) {
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	fdes, err := m.Object.FDEs()
	if err != nil {
		return err
	}
	last := uint64(0)
	for i := 1; i < len(fdes); i++ {
		end := fdes[i-1].Start + fdes[i-1].Size
		segment, ok := m.Object.SegmentAt(end)
		if !ok || segment.Flags&elf.PF_X == 0 || end >= fdes[i].Start || end/procfs.PageSize == last {
			continue
		}
		last = end / procfs.PageSize
		if _, err := memory.WriteAt([]byte{0x5a}, int64(end+m.Bias)); err != nil {
			return err
		}
		if !every {
			return nil
		}
	}
	return nil
}
