package module

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

const (
	madviseDontNeed       = 4
	madviseDontNeedLocked = 24 // Linux 5.18: of memory that the program has locked, too
)

// A Refresh is how carrying out the plans of one process went.
type Refresh struct {
	Times tracee.Times
	Total time.Duration
}

// Commit carries out the plans of modules of one process, in one session: all
// of them or, where it returns an error, none that matters: a page that was
// dropped and a word that was written are right by themselves.
//
// A plan that is empty or holds refusals is passed over.
func (p *Process) Commit(ctx context.Context, plans []*Plan) (Refresh, error) {
	begin := time.Now()
	var work []*Plan
	var avoid []tracee.Range
	stop := false
	for _, plan := range plans {
		if plan.Empty() || len(plan.Refusals) > 0 {
			continue
		}
		work = append(work, plan)
		stop = stop || plan.Module.Opened
		// The rest of a page that is dropped is the same before and after.
		avoid = append(avoid, plan.Bad...)
		for _, w := range plan.Writes {
			avoid = append(avoid, tracee.Range{Start: w.Address, End: w.Address + uint64(len(w.Bytes))})
		}
	}
	if len(work) == 0 {
		return Refresh{Total: time.Since(begin)}, nil
	}
	stop = stop || p.busy()
	times, err := tracee.Do(ctx, p.Process, tracee.Options{Avoid: avoid, Identity: p.identity}, func(s *tracee.Session) error {
		if stop {
			if err := s.StopAll(); err != nil {
				return err
			}
			if err := p.stillMapped(work); err != nil {
				return err
			}
		}
		if err := drop(s, work); err != nil {
			return err
		}
		return write(s, work)
	})
	return Refresh{Times: times, Total: time.Since(begin)}, err
}

// busy reports whether the process alone keeps all processors busy: then a
// borrowed thread would wait for its turn at each step, and it is quicker for
// all to stop.
func (p *Process) busy() bool {
	tids, err := p.Threads()
	if err != nil || len(tids) < runtime.NumCPU() {
		return false
	}
	running := 0
	for _, tid := range tids {
		if stat, err := p.ThreadStat(tid); err == nil && stat.State == 'R' {
			if running++; running >= runtime.NumCPU() {
				return true
			}
		}
	}
	return false
}

// stillMapped checks, with all threads stopped, that the modules of the plans
// are where they were.
func (p *Process) stillMapped(plans []*Plan) error {
	maps, err := p.Maps()
	if err != nil {
		return err
	}
	for _, plan := range plans {
		m := plan.Module
		mapped := slices.ContainsFunc(maps, func(now procfs.Mapping) bool {
			return now.Start == m.mapping.Start && now.Offset == m.mapping.Offset && fileOf(&now) == fileOf(&m.mapping)
		})
		if !mapped {
			return api.Refusal{Code: codeUnmapped, Subject: m.Name,
				Detail: "the program closed it meanwhile", Remedy: "try again if the program still uses it"}
		}
	}
	return nil
}

// drop gives pages back to their files, from a borrowed thread.
func drop(s *tracee.Session, plans []*Plan) error {
	var calls []tracee.Call
	for _, plan := range plans {
		for _, r := range plan.Drop {
			calls = append(calls, tracee.Call{
				Number: syscall.SYS_MADVISE,
				Args:   [6]uint64{r.Start, r.End - r.Start, madviseDontNeedLocked},
			})
		}
	}
	if len(calls) == 0 {
		return nil
	}
	if err := s.Borrow(); err != nil {
		return err
	}
	results, err := s.Run(calls)
	if err != nil {
		return err
	}
	var again []tracee.Call
	for i, c := range calls {
		if err := c.Err(results[i]); errors.Is(err, syscall.EINVAL) { // an older kernel
			c.Args[2] = madviseDontNeed
			again = append(again, c)
		} else if err != nil {
			return fmt.Errorf("drop pages at 0x%x: %w", c.Args[0], err)
		}
	}
	if results, err = s.Run(again); err != nil {
		return err
	}
	for i, c := range again {
		if err := c.Err(results[i]); err != nil {
			return fmt.Errorf("drop pages at 0x%x: %w", c.Args[0], err)
		}
	}
	return nil
}

// write puts bytes and words back that differ still.
func write(s *tracee.Session, plans []*Plan) error {
	for _, plan := range plans {
		for _, w := range plan.Writes {
			if err := stillFound(s.Memory(), w); err != nil {
				return err
			}
			if err := s.Write(w.Address, w.Bytes); err != nil {
				return err
			}
		}
	}
	return nil
}
