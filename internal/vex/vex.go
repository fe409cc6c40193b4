// Package vex is the executive of one machine: it finds programs and carries
// out commands on them, by name. It holds no logic of its own about modules or
// tracees; it resolves a target to processes, hands each to the floors below,
// and reports what became of it.
//
// A Machine implements api.Executive in process. Processes are worked on a few
// at a time, results are emitted in the order of pids.
package vex

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Machine is this machine.
type Machine struct{}

var _ api.Executive = Machine{}

// New returns this machine.
func New() (api.Executive, error) { return Machine{}, nil }

// inOrder calls work for each item, on some at a time, and emit with what came
// of each, in the items' order and from one goroutine. The first error of emit
// ends it; work reports its own errors in its result.
func inOrder[T, R any](ctx context.Context, items []T, work func(context.Context, T) R, emit func(R) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type slot struct {
		item   T
		result chan R
	}
	slots := make([]slot, len(items))
	for i, item := range items {
		slots[i] = slot{item, make(chan R, 1)}
	}
	queue := make(chan slot)
	go func() {
		defer close(queue)
		for _, s := range slots {
			select {
			case queue <- s:
			case <-ctx.Done():
				return
			}
		}
	}()
	for range max(2, runtime.NumCPU()) {
		go func() {
			for s := range queue {
				s.result <- work(ctx, s.item)
			}
		}()
	}
	for _, s := range slots {
		select {
		case r := <-s.result:
			if err := emit(r); err != nil {
				return err
			}
		case <-ctx.Done():
			// What is under way ends by itself; a session undoes what it did.
			return ctx.Err()
		}
	}
	return nil
}

// classify wraps an error of the floors below with the one that faces decide
// on.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, procfs.ErrGone):
		return fmt.Errorf("%w: %w", api.ErrGone, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", api.ErrNotPermitted, err)
	case errors.Is(err, kernel.ErrNotSupported):
		return fmt.Errorf("%w: %w", api.ErrNotSupported, err)
	}
	return err
}
