package vex

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

// How long, and how often, a checkpoint is tried that only what is under way speaks against.
const (
	patience  = 400 * time.Millisecond // after the first try
	firstRest = 2 * time.Millisecond   // before the second one; each is twice the one before
	longRest  = 50 * time.Millisecond
)

// patiently makes a checkpoint, and makes it anew for a moment while all that it is refused
// for are things under way: a connection that was not accepted yet, a message that was not
// read, a child that is being born. The last refusals tell how often it was tried.
func patiently(ctx context.Context, try func() (api.Snapshot, error)) (s api.Snapshot, err error) {
	paused := int64(0)
	begin := time.Now()
	for n, rest := 1, firstRest; ; n, rest = n+1, min(2*rest, longRest) {
		if s, err = try(); err != nil {
			return s, err
		}
		paused += s.FreezeUS
		s.FreezeUS, s.TotalUS = paused, time.Since(begin).Microseconds()
		if !momentary(s) {
			return s, nil
		}
		if time.Since(begin)+rest > patience || ctx.Err() != nil {
			for i := range s.Refusals {
				s.Refusals[i].Detail += fmt.Sprintf(", at each of %d tries", n)
			}
			return s, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
}

// momentary reports whether a checkpoint was refused for nothing but what is under way.
func momentary(s api.Snapshot) bool {
	return s.Outcome == api.Refused && len(s.Refusals) > 0 &&
		!slices.ContainsFunc(s.Refusals, func(r api.Refusal) bool { return r.Remedy != descriptor.TryAgain })
}
