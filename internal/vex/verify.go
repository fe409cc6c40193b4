package vex

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Verify implements api.Executive.
func (Machine) Verify(ctx context.Context, r api.VerifyRequest, emit func(api.Verification) error) error {
	return eachProcess(ctx, r.Target, false, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]api.Verification, error) {
		var all []api.Verification
		for _, m := range modules {
			begin := time.Now()
			c, err := p.Compare(ctx, m, r.Full)
			if doubtful(c, err) {
				c, err = lookAgain(ctx, p, m, c, r.Full)
			}
			if err != nil {
				return all, err
			}
			if c == nil {
				continue // the program has unloaded it
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

// doubtful reports whether a look may have been disturbed: by another vos that was
// just changing the module, or by the program, which unloaded it.
func doubtful(c *module.Comparison, err error) bool {
	return errors.Is(err, procfs.ErrAddress) || err == nil && c != nil && c.Corrupt()
}

// looks bounds how often a module is looked at that differs each time.
const looks = 5

// lookAgain compares a module that differs, or was not there, with the process held
// against other vos, until two looks see the same. It returns nil if the program has
// the module no more.
func lookAgain(ctx context.Context, p *module.Process, m *module.Module, last *module.Comparison, full bool) (*module.Comparison, error) {
	var err error
	for range looks {
		before := last
		if last, err = lookOnce(ctx, p, m, full); !doubtful(last, err) {
			return last, err
		}
		if err == nil && before != nil && slices.Equal(before.Differences(p), last.Differences(p)) {
			return last, nil
		}
	}
	return last, err
}

func lookOnce(ctx context.Context, p *module.Process, m *module.Module, full bool) (_ *module.Comparison, err error) {
	again, err := p.Again(ctx, true)
	if errors.Is(err, fs.ErrPermission) {
		again, err = p.Again(ctx, false) // who may not change it can't hold it
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, again.Close()) }()
	if now := again.Loaded(m); now != nil {
		return again.Compare(ctx, now, full)
	}
	return nil, nil
}
