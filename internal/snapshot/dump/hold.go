package dump

import (
	"context"

	"github.com/virtualizing-os/vos/internal/tracee"
)

// held is a process whose threads all stand still.
type held interface {
	// do lets its session do something. After an error nothing more is asked of it.
	do(f func(*tracee.Session) error) error
	// release lets the process go, and returns the error of its session.
	release() error
}

// here is the process that the calling thread holds, which lets it go afterwards.
type here struct{ session *tracee.Session }

func (h here) do(f func(*tracee.Session) error) error { return f(h.session) }

func (h here) release() error { return nil }

// A hold is a process that is held on a thread of its own: several are held at a time.
type hold struct {
	work     chan func(*tracee.Session) error
	answers  chan error // of the stop, then of each work; closed at the end
	err      error      // at the end
	released bool
}

// stop stops all threads of the process.
func (c *commit) stop(s *tracee.Session) error {
	if err := s.Prepare(); err != nil {
		return err
	}
	if err := s.StopAll(); err != nil {
		return err
	}
	return c.lookAtStopped()
}

// hold begins to stop a process.
func (c *commit) hold(ctx context.Context) *hold {
	h := &hold{work: make(chan func(*tracee.Session) error), answers: make(chan error)}
	go func() {
		defer close(h.answers)
		_, h.err = tracee.Do(ctx, c.Process, tracee.Options{Interrupted: c.interrupted}, func(s *tracee.Session) error {
			if err := c.stop(s); err != nil {
				return err
			}
			h.answers <- nil
			for f := range h.work {
				err := f(s)
				h.answers <- err
				if err != nil {
					return err
				}
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

// do implements held. After an error the session has ended.
func (h *hold) do(f func(*tracee.Session) error) error {
	h.work <- f
	return h.stopped()
}

// release implements held. The second time it does nothing.
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
