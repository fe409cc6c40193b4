package vex

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Programs implements api.Executive. What may not be read of a process is left
// out and marked.
func (Machine) Programs(ctx context.Context, r api.ProgramsRequest, emit func(api.Program) error) (err error) {
	processes, err := resolve(r.Target)
	if err != nil {
		return err
	}
	store := module.NewStore()
	defer func() { err = errors.Join(err, store.Close()) }()

	type outcome struct {
		process *api.Process
		err     error
	}
	var all []api.Process
	var errs []error
	err = inOrder(ctx, processes, func(ctx context.Context, p *procfs.Process) outcome {
		d, err := describe(ctx, store, p, r.Quick)
		return outcome{d, err}
	}, func(o outcome) error {
		if o.err != nil {
			errs = append(errs, classify(o.err))
		} else {
			all = append(all, *o.process)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(all) == 0 && !r.Target.All {
		// Programs end while they are listed; one that was named is not passed
		// over in silence.
		return errors.Join(errs...)
	}
	for _, program := range group(all) {
		if err := emit(program); err != nil {
			return err
		}
	}
	return nil
}

// describe tells about one process, or why there is no program in it: it has
// ended, or is one of the kernel's threads.
func describe(ctx context.Context, store *module.Store, p *procfs.Process, quick bool) (*api.Process, error) {
	stat, err := p.Stat()
	if err == nil {
		err = tracee.Lifeless(p.PID(), stat)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	d := &api.Process{
		PID: p.PID(), PPID: stat.PPID, Name: stat.Command, State: string(stat.State), Threads: stat.Threads,
	}
	unread := func(what string, err error) {
		if errors.Is(err, fs.ErrPermission) {
			d.Unread = append(d.Unread, what+": "+api.UnreadNotPermitted)
		} else if err != nil {
			d.Unread = append(d.Unread, fmt.Sprintf("%s: %v", what, err))
		}
	}
	status, err := p.Status()
	unread("user", err)
	d.UID = status.UIDs.Real
	age, err := p.Age()
	unread("age", err)
	d.AgeMS = age.Milliseconds()
	executable, err := p.Executable()
	unread("executable", err)
	d.Executable = executable.Path
	if !quick {
		pss, err := p.PSS()
		unread("memory", err)
		d.PSSBytes = int64(pss)
	}
	inspected, err := module.Inspect(store, p)
	if err != nil {
		if ended(err) {
			return nil, err
		}
		unread("modules", err)
		d.Refusals = api.Refusals(err)
		return d, nil
	}
	defer inspected.Close()
	for _, m := range inspected.Modules {
		d.Modules++
		if m.Outdated() {
			d.OutdatedModules = append(d.OutdatedModules, m.Name)
		}
		if quick {
			continue
		}
		c, err := inspected.CompareText(ctx, m)
		if err != nil {
			unread("text of "+m.Name, err)
		} else if c.Corrupt() {
			d.CorruptModules = append(d.CorruptModules, m.Name)
		}
	}
	return d, nil
}

// group puts each process to its parent's program where both run the same
// executable: a master and its workers.
func group(processes []api.Process) []api.Program {
	byPID := make(map[int]*api.Process, len(processes))
	for i := range processes {
		byPID[processes[i].PID] = &processes[i]
	}
	root := func(p *api.Process) *api.Process {
		for range processes { // bounds a loop that a reused pid could make
			parent := byPID[p.PPID]
			if parent == nil || !sameProgram(parent, p) {
				break
			}
			p = parent
		}
		return p
	}
	var programs []*api.Program
	known := make(map[int]*api.Program)
	for i := range processes {
		p := &processes[i]
		r := root(p)
		program := known[r.PID]
		if program == nil {
			program = &api.Program{Name: r.Name, PID: r.PID, AgeMS: r.AgeMS}
			known[r.PID] = program
			programs = append(programs, program)
		}
		add(program, p)
	}
	result := make([]api.Program, len(programs))
	for i, p := range programs {
		result[i] = *p
	}
	slices.SortFunc(result, func(a, b api.Program) int { return a.PID - b.PID })
	return result
}

// add counts a process in.
func add(program *api.Program, p *api.Process) {
	program.Processes = append(program.Processes, *p)
	program.Threads += p.Threads
	program.PSSBytes += p.PSSBytes
	program.Modules = max(program.Modules, p.Modules)
	program.Refusals = append(program.Refusals, p.Refusals...)
	for _, u := range p.Unread {
		program.Partial = true
		program.Unread = append(program.Unread, fmt.Sprintf("process %d: %s", p.PID, u))
	}
	program.Outdated = distinct(program.Processes, func(p api.Process) []string { return p.OutdatedModules })
	program.Corrupt = distinct(program.Processes, func(p api.Process) []string { return p.CorruptModules })
}

// distinct counts the names that processes have in one of their lists.
func distinct(processes []api.Process, list func(api.Process) []string) int {
	names := make(map[string]bool)
	for _, p := range processes {
		for _, name := range list(p) {
			names[name] = true
		}
	}
	return len(names)
}

// sameProgram reports whether a child goes on with its parent's program. Where
// executables can't be read, name and user must do.
func sameProgram(parent, child *api.Process) bool {
	if parent.Executable != "" && child.Executable != "" {
		return parent.Executable == child.Executable
	}
	return parent.Executable == child.Executable && parent.Name == child.Name && parent.UID == child.UID
}
