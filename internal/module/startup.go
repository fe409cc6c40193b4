package module

import "slices"

// findOpened marks the modules that the program has had from its start on, and those
// that dlclose might unload.
func (p *Process) findOpened() {
	startup := p.startupModules()
	for _, m := range p.Modules {
		m.startup = startup[m]
		m.Opened = !m.startup && (m.Object == nil || !m.Object.NoDelete())
	}
}

// startupModules returns the executable, what it needs at any remove, and what was
// loaded along with that, as by LD_PRELOAD: the loader's list has what dlopen brings
// behind all that was there at the start. Where that list can't be read, what was
// preloaded is not known.
func (p *Process) startupModules() map[*Module]bool {
	order, err := p.searchOrder()
	byName := make(map[string]*Module)
	for _, m := range slices.Concat(order, p.Modules) { // what dlmopen brought is in no list that is read
		if _, taken := byName[m.Name]; !taken && !m.Staged() {
			byName[m.Name] = m
		}
	}
	startup := make(map[*Module]bool)
	var need func(m *Module)
	need = func(m *Module) {
		if m == nil || startup[m] {
			return
		}
		startup[m] = true
		if m.Object != nil {
			for _, soname := range m.Object.Needed {
				need(byName[soname])
			}
		}
	}
	for _, m := range p.Modules {
		if m.Kind != Library {
			need(m)
		}
	}
	if err != nil {
		return startup
	}
	// What was preloaded stands before the libraries that the executable needs, but
	// may need others, which stand behind them.
	for known := 0; known < len(order); {
		last := known
		for i, m := range order {
			if startup[m] && m.Kind == Library {
				last = max(last, i+1)
			}
		}
		if last == known {
			break
		}
		for _, m := range order[known:last] {
			need(m)
		}
		known = last
	}
	return startup
}
