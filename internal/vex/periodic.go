package vex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/dump"
)

// seriesFormat is how the images of a series are named: by time, so that the order of
// names is theirs.
const seriesFormat = "20060102T150405.000Z"

// series writes checkpoints of a program every so often into a folder, until the
// context ends or the program does. Images build on the one before, and every
// r.Keep-th (or image.MaxParents-th) on none; the last r.Keep are kept, with those that
// they build on. One that is refused or fails is told, and tried again at the next time;
// if it is the first, it is the last.
func series(ctx context.Context, p *procfs.Process, r api.CheckpointRequest, of *image.Apart, emit func(api.Snapshot) error) (err error) {
	if err := os.MkdirAll(r.Directory, 0o700); err != nil {
		return fmt.Errorf("make folder of images: %w", err)
	}
	written := &dump.Series{}
	defer func() { err = errors.Join(err, written.Close()) }()
	parent, grown, made := "", 0, 0 // the last image, how many are behind one another, and all
	for next := time.Now(); ; {
		one := r
		one.LeaveRunning, one.Parent = true, parent
		one.Directory = filepath.Join(r.Directory, time.Now().UTC().Format(seriesFormat))
		s, err := patiently(ctx, func() (api.Snapshot, error) { return snapshotOf(ctx, p, one, of, written) })
		if ctx.Err() != nil {
			return nil // long enough
		}
		if err != nil {
			return err
		}
		if s.Outcome == api.Checkpointed {
			made++
			if parent, grown = one.Directory, grown+1; grown == min(r.Keep, image.MaxParents) {
				parent, grown = "", 0
			}
			if err := prune(r.Directory, r.Keep, r.Identities); err != nil {
				s.Residual = append(s.Residual, "older images were not removed: "+err.Error())
			}
		}
		if err := emit(s); err != nil || made == 0 {
			return err
		}
		if next = next.Add(r.Every); next.Before(time.Now()) {
			next = time.Now() // one took longer than that
		}
		if sleepUntil(ctx, next) != nil {
			return nil
		}
	}
}

// prune removes the images of a folder that are older than the last keep, and on which
// none of these builds. What is no image of a series stays.
func prune(folder string, keep int, identities []string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries { // by name
		if _, err := time.Parse(seriesFormat, e.Name()); err == nil && e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if len(names) <= keep {
		return nil
	}
	names, kept := names[:len(names)-keep], names[len(names)-keep:]
	needed := make(map[string]bool)
	for _, name := range kept {
		r, err := image.Open(filepath.Join(folder, name), image.ReadOptions{Identities: identities})
		if err != nil {
			return err
		}
		for _, path := range r.Parents() {
			needed[filepath.Base(path)] = true
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	var errs []error
	for _, name := range slices.Backward(names) { // a child before its parent
		if !needed[name] {
			errs = append(errs, os.RemoveAll(filepath.Join(folder, name)))
		}
	}
	return errors.Join(errs...)
}
