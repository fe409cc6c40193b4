package dump

import (
	"context"

	"github.com/virtualizing-os/vos/internal/tracee"
)

// A hold is a process whose threads all stand still, and the session that holds it, on a
// thread of its own: several processes are held at a time.
type hold struct {
	work    chan func(*tracee.Session) error
	answers chan error // of the stop, then of each work; closed at the end

	times    tracee.Times // at the end
	err      error        // likewise
	released bool
}

// hold begins to stop a process.
func (c *commit) hold(ctx context.Context) *hold {
	h := &hold{work: make(chan func(*tracee.Session) error), answers: make(chan error)}
	go func() {
		defer close(h.answers)
		h.times, h.err = tracee.Do(ctx, c.Process, tracee.Options{}, func(s *tracee.Session) (err error) {
			if err := s.Prepare(); err != nil {
				return err
			}
			if err := s.StopAll(); err != nil {
				return err
			}
			if err := c.lookAtStopped(); err != nil {
				return err
			}
			h.answers <- nil
			for f := range h.work {
				// After an error nothing more is asked of it.
				if err = f(s); err != nil {
					h.answers <- err
					return err
				}
				h.answers <- nil
			}
			return nil
		})
	}()
	return h
}

// stopped waits until the process is held.
func (h *hold) stopped() error {
	err, ok := <-h.answers
	if ok && err == nil {
		return nil
	}
	if ended := h.release(); ended != nil {
		return ended
	}
	// The session came to an end all the same: it has put in order what a vos that was
	// killed had left behind.
	return errMoved
}

// do lets the session do something, and returns its error, with which it has ended.
func (h *hold) do(f func(*tracee.Session) error) error {
	h.work <- f
	return h.stopped()
}

// release lets the process go, if that was not done yet, and returns the error of the
// session.
func (h *hold) release() error {
	if h.released {
		return nil
	}
	h.released = true
	close(h.work)
	for range h.answers {
		// It may begin anew.
	}
	return h.err
}
