package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// Handles implements api.Executive.
func (Machine) Handles(ctx context.Context, r api.HandlesRequest, emit func(api.Holdings) error) (err error) {
	processes, err := resolve(r.Target)
	if err != nil {
		return err
	}
	survey, store := handle.NewSurvey(), module.NewStore()
	defer func() { err = errors.Join(err, survey.Close(), store.Close()) }()
	var errs []error
	for i, p := range processes {
		held, err := holdings(ctx, survey, store, p, &r)
		err = errors.Join(err, p.Close())
		if err == nil {
			err = emit(*held)
		} else {
			errs = append(errs, classify(err))
			err = ctx.Err()
		}
		if err != nil {
			for _, rest := range processes[i+1:] {
				errs = append(errs, rest.Close())
			}
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// holdings looks at one process.
func holdings(ctx context.Context, survey *handle.Survey, store *module.Store, p *procfs.Process, r *api.HandlesRequest) (*api.Holdings, error) {
	ids, err := idsOf(p)
	if err != nil {
		return nil, err
	}
	held := &api.Holdings{IDs: *ids}
	if r.IDsOnly {
		return held, nil
	}
	all, restless, err := handle.List(p)
	if err != nil {
		return nil, err
	}
	held.Restless = restless
	wanted := slices.DeleteFunc(slices.Clone(all), func(h handle.Handle) bool {
		return len(r.Kinds) > 0 && !slices.Contains(r.Kinds, string(h.Kind)) ||
			len(r.FDs) > 0 && !slices.Contains(r.FDs, h.FD)
	})
	if err := survey.Complete(ctx, p, wanted); err != nil {
		return nil, err
	}
	held.Unseen = survey.Unseen()
	open := make(map[int]*handle.Handle, len(all))
	for i := range all {
		open[all[i].FD] = &all[i]
	}
	openers, err := openersIn(store, p)
	if err != nil {
		held.Unread = append(held.Unread, fmt.Sprintf("who opened them: %v", err))
	}
	held.Uncounted = openers.Uncounted
	for i := range wanted {
		d := describeHandle(&wanted[i], ids.Program, open)
		if d.Own == "" && d.RedirectedFrom == "" { // those are vOS's
			d.OpenedBy = openers.ByKind[d.Kind]
		}
		held.Handles = append(held.Handles, d)
	}
	apart, err := handle.Apart(p)
	switch {
	case errors.Is(err, kernel.ErrNotSupported): // then nothing is known of sharers either
		held.Unread = append(held.Unread, err.Error())
	case err != nil:
		return nil, err
	}
	for _, tid := range apart {
		held.Unread = append(held.Unread, fmt.Sprintf("thread %d has descriptors of its own", tid))
	}
	return held, nil
}

// openersIn returns who called what opens descriptors in a process: nobody where no
// calls are counted.
func openersIn(store *module.Store, p *procfs.Process) (o *module.Openers, err error) {
	none := &module.Openers{}
	if on, err := module.Intercepted(p); err != nil || !on {
		return none, err
	}
	process, err := procfs.Open(p.PID())
	if err != nil {
		return none, err
	}
	inspected, err := module.Inspect(store, process)
	if err != nil {
		return none, err
	}
	defer func() { err = errors.Join(err, inspected.Close()) }()
	if _, on, err := inspected.Counting(); err != nil || !on {
		return none, err
	}
	meter, err := inspected.Meter()
	if err != nil {
		return none, err
	}
	if o, err = meter.Openers(); err != nil {
		return none, err
	}
	return o, nil
}

// idsOf reads the numbers of a process and its threads; what is no program is
// refused.
func idsOf(p *procfs.Process) (*api.IDs, error) {
	stat, err := p.Stat()
	if err == nil {
		err = tracee.Lifeless(p.PID(), stat)
	}
	if err != nil {
		return nil, err
	}
	ids := &api.IDs{PID: p.PID(), Program: stat.Command, PPID: stat.PPID, PGID: stat.ProcessGrp, SID: stat.Session}
	status, err := p.Status()
	if err != nil {
		return nil, err
	}
	ids.NSPIDs = status.NSPIDs
	tids, err := p.Threads()
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if status, err := p.ThreadStatus(tid); err == nil {
			ids.Threads = append(ids.Threads, api.Thread{TID: tid, NSTIDs: status.NSPIDs})
		}
	}
	return ids, nil
}

// describeHandle turns a handle into what faces print; open are all of its process.
func describeHandle(h *handle.Handle, program string, open map[int]*handle.Handle) api.Handle {
	d := api.Handle{
		PID: h.PID, Program: program, FD: h.FD, Kind: string(h.Kind), Name: h.Link, Path: h.Path, Deleted: h.Deleted,
		Access: string(h.Flags.Access()), Flags: h.Flags.Names(), Offset: h.Offset,
		Device: deviceText(h.Device), Inode: h.Inode, Mine: h.Own != handle.OwnNot, Own: string(h.Own), RedirectedFrom: h.Was,
		Peers: references(h.Peers), Shared: references(h.Sharers),
	}
	switch h.Kind {
	case handle.KindFile, handle.KindMemfd:
		d.Size = &h.Size
	case handle.KindDevice, handle.KindTerminal:
		d.Special = deviceText(h.Special)
	}
	if h.Terminal >= 0 {
		d.Pty = &h.Terminal
	}
	for _, l := range h.Locks {
		d.Locks = append(d.Locks, api.Lock{Type: l.Type, Mode: l.Mode, PID: l.PID, Start: l.Start, End: l.End})
	}
	if s := h.Socket; s != nil {
		d.Socket = &api.Socket{
			Family: s.Family, Type: s.Type, Protocol: s.Protocol, State: s.State, Abstract: s.Abstract,
			Local: s.LocalAddress(), Remote: s.RemoteAddress(), ReceiveQueue: s.Receive, SendQueue: s.Send,
		}
	}
	for _, r := range h.Epoll {
		now := open[r.FD]
		a := api.Registration{FD: r.FD, Events: r.EventNames(), Data: fmt.Sprintf("0x%x", r.Data)}
		if now != nil && now.Inode == r.Inode && now.Device == r.Device {
			a.Open, a.Kind = true, string(now.Kind)
		}
		d.Epoll = append(d.Epoll, a)
	}
	if h.Event != nil {
		d.Eventfd = &api.Eventfd{Count: h.Event.Count, Semaphore: h.Event.Semaphore}
	}
	if t := h.Timer; t != nil {
		d.Timerfd = &api.Timerfd{Clock: t.ClockName(), Ticks: t.Ticks, RemainingNS: int64(t.Remaining), IntervalNS: int64(t.Interval)}
	}
	for signal := 1; signal <= 64; signal++ {
		if h.Signals.Has(signal) {
			d.Signals = append(d.Signals, signal)
		}
	}
	if h.Process != nil {
		d.Pidfd = &api.Pidfd{PID: h.Process.PID}
	}
	for _, w := range h.Watches {
		d.Watches = append(d.Watches, api.Watch{Number: w.Number, Device: deviceText(w.Device), Inode: w.Inode, Events: w.EventNames()})
	}
	if r := h.Ring; r != nil {
		d.Ring = &api.Ring{SubmissionEntries: r.Submission, CompletionEntries: r.Completion, Files: r.Files, Buffers: r.Buffers}
	}
	return d
}

func references(holders []handle.Holder) []api.HandleRef {
	refs := []api.HandleRef{}
	for _, h := range holders {
		refs = append(refs, api.HandleRef{PID: h.PID, Program: h.Program, FD: h.FD})
	}
	return refs
}

func deviceText(device uint64) string {
	major, minor := kernel.Device(device)
	return fmt.Sprintf("%d:%d", major, minor)
}

// Functions implements api.Executive.
func (Machine) Functions(ctx context.Context, r api.FunctionsRequest, emit func(api.FunctionHandles) error) error {
	return eachProcess(ctx, r.Target, false, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]api.FunctionHandles, error) {
		var all []api.FunctionHandles
		for _, m := range modules {
			slots, err := p.FunctionSlots(ctx, m)
			if err != nil {
				return all, err
			}
			all = append(all, describeSlots(p, m, slots))
		}
		return all, nil
	}, emit)
}

func describeSlots(p *module.Process, m *module.Module, slots []module.FunctionSlot) api.FunctionHandles {
	f := api.FunctionHandles{
		PID: p.PID(), Program: p.Name, Module: m.Name, Path: m.Path, Generation: m.Generation,
		Slots: len(slots), Imports: []api.FunctionSlot{},
	}
	for _, s := range slots {
		a := api.FunctionSlot{
			Address: fmt.Sprintf("0x%x", s.Address), Symbol: s.Symbol, Target: fmt.Sprintf("0x%x", s.Target),
			Lazy: s.Lazy, Led: s.Led, Generation: s.Generation,
		}
		if s.Of != nil {
			a.Module = s.Of.Name
		}
		if s.Lazy {
			f.Lazy++
		}
		if s.Led {
			f.Led++
		}
		f.Imports = append(f.Imports, a)
	}
	return f
}
