package dump

import (
	"context"
	"errors"
	"time"
)

// errUnread says that something waits in a terminal, in either direction.
var errUnread = errors.New("what was typed or written was not read yet")

// drain holds the processes that have no master of a pseudo terminal, and lets those that
// have read what was written before: it can't be read in their place without being taken.
// Without terminals nobody is held before the root.
func (k *whole) drain(ctx context.Context, holds []held) error {
	if k.queues == nil {
		return nil
	}
	begin := time.Now()
	defer func() { k.paused += time.Since(begin) }()
	if err := k.holdOthers(ctx, holds, func(pid int) bool { return !k.queues.Holds(pid) }); err != nil {
		return err
	}
	const patience = 100 * time.Millisecond
	for time.Since(begin) < patience && k.queues.Written() && ctx.Err() == nil {
		time.Sleep(200 * time.Microsecond)
	}
	return ctx.Err()
}

// pause lets the program go on for a moment.
func pause(ctx context.Context) {
	const moment = 10 * time.Millisecond
	select {
	case <-ctx.Done():
	case <-time.After(moment):
	}
}
