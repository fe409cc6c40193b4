package vex

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// eachProcess inspects the processes of a target and emits what work makes of
// the modules that are meant. Errors of single processes are joined and do not
// keep the others from being worked on. With lock each is held against other vos
// that change it.
func eachProcess[R any](ctx context.Context, t api.Target, lock bool,
	work func(context.Context, *module.Process, []*module.Module) ([]R, error), emit func(R) error,
) error {
	processes, err := resolve(t)
	if err != nil {
		return err
	}
	return eachOf(ctx, t, processes, lock, work, emit)
}

// eachOf is eachProcess for those processes of a target that are given, which it
// closes.
func eachOf[R any](ctx context.Context, t api.Target, processes []*procfs.Process, lock bool,
	work func(context.Context, *module.Process, []*module.Module) ([]R, error), emit func(R) error,
) (err error) {
	store := module.NewStore()
	defer func() { err = errors.Join(err, store.Close()) }()

	type outcome struct {
		results []R
		matched bool
		err     error
	}
	var errs []error
	matched := false
	err = inOrder(ctx, processes, func(ctx context.Context, process *procfs.Process) (o outcome) {
		if o.err = ctx.Err(); o.err != nil {
			process.Close()
			return o
		}
		p, err := inspect(ctx, store, process, lock)
		if err != nil {
			o.err = err
			return o
		}
		defer func() { o.err = errors.Join(o.err, p.Close()) }()
		modules := selected(p, t)
		if o.matched = len(modules) > 0; o.matched {
			o.results, o.err = work(ctx, p, modules)
		}
		return o
	}, func(o outcome) error {
		matched = matched || o.matched
		for _, r := range o.results {
			if err := emit(r); err != nil {
				return err
			}
		}
		switch {
		case t.All && ended(o.err):
			// Programs end while a whole machine is looked at.
		case o.err != nil:
			errs = append(errs, classify(o.err))
		}
		return nil
	})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if !matched && len(errs) == 0 && t.Module != "" && !t.All {
		return fmt.Errorf("find module %s of %s: %w: no process of the program has it mapped", t.Module, t.Program, api.ErrGone)
	}
	return errors.Join(errs...)
}

// ended reports whether an error says that a process runs no more, or that its
// memory is gone in an execve.
func ended(err error) bool {
	var refusal api.Refusal
	return errors.Is(err, procfs.ErrGone) || errors.Is(err, procfs.ErrNoMemory) ||
		errors.As(err, &refusal) && refusal.Code == tracee.CodeZombie
}

// inspect takes over a process, and inspects it; with lock, held against others
// until it is closed. What can't be held may be none to work on: that reason comes
// first.
func inspect(ctx context.Context, store *module.Store, process *procfs.Process, lock bool) (*module.Process, error) {
	var held error
	if lock {
		held = process.Lock(ctx)
	}
	p, err := module.Inspect(store, process)
	if err == nil && held != nil {
		return nil, errors.Join(held, p.Close())
	}
	return p, err
}

func selected(p *module.Process, t api.Target) []*module.Module {
	var modules []*module.Module
	for _, m := range p.Modules {
		if t.MatchesModule(m.Name, m.Path) {
			modules = append(modules, m)
		}
	}
	return modules
}

// Modules implements api.Executive.
func (Machine) Modules(ctx context.Context, r api.ModulesRequest, emit func(api.Module) error) error {
	return eachProcess(ctx, r.Target, false, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]api.Module, error) {
		var all []api.Module
		imported, used, err := p.Imports()
		if err != nil {
			imported, used = nil, nil // it has none, or may not be read
		}
		for _, m := range modules {
			d, err := describeModule(ctx, p, m)
			if err != nil {
				return all, err
			}
			if n, ok := imported[m]; ok {
				d.Imported = &n
			}
			if n, ok := used[m]; ok {
				d.Used = &n
			}
			all = append(all, d)
		}
		return all, nil
	}, emit)
}

func describeModule(ctx context.Context, p *module.Process, m *module.Module) (api.Module, error) {
	d := api.Module{
		PID: p.PID(), Program: p.Name, Module: m.Name, Path: m.Path, BuildID: m.BuildID(),
		Base: fmt.Sprintf("0x%x", m.Start()), Kind: m.Kind.String(), File: m.File.Change.String(),
		Outdated: m.Outdated(), Generation: m.Generation, Staged: m.Staged(), Refusals: slices.Clone(m.Obstacles), MappedBytes: int64(m.Size()),
	}
	if d.Refusals == nil {
		d.Refusals = []api.Refusal{}
	}
	if d.Obstacles = p.CannotReplace(m); d.Obstacles == nil {
		d.Obstacles, d.Replaceable = []api.Refusal{}, true
	}
	if m.File.Change == procfs.FileSame && m.File.Modified.After(p.Started.Add(20*time.Millisecond)) {
		d.File = api.FileModified
	}
	if m.Object == nil {
		return d, nil
	}
	for _, s := range m.Object.Segments {
		switch {
		case s.Type != elf.PT_LOAD:
		case s.Flags&elf.PF_X != 0:
			d.TextBytes += int64(s.Memsz)
		case s.Flags&elf.PF_W != 0:
			d.DataBytes += int64(s.Memsz)
		}
	}
	private, err := p.PrivateText(m)
	if err != nil {
		return d, err
	}
	for _, r := range private {
		d.DirtyTextPages += r.Pages()
	}
	c, err := p.CompareText(ctx, m)
	if err != nil {
		return d, err
	}
	d.Corrupt = c.Corrupt()
	cannot, err := p.CannotRefresh(m)
	if err != nil {
		return d, err
	}
	d.Refusals = append(d.Refusals, cannot...)
	d.Refreshable = len(d.Refusals) == 0
	return d, nil
}
