package module

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
)

// A Meter reads what is counted in a process, of the modules that it had when it was
// inspected. The process has to stay open.
type Meter struct {
	p       *Process
	parts   []meterPart
	modules []MeteredModule
}

type meterPart struct {
	in     *intercept.Interceptor
	module []int // of each function: index of Meter.modules, -1 where it does not count
	home   []int // likewise: the module whose function it is, -1 where that imports nothing
	of     []string
}

// A MeteredModule imports functions that are counted.
type MeteredModule struct {
	Name      string // SharedImporter for calls by pointers
	BuildID   string
	Start     uint64
	Gone      bool            // the program has closed it since
	Imported  int             // functions that it has import slots for
	Uncounted []api.Uncounted // those of them whose calls or memory are not counted
}

// A UsageReading is what was counted at a time.
type UsageReading struct {
	Time    time.Time
	Memory  bool
	Modules []ModuleUsage // as the Meter has them
	Lost    uint64        // samples that had no room: what is owned is underestimated
}

// A ModuleUsage is what one module has called.
type ModuleUsage struct {
	Used             int // of the functions that it imports
	Calls            uint64
	Allocated, Freed uint64 // bytes, as the allocator rounds them up
	Memory           bool   // bytes of it are counted
	Opens, Closes    uint64 // calls that open descriptors, as many as each would, and that close them
	Functions        []FunctionUsage
	Owned            []OwnedBlock // by the address of the block
}

// A FunctionUsage is what a module has called one function for.
type FunctionUsage struct {
	Name             string
	Of               string // module that defines it, "" where that is mapped no more
	Calls            uint64
	Allocated, Freed uint64
}

// An OwnedBlock is a block that was sampled, and that nobody has freed.
type OwnedBlock struct {
	intercept.Sample
	Function string // that it was got by
}

// Held is how much more was allocated than freed: negative of a module that frees what
// others allocate.
func (m *ModuleUsage) Held() int64 { return int64(m.Allocated - m.Freed) }

// OwnedBytes is what the module has allocated and nobody has freed, estimated.
func (m *ModuleUsage) OwnedBytes() (sum float64) {
	for _, b := range m.Owned {
		sum += b.Weight
	}
	return sum
}

// Meter makes ready to read what is counted. Nothing is, where no slot leads to a stub.
func (p *Process) Meter() (*Meter, error) {
	m := &Meter{p: p}
	numbers := make(map[intercept.Module]int)
	number := func(record intercept.Module) int {
		n, ok := numbers[record]
		if !ok {
			n = len(m.modules)
			numbers[record] = n
			m.modules = append(m.modules, MeteredModule{Name: record.Name, BuildID: record.BuildID, Start: record.Start})
		}
		return n
	}
	names, err := p.importedNames()
	if err != nil {
		return nil, err
	}
	for _, mod := range p.Modules {
		if len(names[mod]) > 0 {
			m.modules[number(mod.record())].Imported = len(names[mod])
		}
	}
	here := len(m.modules)
	for _, in := range p.interceptors {
		led, err := p.led(in)
		if err != nil {
			return nil, err
		}
		part := meterPart{in: in}
		records := in.Modules()
		for _, f := range in.Functions() {
			record, home, of := records[f.Importer], -1, ""
			mod := p.moduleAt(f.Target)
			if mod != nil {
				of = mod.Name
			}
			part.of = append(part.of, of)
			if led == 0 && record.Name != SharedImporter { // of a time before a detach
				part.module, part.home = append(part.module, -1), append(part.home, -1)
				continue
			}
			if mod != nil {
				if n, ok := numbers[mod.record()]; ok {
					home = n
				}
			}
			part.module, part.home = append(part.module, number(record)), append(part.home, home)
		}
		m.parts = append(m.parts, part)
	}
	for i := range m.modules[here:] {
		gone := &m.modules[here+i]
		gone.Gone = gone.Name != SharedImporter
		gone.Imported = m.functionsOf(here + i)
	}
	return m, m.findUncounted()
}

// record is what an interceptor has of a module.
func (m *Module) record() intercept.Module {
	return intercept.Module{Name: m.Name, BuildID: m.BuildID(), Bias: m.Bias, Start: m.start, End: m.end}
}

// importedNames returns the functions that modules have import slots for.
func (p *Process) importedNames() (map[*Module]map[string]bool, error) {
	slots, err := p.importSlots()
	if err != nil {
		return nil, err
	}
	names := make(map[*Module]map[string]bool)
	for i := range slots {
		s := &slots[i]
		if names[s.Importer] == nil {
			names[s.Importer] = make(map[string]bool)
		}
		names[s.Importer][symbolKey(s.Symbol)] = true
	}
	return names, nil
}

// functionsOf returns how many functions of a module have stubs.
func (m *Meter) functionsOf(module int) int {
	names := make(map[string]bool)
	for _, part := range m.parts {
		for n, f := range part.in.Functions() {
			if part.module[n] == module {
				names[f.Name] = true
			}
		}
	}
	return len(names)
}

// findUncounted notes what an attachment would leave out now.
func (m *Meter) findUncounted() error {
	opt, on, err := m.p.Counting()
	if err != nil || !on {
		return err
	}
	plan, err := m.p.PlanAttach(opt)
	if err != nil {
		return err
	}
	for _, u := range plan.Uncounted() {
		for i := range m.modules {
			if m.modules[i].Name == u.Module && !m.modules[i].Gone {
				m.modules[i].Uncounted = append(m.modules[i].Uncounted, u)
			}
		}
	}
	return nil
}

// Modules returns those that import functions.
func (m *Meter) Modules() []MeteredModule { return m.modules }

// Read reads all counts, while the program runs: no two numbers are of the same moment.
func (m *Meter) Read() (*UsageReading, error) {
	memory, err := m.p.openMemory()
	if err != nil {
		return nil, err
	}
	r := &UsageReading{Time: time.Now(), Modules: make([]ModuleUsage, len(m.modules))}
	moved := make([]uint64, len(m.modules))
	functions := make([]map[string]int, len(m.modules))
	var samples []intercept.Sample
	for _, part := range m.parts {
		counts, err := part.in.Counts(memory)
		if err != nil {
			return nil, err
		}
		r.Lost += counts.Lost
		samples = append(samples, counts.Samples...)
		for n, c := range counts.Functions {
			if part.module[n] < 0 {
				continue
			}
			f, u := part.in.Function(n), &r.Modules[part.module[n]]
			u.add(f, part.of[n], c, &functions[part.module[n]])
			r.Memory = r.Memory || f.Kind.Memory()
			if home := part.home[n]; home >= 0 && f.Kind.Moves() {
				moved[home] += c.Allocated
			}
		}
	}
	for i := range r.Modules {
		u := &r.Modules[i]
		// What the library has allocated for its callers is theirs.
		u.Allocated -= min(u.Allocated, moved[i])
		for _, f := range u.Functions {
			if f.Calls > 0 {
				u.Used++
			}
		}
		slices.SortFunc(u.Functions, func(a, b FunctionUsage) int {
			return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.Name, b.Name))
		})
	}
	for _, s := range samples {
		for _, part := range m.parts {
			if n, ok := part.in.Find(s.Stub); ok {
				if module := part.module[n]; module >= 0 {
					r.Modules[module].Owned = append(r.Modules[module].Owned, OwnedBlock{s, part.in.Function(n).Name})
				}
				break
			}
		}
	}
	return r, nil
}

// add adds what one stub has counted. The functions of a name are one.
func (u *ModuleUsage) add(f intercept.Function, of string, c intercept.Counted, functions *map[string]int) {
	if *functions == nil {
		*functions = make(map[string]int)
	}
	i, ok := (*functions)[f.Name]
	if !ok {
		i = len(u.Functions)
		(*functions)[f.Name] = i
		u.Functions = append(u.Functions, FunctionUsage{Name: f.Name, Of: of})
	}
	all := &u.Functions[i]
	all.Calls += c.Calls
	all.Allocated += c.Allocated
	all.Freed += c.Freed
	u.Calls += c.Calls
	u.Allocated += c.Allocated
	u.Freed += c.Freed
	u.Memory = u.Memory || f.Kind.Memory()
	if opener, ok := openerOf(f.Name); ok {
		u.Opens += opener.n * c.Calls
	}
	if name, _, _ := strings.Cut(f.Name, "@"); closing[name] {
		u.Closes += c.Calls
	}
}

// FunctionAt names the function that an address lies in, "0x…" where none is known.
func (p *Process) FunctionAt(address uint64) string {
	if m := p.moduleAt(address); m != nil && m.Object != nil {
		if name, _, _ := strings.Cut(m.locate(address).Function, "+0x"); name != "" {
			return name
		}
	}
	return fmt.Sprintf("0x%x", address)
}

// Imports returns how many functions each module has import slots for, and how many of
// them it has called since they were counted; used is nil where nothing is counted.
func (p *Process) Imports() (imported, used map[*Module]int, err error) {
	m, err := p.Meter()
	if err != nil {
		return nil, nil, err
	}
	_, on, err := p.Counting()
	if err != nil {
		return nil, nil, err
	}
	var r *UsageReading
	if on {
		used = make(map[*Module]int)
		if r, err = m.Read(); err != nil {
			return nil, nil, err
		}
	}
	imported = make(map[*Module]int)
	for i, metered := range m.modules {
		mod := p.moduleAt(metered.Start)
		if mod == nil || metered.Gone || metered.Name == SharedImporter {
			continue
		}
		imported[mod] = metered.Imported
		if on {
			used[mod] = r.Modules[i].Used
		}
	}
	return imported, used, nil
}
