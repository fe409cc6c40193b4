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
	"sync/atomic"

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
// of each, in the items' order and from one goroutine. The first error of emit,
// or the end of ctx, cancels the context that work gets; work is still called
// for every item, so that it can let go of it, and nothing is under way when
// inOrder returns.
func inOrder[T, R any](ctx context.Context, items []T, work func(context.Context, T) R, emit func(R) error) error {
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]chan R, len(items))
	for i := range items {
		results[i] = make(chan R, 1)
	}
	var next atomic.Int64
	for range min(len(items), max(2, runtime.NumCPU())) {
		go func() {
			for i := int(next.Add(1)) - 1; i < len(items); i = int(next.Add(1)) - 1 {
				results[i] <- work(working, items[i])
			}
		}()
	}
	var err error
	for _, result := range results {
		r := <-result
		if err == nil {
			err = working.Err()
		}
		if err == nil {
			if err = emit(r); err != nil {
				cancel()
			}
		}
	}
	return err
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
