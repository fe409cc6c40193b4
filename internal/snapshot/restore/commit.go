package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

// Commit restores the image. On an error nothing is left: what was built is dead and
// reaped. Also if vOS dies there is nothing, or, from the moment on at which all is
// done, the program.
func (p *Plan) Commit(ctx context.Context) (Result, error) {
	if len(p.Refusals) > 0 {
		errs := make([]error, len(p.Refusals))
		for i, r := range p.Refusals {
			errs[i] = r
		}
		return Result{}, errors.Join(errs...)
	}
	started := time.Now()
	result := Result{PID: p.PIDs[0], Notes: p.Notes}
	var err error
	kernel.OnOwnThread(func() { err = p.commit(ctx, &result) })
	if err != nil {
		return Result{}, err
	}
	result.Total = time.Since(started)
	return result, nil
}

// commit builds the processes on the calling OS thread, which is locked.
func (p *Plan) commit(ctx context.Context, result *Result) (err error) {
	img := p.source.Image()
	t, err := newTracer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.waiter.Close()) }()

	var starter *task
	all := p.family(t)
	var watch *guard
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic while process %d was built: %v\n%s", img.Processes[0].PID, panicked, debug.Stack())
		}
		if err != nil {
			err = errors.Join(err, t.dismiss(watch), t.end(starter, all.born))
			for _, b := range all.born {
				err = errors.Join(err, b.unmakeAll())
			}
		}
		err = errors.Join(err, t.connections.Close())
	}()
	if starter, err = t.start(); err != nil {
		return err
	}
	if err := checkXState(starter, img); err != nil {
		return err
	}
	if err := suspendFilters(starter, img.Processes); err != nil {
		return err
	}
	if p.terminals, err = descriptor.OpenTerminals(img); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.terminals.Close()) }()
	first := &process{tracer: t, pid: starter.tid, main: starter}
	if err := first.adopt(); err != nil {
		return err
	}
	all.starter = first
	built, err := all.bearAll()
	if err != nil {
		return err
	}
	if err := all.endEnded(); err != nil {
		return err
	}
	result.Notes = append(result.Notes, p.joinGroups()...)
	traps, err := p.buildAll(built, result)
	if err != nil {
		return err
	}
	// From here on the root's parent is init, or a nearer subreaper.
	ended := starter
	starter = nil
	if err := t.kill(ended.tid); err != nil {
		return err
	}
	exits := make([]*exit, len(built))
	for i, b := range built {
		of := &img.Processes[i]
		if of.ParentDeath != 0 {
			calls := b.batch()
			calls.add("set the signal of its parent's death", syscall.SYS_PRCTL, prctlDeathSignal, uint64(of.ParentDeath))
			if _, err := calls.run(); err != nil {
				return err
			}
		}
		if exits[i], err = b.prepareLeave(of, traps[i]); err != nil {
			return err
		}
	}
	if len(built) > 1 {
		if watch, err = t.keepGuard(built); err != nil {
			return err
		}
	}
	if err := t.leaveAll(exits, watch); err != nil {
		return err
	}
	all.born = nil
	return nil
}

// buildAll makes the processes all that they were, but for their threads' registers. It
// returns the action of each that SIGTRAP gets last, if that matters.
func (p *Plan) buildAll(built []*process, result *Result) (traps []*image.Action, err error) {
	img := p.source.Image()
	root := built[0]
	if err := root.raiseDescriptors(); err != nil {
		return nil, err
	}
	defer func() {
		for _, b := range built {
			err = errors.Join(err, b.releaseAll())
		}
	}()
	objects, bytes, err := root.makeObjects(p.source, img.Objects)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll(objects)) }()
	result.Bytes = bytes
	for i, b := range built {
		if err := p.buildMemory(b, &img.Processes[i], objects, result); err != nil {
			return nil, err
		}
	}
	if err := sealObjects(img.Objects, objects); err != nil {
		return nil, err
	}
	if err := removeSegments(img.Objects); err != nil {
		return nil, err
	}
	opened, err := descriptor.Open(img, p.restoring(objects))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	for i, b := range built {
		of := &img.Processes[i]
		if err := b.takeDescriptors(opened, of); err != nil {
			return nil, err
		}
		trap, err := b.build(of, result)
		if err != nil {
			return nil, err
		}
		traps = append(traps, trap)
	}
	root.connections = opened.Returning()
	return traps, nil
}

// buildMemory makes the address space of a process.
func (p *Plan) buildMemory(b *process, of *image.Process, objects []*os.File, result *Result) error {
	if of.NoTHP {
		calls := b.batch()
		calls.add("turn huge pages off", syscall.SYS_PRCTL, prctlSetTHP, 1, 0, 0, 0)
		if _, err := calls.run(); err != nil {
			return err
		}
	}
	if err := b.mapVDSO(of.Mappings); err != nil {
		return err
	}
	if err := b.raiseDescriptors(); err != nil {
		return err
	}
	return p.restoreMemory(b, of, objects, result)
}

// build makes what else belongs to a process, and its threads.
func (b *process) build(of *image.Process, result *Result) (trap *image.Action, err error) {
	if trap, err = b.setActions(of.Actions); err != nil {
		return nil, err
	}
	if err := b.setOOMScore(of.OOMScoreAdjust); err != nil {
		return nil, err
	}
	if of.NoNewPrivileges {
		calls := b.batch()
		calls.add("give up new privileges", syscall.SYS_PRCTL, prctlNoNewPrivs, 1, 0, 0, 0)
		if _, err := calls.run(); err != nil {
			return nil, err
		}
	}
	if err := b.makeThreads(of.Threads[1:]); err != nil {
		return nil, err
	}
	if err := b.makeTimers(of.Timers); err != nil {
		return nil, err
	}
	if err := b.setLimits(of.Limits); err != nil {
		return nil, err
	}
	if err := b.setFilters(of); err != nil {
		return nil, err
	}
	return trap, b.equipAll(of, result)
}

// restoreMemory makes the mappings with their pages, and enters the directories, which
// are opened with the files.
func (p *Plan) restoreMemory(b *process, of *image.Process, objects []*os.File, result *Result) (err error) {
	list := needs(of)
	var files []*os.File
	defer func() { err = errors.Join(err, closeAll(files)) }()
	root, own, directory, err := p.options.openDirectories(of)
	if err != nil {
		return err
	}
	files = append(files, directory, own)
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, n := range list {
		file, err := p.options.open(root, n)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	numbers, err := b.pull(slices.Concat(files, objects))
	if err != nil {
		return err
	}
	const directories = 2
	mapped, inObjects := numbers[directories:directories+len(list)], numbers[directories+len(list):]
	if err := b.mapAll(of.Mappings, list, mapped, inObjects, p.source.Image().Objects); err != nil {
		return err
	}
	bytes, err := b.fill(p.source, of.Mappings)
	if err != nil {
		return err
	}
	result.Bytes += bytes
	if err := b.finishMappings(of.Mappings); err != nil {
		return err
	}
	named, err := b.nameMappings(of.Mappings)
	if err != nil {
		return err
	}
	if !named {
		result.Notes = append(result.Notes, "anonymous memory has lost its names, which this kernel does not keep")
	}
	if err := b.checkMappings(of.Mappings); err != nil {
		return err
	}
	executable := numbers[directories+len(list)-1]
	if of.Running != nil {
		executable = inObjects[*of.Running]
	}
	if err := b.setLayout(&of.Layout, executable); err != nil {
		return err
	}
	return b.enter(of, numbers[1], numbers[0])
}

// equipAll gives the threads what only themselves can set, the main thread last, with
// the timers that run from now on.
func (p *process) equipAll(of *image.Process, result *Result) error {
	has, err := p.inherited()
	if err != nil {
		return err
	}
	if err := p.equipOthers(of, &has); err != nil {
		return err
	}
	b := p.batch()
	if err := b.equipment(&of.Threads[0], &of.Credentials, &has, of.Pending); err != nil {
		return err
	}
	if _, err := b.run(); err != nil {
		return err
	}
	dumpable := of.Dumpable
	if dumpable > 1 {
		dumpable = 0
		result.Notes = append(result.Notes, "it is not dumpable; before, its core could be dumped for root alone")
	}
	b.add("set whether it can be dumped", syscall.SYS_PRCTL, prctlDumpable, uint64(dumpable))
	if err := b.addIntervals(of.Intervals); err != nil {
		return err
	}
	_, err = b.run()
	return err
}

// checkXState refuses where the CPU or kernel keeps another extended state than the
// image has.
func checkXState(k *task, img *image.Image) error {
	buffer := make([]byte, maxXState)
	n, err := kernel.GetXState(k.tid, buffer)
	if err != nil {
		return err
	}
	if n < xstateFeaturesAt+8 {
		return fmt.Errorf("read the extended state of process %d: %d bytes are too few", k.tid, n)
	}
	features := binary.LittleEndian.Uint64(buffer[xstateFeaturesAt:])
	for i := range img.Processes {
		for j := range img.Processes[i].Threads {
			t := &img.Processes[i].Threads[j]
			if len(t.XState) != n || binary.LittleEndian.Uint64(t.XState[xstateFeaturesAt:])&^features != 0 {
				return api.Refusal{Code: codeCPU, Subject: "the CPU",
					Detail: fmt.Sprintf("its extended state has %d bytes and the components %#x, thread %d has one of %d bytes", n, features, t.TID, len(t.XState)),
					Remedy: "restore it on a machine with a CPU such as " + img.Machine.CPU}
			}
		}
	}
	return nil
}

const (
	maxXState        = 16 << 10
	xstateFeaturesAt = 464 // XCR0, which ptrace puts into the software bytes
)
