package vex

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Usage implements api.Executive.
func (Machine) Usage(ctx context.Context, r api.UsageRequest, emit func(api.UsageReport) error) (err error) {
	u := &usages{r: r, store: module.NewStore(), known: make(map[int]*metered)}
	defer func() {
		for _, p := range u.known {
			err = errors.Join(err, p.p.Close())
		}
		err = errors.Join(err, u.store.Close())
	}()
	if err := u.find(ctx); err != nil {
		u.errs = append(u.errs, err)
		if len(u.known) == 0 && len(u.report.Interceptions) == 0 {
			return err
		}
	}
	err = u.readFor(ctx)
	if u.r.Every == 0 || err != nil {
		return errors.Join(append(u.errs, u.tell(emit), err)...) // what was read until an interrupt, too
	}
	if err := u.tell(emit); err != nil {
		return err
	}
	for next := time.Now().Add(r.Every); ; next = next.Add(r.Every) {
		if sleepUntil(ctx, next) != nil {
			return errors.Join(u.errs...) // watched long enough
		}
		u.report = api.UsageReport{Round: u.report.Round + 1}
		if err := u.find(ctx); err != nil && ctx.Err() == nil {
			return errors.Join(append(u.errs, err)...)
		}
		if err := u.read(); err != nil {
			return err
		}
		if err := u.tell(emit); err != nil {
			return err
		}
	}
}

// readFor reads once, and where rates are asked for, four times more.
func (u *usages) readFor(ctx context.Context) error {
	const more = 4
	if err := u.read(); err != nil || u.r.For == 0 {
		return err
	}
	begin := time.Now()
	for n := range more {
		waited := sleepUntil(ctx, begin.Add(u.r.For*time.Duration(n+1)/more))
		if err := errors.Join(u.read(), waited); err != nil {
			return err
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(t)):
		return nil
	}
}

// usages carries out one request.
type usages struct {
	r      api.UsageRequest
	store  *module.Store
	known  map[int]*metered // by pid
	report api.UsageReport
	errs   []error // of single processes
}

// A metered process is one whose counts are read.
type metered struct {
	p      *module.Process
	meter  *module.Meter // nil where nothing is counted
	series []*module.UsageReading
}

// find attaches the processes of the target where that is asked for, and makes ready
// to read those that it doesn't know yet, or whose modules have changed.
func (u *usages) find(ctx context.Context) error {
	processes, err := resolve(u.r.Target)
	if err != nil {
		return err
	}
	processes = slices.DeleteFunc(processes, func(p *procfs.Process) bool {
		known := u.known[p.PID()] != nil && !u.changed(ctx, p.PID())
		if known {
			p.Close()
		}
		return known
	})
	if len(processes) == 0 {
		return nil
	}
	type found struct {
		interception api.Interception
		metered      *metered
	}
	target := u.r.Target
	target.Module = ""              // it selects what is told, not what is counted
	target.All = len(processes) > 1 // some of a program's may end meanwhile
	err = eachOf(ctx, target, processes, u.r.Attach, func(ctx context.Context, p *module.Process, _ []*module.Module) ([]found, error) {
		f := found{interception: api.Interception{Outcome: api.Clean}}
		if u.r.Attach {
			var err error
			if f.interception, err = attach(ctx, p, module.AttachOptions{Memory: u.r.Memory}, false, false); err != nil {
				return nil, err
			}
		}
		var err error
		if f.metered, err = u.meter(p.PID()); err != nil {
			return nil, err
		}
		return []found{f}, nil
	}, func(f found) error {
		if f.interception.Outcome != api.Clean {
			u.report.Interceptions = append(u.report.Interceptions, f.interception)
		}
		pid := f.metered.p.PID()
		if err := u.forget(pid); err != nil {
			return errors.Join(err, f.metered.p.Close())
		}
		u.known[pid] = f.metered
		return nil
	})
	if err == nil && len(u.known) == 0 {
		err = classify(fmt.Errorf("count calls of %s: %w", u.r.Target.Program, procfs.ErrGone))
	}
	return err
}

// meter makes ready to read a process.
func (u *usages) meter(pid int) (*metered, error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return nil, err
	}
	p, err := module.Inspect(u.store, process)
	if err != nil {
		return nil, err
	}
	m := &metered{p: p}
	_, on, err := p.Counting()
	if err == nil && on {
		m.meter, err = p.Meter()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return m, nil
}

// changed reports whether a known process has other modules now, or can't be looked at.
func (u *usages) changed(ctx context.Context, pid int) bool {
	before := u.known[pid].p
	now, err := before.Again(ctx, false)
	if err != nil {
		return true
	}
	defer now.Close()
	return len(now.Interceptors()) != len(before.Interceptors()) ||
		!slices.EqualFunc(now.Modules, before.Modules, func(a, b *module.Module) bool {
			return a.Start() == b.Start() && a.Path == b.Path
		})
}

func (u *usages) forget(pid int) error {
	m := u.known[pid]
	delete(u.known, pid)
	if m == nil {
		return nil
	}
	return m.p.Close()
}

// longestSeries bounds the readings that are kept of a process.
const longestSeries = 33

// read reads all processes.
func (u *usages) read() error {
	for _, pid := range sortedPIDs(u.known) {
		m := u.known[pid]
		if m.meter == nil {
			continue
		}
		reading, err := m.meter.Read()
		if ended(err) || err != nil && errors.Is(m.gone(), procfs.ErrGone) {
			u.report.Ended = append(u.report.Ended, pid)
			if err := u.forget(pid); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read what process %d has counted: %w", pid, err)
		}
		if m.series = append(m.series, reading); len(m.series) > longestSeries {
			thin := m.series[:0]
			for n, r := range m.series {
				if n%2 == 0 || n == len(m.series)-1 {
					thin = append(thin, r)
				}
			}
			m.series = thin
		}
	}
	if len(u.known) == 0 && len(u.report.Ended) > 0 {
		return classify(fmt.Errorf("read what process %d has counted: %w", u.report.Ended[0], procfs.ErrGone))
	}
	return nil
}

// gone returns why a process can't be looked at any more, nil if it can.
func (m *metered) gone() error {
	_, err := m.p.Stat()
	return err
}

func sortedPIDs(all map[int]*metered) []int { return slices.Sorted(maps.Keys(all)) }

// tell emits what was read.
func (u *usages) tell(emit func(api.UsageReport) error) error {
	for _, pid := range sortedPIDs(u.known) {
		m := u.known[pid]
		if len(m.series) == 0 {
			continue
		}
		first := 0
		if u.r.Every > 0 && u.report.Round > 0 { // rates are of the last interval
			first = len(m.series) - 2
		}
		var all []api.Usage
		for i, about := range m.meter.Modules() {
			if u.r.Target.MatchesModule(about.Name, m.path(about)) {
				all = append(all, u.usage(m, i, max(first, 0)))
				u.addSamples(m, i)
			}
		}
		slices.SortStableFunc(all, func(a, b api.Usage) int { return cmp.Compare(b.Calls, a.Calls) })
		u.report.Usages = append(u.report.Usages, all...)
	}
	return emit(u.report)
}

// path returns where a module's file is, "" where it is mapped no more.
func (m *metered) path(about module.MeteredModule) string {
	for _, mod := range m.p.Modules {
		if mod.Start() == about.Start && mod.Name == about.Name {
			return mod.Path
		}
	}
	return ""
}

// usage tells of one module; rates are of the time since the reading of a number.
func (u *usages) usage(m *metered, n, first int) api.Usage {
	about, last := m.meter.Modules()[n], m.series[len(m.series)-1]
	now := &last.Modules[n]
	a := api.Usage{
		PID: m.p.PID(), Program: m.p.Name, Module: about.Name, Base: fmt.Sprintf("0x%x", about.Start), Round: u.report.Round,
		Gone: about.Gone, Imported: about.Imported, Used: now.Used, Calls: now.Calls, Opens: now.Opens, Closes: now.Closes,
		Memory: last.Memory, AllocatedBytes: int64(now.Allocated), FreedBytes: int64(now.Freed), HeldBytes: now.Held(),
		OwnedBytes: int64(math.Round(now.OwnedBytes())), Uncounted: about.Uncounted,
	}
	if about.Name == api.ByPointer {
		a.Base = ""
	}
	var before *module.ModuleUsage
	seconds := 0.0
	if first < len(m.series)-1 {
		before = &m.series[first].Modules[n]
		time := last.Time.Sub(m.series[first].Time)
		seconds, a.ForUS = time.Seconds(), time.Microseconds()
		a.CallsPerSecond = rate(now.Calls, before.Calls, seconds)
		a.HeldBytesPerSecond = float64(now.Held()-before.Held()) / seconds
		growth := module.GrowthOf(m.series[first:], n)
		a.OwnedBytesPerSecond, a.OwnedErrorBytes = growth.Bytes/seconds, int64(math.Round(growth.Error))
		a.Grows = module.GrowthOf(m.series, n).Steady
	}
	if !u.r.Functions {
		return a
	}
	for _, f := range now.Functions {
		if f.Calls == 0 {
			continue
		}
		of := api.FunctionUsage{Function: f.Name, Of: f.Of, Calls: f.Calls, AllocatedBytes: int64(f.Allocated), FreedBytes: int64(f.Freed)}
		if before != nil {
			i := slices.IndexFunc(before.Functions, func(b module.FunctionUsage) bool { return b.Name == f.Name })
			if i >= 0 {
				of.CallsPerSecond = rate(f.Calls, before.Functions[i].Calls, seconds)
			}
		}
		a.Functions = append(a.Functions, of)
	}
	return a
}

// rate is how much a counter grew in a second. A program may write to its counters.
func rate(now, before uint64, seconds float64) float64 {
	return max(0, float64(int64(now-before))/seconds)
}

// addSamples tells where a module allocated what nobody has freed.
func (u *usages) addSamples(m *metered, n int) {
	if !u.r.Samples {
		return
	}
	about := m.meter.Modules()[n]
	sums := make(map[[2]string]float64)
	for _, b := range m.series[len(m.series)-1].Modules[n].Owned {
		sums[[2]string{m.p.FunctionAt(b.CallSite), b.Function}] += b.Weight
	}
	var all []api.SampledBlocks
	for of, bytes := range sums {
		all = append(all, api.SampledBlocks{PID: m.p.PID(), Program: m.p.Name, Module: about.Name, Caller: of[0], Function: of[1], Bytes: int64(math.Round(bytes))})
	}
	slices.SortFunc(all, func(a, b api.SampledBlocks) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Function, b.Function))
	})
	u.report.Samples = append(u.report.Samples, all...)
}
