package module

import (
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Counting tells whether calls of the process are counted now, and how: Memory where
// bytes are counted too, Pointers where some stub is shared by all modules. What a
// detach had to leave in the process counts for nothing.
func (p *Process) Counting() (o AttachOptions, on bool, err error) {
	for _, in := range p.interceptors {
		led, err := p.led(in)
		if err != nil {
			return AttachOptions{}, false, err
		}
		if led == 0 {
			continue
		}
		on = true
		o.Memory = o.Memory || countsMemory(in)
		o.Pointers = o.Pointers || slices.ContainsFunc(in.Modules(), func(m intercept.Module) bool { return m.Name == SharedImporter })
	}
	return o, on, nil
}

// countsMemory reports whether an interceptor was made to count bytes.
func countsMemory(in *intercept.Interceptor) bool {
	return in.Config().Allocator != intercept.Allocator{}
}

// led returns how many slots lead to an interceptor's stubs.
func (p *Process) led(in *intercept.Interceptor) (int, error) {
	memory, err := p.openMemory()
	if err != nil {
		return 0, err
	}
	words, n := &wordReader{memory: memory}, 0
	for _, s := range in.Slots() {
		value, err := words.read(s.Address)
		switch {
		case errors.Is(err, procfs.ErrAddress): // its module is gone
		case err != nil:
			return 0, err
		case value == in.Stub(s.Function):
			n++
		}
	}
	return n, nil
}

// Steps tells the plan in words, a step a line.
func (a *Attachment) Steps() []string {
	if a.Empty() || len(a.Refusals) > 0 {
		return nil
	}
	var steps []string
	say := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	for _, in := range a.dead {
		say("unmap %s: its modules are gone", spanOf(in))
	}
	if in := a.Interceptor; in != nil {
		say("map the interceptor at %s: stubs for %d functions as %d modules call them", spanOf(in), len(in.Functions()), len(in.Modules()))
	}
	if len(a.Writes) > 0 {
		say("lead %d import slots to stubs", len(a.Writes))
	}
	return steps
}

// Steps tells the plan in words, a step a line.
func (d *Detachment) Steps() []string {
	if d.Empty() || len(d.Refusals) > 0 {
		return nil
	}
	var steps []string
	say := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	if len(d.Writes) > 0 {
		say("lead %d import slots to their functions", len(d.Writes))
	}
	for _, in := range d.Unmap {
		say("unmap the interceptor at %s", spanOf(in))
	}
	for _, r := range d.leftover {
		say("unmap 0x%x-0x%x, which an interrupted vos left", r.Start, r.End)
	}
	return steps
}

func spanOf(in *intercept.Interceptor) string {
	base, size := in.Config().Base, in.Size()
	return fmt.Sprintf("0x%x-0x%x (%d KiB)", base, base+size, size>>10)
}

// Uncounted returns what the plan leaves out, by modules and reasons.
func (a *Attachment) Uncounted() []api.Uncounted {
	var all []api.Uncounted
	type key struct{ module, why string }
	at := make(map[key]int)
	for _, l := range a.Left {
		k := key{l.Module, l.Why}
		i, ok := at[k]
		if !ok {
			i = len(all)
			at[k] = i
			all = append(all, api.Uncounted{Module: l.Module, Why: l.Why})
		}
		all[i].Functions = append(all[i].Functions, l.Name)
	}
	for i := range all {
		slices.Sort(all[i].Functions)
		all[i].Functions = slices.Compact(all[i].Functions) // one may have two slots
	}
	return all
}
