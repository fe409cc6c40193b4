package handle

import (
	"context"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// forget gives up what is kept of a descriptor in each process, also where the
// program has closed the descriptor since.
func (w *redirecting) forget(ctx context.Context) ([]api.Redirection, error) {
	var results []api.Redirection
	for _, m := range w.all {
		fds, record, err := m.keptFor(w.FD)
		if gone(err) {
			continue
		}
		if err != nil {
			return results, err
		}
		if record == nil {
			continue
		}
		o := w.result(m, api.Forgotten)
		o.From, o.To = record.From, record.To
		if w.DryRun {
			o.Outcome = api.Planned
			o.Steps = []string{"close what is kept of " + record.From}
			results = append(results, o)
			continue
		}
		times, err := tracee.Do(ctx, m.p, tracee.Options{Identity: m.identity}, func(s *tracee.Session) error {
			if err := s.Borrow(); err != nil {
				return err
			}
			calls := closeCalls(fds...)
			if err := s.Permits(calls); err != nil {
				return err
			}
			_, err := s.Run(calls)
			return err
		})
		o.PauseUS = times.Pause.Microseconds()
		if refusals := api.Refusals(err); len(refusals) > 0 {
			o.Outcome, o.Refusals = api.Refused, refusals
		} else if err != nil {
			return results, err
		}
		results = append(results, o)
	}
	if len(results) == 0 {
		w.members = nil
		return w.refused(notRedirectedRefusal(w.all[0].pid, w.FD)), nil
	}
	return results, nil
}

// keptFor returns the descriptors by which something is kept for a descriptor, the
// records last: what is kept is found by them. record is that of one of them, nil
// where there is none.
func (m *member) keptFor(fd int) (fds []int, record *redirectRecord, err error) {
	records, err := recordsIn(m.p, m.take)
	if err != nil {
		return nil, nil, err
	}
	var last []int
	for _, r := range records {
		if !r.finished() || fd != r.Number && !slices.Contains(r.Bound, fd) {
			continue
		}
		record = r.redirectRecord
		if m.has(r.Kept, r.Old) {
			fds = append(fds, r.Kept)
		}
		last = append(last, r.at)
	}
	return append(fds, last...), record, nil
}
