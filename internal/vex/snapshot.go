package vex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/image/criu"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/dump"
	"github.com/virtualizing-os/vos/internal/snapshot/restore"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Check implements api.Executive.
func (m Machine) Check(ctx context.Context, r api.CheckRequest, emit func(api.Check) error) error {
	return m.check(ctx, r, nil, emit)
}

// check is Check. With of it is asked within the program's namespaces.
func (Machine) check(ctx context.Context, r api.CheckRequest, of *image.Apart, emit func(api.Check) error) error {
	processes, err := resolveRoots(r.Target, r.Tree)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range processes {
		kinds, err := apart(p)
		if err == nil && len(kinds) > 0 {
			if err = checkApart(ctx, p, kinds, r, emit); !errors.Is(err, errClosed) {
				errs = append(errs, classify(err), p.Close())
				continue
			}
			err = nil // what can't be entered is refused by name
		}
		var plan *dump.Plan
		if err == nil {
			plan, err = dump.Look(ctx, p, dump.Options{Inherit: r.Inherit, Tree: r.Tree, Apart: of})
		}
		if err == nil {
			err = errors.Join(plan.Close(), emit(api.Check{
				PID: p.PID(), Program: plan.Program, Model: string(plan.Model), Checkpointable: len(plan.Refusals) == 0,
				Threads: plan.Threads, MappedBytes: plan.Mapped, KeptBytes: plan.Kept, Descriptors: plan.Handles,
				Refusals: plan.Refusals, Notes: plan.Notes,
			}))
		} else {
			err = fmt.Errorf("check process %d: %w", p.PID(), err)
		}
		errs = append(errs, classify(err), p.Close())
	}
	return errors.Join(errs...)
}

// Checkpoint implements api.Executive.
func (m Machine) Checkpoint(ctx context.Context, r api.CheckpointRequest, emit func(api.Snapshot) error) (err error) {
	return m.checkpoint(ctx, r, nil, emit)
}

// checkpoint is Checkpoint. With of it is made within the program's namespaces.
func (Machine) checkpoint(ctx context.Context, r api.CheckpointRequest, of *image.Apart, emit func(api.Snapshot) error) (err error) {
	p, err := resolveOne(r.Target, r.Tree)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	kinds, err := apart(p)
	if err != nil {
		return classify(err)
	}
	if len(kinds) > 0 {
		if err := checkpointApart(ctx, p, kinds, r, emit); !errors.Is(err, errClosed) {
			return classify(err)
		} // what can't be entered is refused by name
	}
	if r.Every > 0 {
		return series(ctx, p, r, of, emit)
	}
	s, err := patiently(ctx, func() (api.Snapshot, error) { return snapshotOf(ctx, p, r, of, nil) })
	if err != nil {
		return err
	}
	return emit(s)
}

// snapshotOf makes one checkpoint. That it was refused or failed is in the snapshot, an
// error says that the program is gone, or can't be looked at. It may be one of a series.
func snapshotOf(ctx context.Context, p *procfs.Process, r api.CheckpointRequest, of *image.Apart, in *dump.Series) (api.Snapshot, error) {
	begin := time.Now()
	defer tracee.RestCollector()()
	plan, err := dump.Look(ctx, p, dump.Options{Inherit: r.Inherit, Tree: r.Tree, LeaveRunning: r.LeaveRunning, Series: in, Apart: of, Progress: counted(r.Progress)})
	if err != nil {
		return api.Snapshot{}, classify(fmt.Errorf("checkpoint process %d: %w", p.PID(), err))
	}
	defer plan.Close()
	s := api.Snapshot{PID: p.PID(), Program: plan.Program, Model: string(plan.Model), Image: r.Directory, Outcome: api.Planned,
		Refusals: plan.Refusals}
	switch {
	case len(plan.Refusals) > 0:
		s.Outcome = api.Refused
	case r.DryRun:
		if n := len(plan.PIDs); n > 1 {
			s.Steps = append(s.Steps, fmt.Sprintf("keep %d processes", n))
		}
		s.Steps = append(s.Steps, fmt.Sprintf("keep %d threads, %d descriptors and %d bytes of memory", plan.Threads, plan.Handles, plan.Kept))
	default:
		err = checkpoint(ctx, plan, r, &s)
	}
	s.TotalUS = time.Since(begin).Microseconds()
	if errors.Is(err, procfs.ErrGone) {
		return s, classify(err)
	}
	return failing(s, err), nil
}

func checkpoint(ctx context.Context, plan *dump.Plan, r api.CheckpointRequest, s *api.Snapshot) error {
	w, err := image.Create(r.Directory, image.WriteOptions{Compression: r.Compression, Parent: r.Parent, Recipients: r.Recipients, Identities: r.Identities})
	if err != nil {
		return err
	}
	result, err := plan.Commit(ctx, w)
	s.FreezeUS, s.Bytes = result.Freeze.Microseconds(), result.Bytes
	if err == nil {
		s.Outcome, s.Residual = api.Checkpointed, result.Notes
	}
	return err
}

// failing notes in a snapshot how it failed, if it did.
func failing(s api.Snapshot, err error) api.Snapshot {
	if err == nil {
		return s
	}
	if refusals := api.Refusals(err); len(refusals) > 0 {
		s.Outcome, s.Refusals = api.Refused, append(s.Refusals, refusals...)
		return s
	}
	s.Outcome, s.Error = api.Failed, err.Error()
	return s
}

// resolveRoots returns the processes that a target means. Of a tree these are the ones
// from which the others descend.
func resolveRoots(t api.Target, tree bool) ([]*procfs.Process, error) {
	processes, err := resolve(t)
	if err != nil || !tree {
		return processes, err
	}
	own := make(map[int]bool)
	for _, p := range processes {
		own[p.PID()] = true
	}
	var roots []*procfs.Process
	var errs []error
	for _, p := range processes {
		if stat, err := p.Stat(); err == nil && own[stat.PPID] {
			errs = append(errs, p.Close())
			continue
		}
		roots = append(roots, p)
	}
	return roots, errors.Join(errs...)
}

// resolveOne returns the one process that a target means.
func resolveOne(t api.Target, tree bool) (*procfs.Process, error) {
	processes, err := resolveRoots(t, tree)
	if err != nil || len(processes) == 1 {
		if len(processes) == 1 {
			return processes[0], err
		}
		return nil, err
	}
	text := ""
	for _, p := range processes {
		text += fmt.Sprintf(" %d", p.PID())
		err = errors.Join(err, p.Close())
	}
	return nil, errors.Join(fmt.Errorf("find program %q: %w: it is several processes: name one of them, or the first with --tree:%s", t.Program, api.ErrUsage, text), err)
}

// counted turns a request's progress into that of a dump or restore.
func counted(tell func(api.SnapshotProgress)) func(done, total uint64) {
	if tell == nil {
		return nil
	}
	var mu sync.Mutex
	return func(done, total uint64) {
		mu.Lock()
		defer mu.Unlock()
		tell(api.SnapshotProgress{Done: done, Total: total})
	}
}

// Restore implements api.Executive.
func (Machine) Restore(ctx context.Context, r api.RestoreRequest, emit func(api.Snapshot) error) (err error) {
	begin := time.Now()
	defer tracee.RestCollector()()
	reader, err := image.Open(r.Directory, image.ReadOptions{Identities: r.Identities})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	root := reader.Image().Processes[0]
	options := restore.Options{Force: r.ForceFiles, CloseConnections: r.CloseConnections, Map: r.Map, Inherit: make(map[int]*os.File, len(r.Inherit))}
	for number, own := range r.Inherit {
		options.Inherit[number] = os.NewFile(uintptr(own), fmt.Sprintf("descriptor %d", own))
	}
	if of := reader.Image().Apart; of != nil && !r.Here {
		s := api.Snapshot{PID: root.PID, Program: root.Program, Model: string(reader.Image().Model), Image: r.Directory, Outcome: api.Planned, Bytes: reader.Size()}
		s, err := restoreApart(ctx, of, s, r, options.Inherit)
		s.TotalUS = time.Since(begin).Microseconds()
		return emit(failing(s, err))
	}
	plan, err := restore.Look(ctx, reader, options)
	if err != nil {
		return classify(fmt.Errorf("restore process %d: %w", root.PID, err))
	}
	s := api.Snapshot{PID: root.PID, Program: root.Program, Model: string(reader.Image().Model), Image: r.Directory, Outcome: api.Planned,
		Bytes: reader.Size(), Refusals: plan.Refusals, Residual: plan.Notes}
	inside := r.AnyPID && restore.OnlyIDs(plan.Refusals)
	switch {
	case len(plan.Refusals) > 0 && !inside:
		s.Outcome = api.Refused
	case r.DryRun:
		threads := 0
		for i := range reader.Image().Processes {
			threads += len(reader.Image().Processes[i].Threads)
		}
		s.Steps = []string{fmt.Sprintf("build process %d, %d of them in all, with %d threads and %d bytes of memory", root.PID, len(plan.PIDs), threads, plan.Bytes)}
		if inside {
			s.Refusals, s.Steps = nil, append(s.Steps, "in a pid and a mount namespace of its own, as ids are taken")
		}
	case !inside:
		var result restore.Result
		if result, err = plan.Commit(ctx); err == nil {
			s.Outcome, s.Residual = api.Restored, result.Notes
		}
		inside = r.AnyPID && restore.OnlyIDs(api.Refusals(err)) // of groups and sessions it shows only then
	}
	if inside && !r.DryRun {
		s.Refusals = nil
		var there api.Snapshot
		if there, err = restoreInside(ctx, r, options.Inherit); there.Outcome != "" {
			s = there
		}
	}
	s.TotalUS = time.Since(begin).Microseconds()
	return emit(failing(s, err))
}

// Image implements api.Executive.
func (Machine) Image(_ context.Context, r api.ImageRequest) (_ api.Image, err error) {
	reader, err := image.Open(r.Directory, image.ReadOptions{Identities: r.Identities})
	if err != nil {
		return api.Image{}, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	img := reader.Image()
	to := api.Image{Directory: reader.Directory(), ID: img.ID, Parent: img.Parent, Taken: img.Taken, Model: string(img.Model),
		Kernel: img.Machine.Kernel, Hostname: img.Machine.Hostname, CPU: img.Machine.CPU, Bytes: reader.Size()}
	if img.Apart != nil {
		to.Namespaces = img.Apart.Kinds
	}
	for i := range img.Processes {
		to.Processes = append(to.Processes, describeProcess(img, &img.Processes[i]))
	}
	for i := range img.Ended {
		e := &img.Ended[i]
		status := fmt.Sprintf("signal %d", e.Signal())
		if e.Signal() == 0 {
			status = fmt.Sprintf("exit code %d", e.Code())
		}
		to.Ended = append(to.Ended, api.ImageEnded{PID: e.PID, Parent: e.Parent, Program: e.Program, Status: status})
	}
	if r.CRIU != "" {
		code, err := vdsoOf(img.Machine.Kernel)
		if err == nil {
			to.Residual, err = criu.Write(reader, r.CRIU, criu.Options{VDSO: code})
		}
		if err != nil {
			return api.Image{}, classify(err)
		}
		to.CRIU = r.CRIU
	}
	return to, nil
}

func describeProcess(img *image.Image, p *image.Process) api.ImageProcess {
	to := api.ImageProcess{PID: p.PID, Parent: p.Parent, Program: p.Program, Command: p.Command, Executable: p.Executable.Path,
		Threads: len(p.Threads)}
	kept := func(runs []image.Run) (bytes uint64) {
		for _, r := range runs {
			bytes += r.Count * image.PageSize
		}
		return bytes
	}
	objects := make(map[int]bool)
	for i := range p.Mappings {
		m := &p.Mappings[i]
		size := kept(m.Pages)
		name := m.Name
		switch {
		case m.File != nil:
			name = m.File.Path
		case m.Kind == image.InObject:
			o := &img.Objects[m.Object]
			name = o.Kind + " " + o.Name
			if !objects[m.Object] {
				objects[m.Object] = true
				size += kept(o.Pages)
			}
		}
		to.MappedBytes += m.End - m.Start
		to.KeptBytes += size
		to.Mappings = append(to.Mappings, api.ImageMapping{Start: fmt.Sprintf("%#x", m.Start), End: fmt.Sprintf("%#x", m.End),
			Kind: string(m.Kind), Protection: procfs.Perms(m.Protection & 7).String()[:3], Name: name, KeptBytes: size})
	}
	for _, d := range p.Descriptors {
		f := &img.Files[d.File]
		to.Descriptors = append(to.Descriptors, api.ImageDescriptor{FD: d.Number, Kind: f.Kind, Path: filePath(f)})
	}
	return to
}

// filePath is the path of what a file of an image was, where it has one.
func filePath(f *image.File) string {
	switch {
	case f.Regular != nil:
		return f.Regular.Path
	case f.Pipe != nil:
		return f.Pipe.Path
	}
	return ""
}
