package vex

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
)

// Verify implements api.Executive.
func (Machine) Verify(ctx context.Context, r api.VerifyRequest, emit func(api.Verification) error) error {
	return eachProcess(ctx, r.Target, false, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]api.Verification, error) {
		var all []api.Verification
		for _, m := range modules {
			begin := time.Now()
			c, err := p.Compare(ctx, m, r.Full)
			if err == nil && c.Corrupt() {
				c, err = lookAgain(ctx, p, m, c, r.Full)
			}
			if err != nil {
				return all, err
			}
			v := api.Verification{
				PID: p.PID(), Program: p.Name, Module: m.Name, Path: m.Path,
				Pages: c.Pages, Words: c.Words, Corrupt: c.Corrupt(),
				Differences: c.Differences(p), Refusals: slices.Clone(m.Obstacles), Unchecked: c.Unchecked,
			}
			if v.Refusals == nil {
				v.Refusals = []api.Refusal{}
			}
			v.TotalUS = time.Since(begin).Microseconds()
			all = append(all, v)
		}
		return all, nil
	}, emit)
}

// lookAgain compares a module that differs once more, with the process held
// against other vos: one of them may just have been changing it.
func lookAgain(ctx context.Context, p *module.Process, m *module.Module, first *module.Comparison, full bool) (*module.Comparison, error) {
	again, err := p.Again(ctx, true)
	if errors.Is(err, fs.ErrPermission) {
		return first, nil // who may not change it can't hold it
	}
	if err != nil {
		return nil, err
	}
	defer again.Close()
	for _, now := range again.Modules {
		if now.Start() == m.Start() && now.Path == m.Path {
			return again.Compare(ctx, now, full)
		}
	}
	return first, nil
}
