package module

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A view is where the mappings of a process are read, and what tells one program
// in it from the next: a procfs.Process.
type view interface {
	Maps() ([]procfs.Mapping, error)
	Auxv() (procfs.Auxv, error)
}

const (
	looks     = 5
	lookPause = 10 * time.Millisecond
)

// look finds the modules and what hinders them.
//
// A process does not stand still meanwhile. In an execve its old memory goes
// away while the mappings are read, and what is read of them ends early, without
// an error; then the program is no longer the one that was meant. And ld.so maps
// a module in steps. So code that is missing is believed only where a second look
// misses just the same.
func (p *Process) look(v view) error {
	var before []api.Refusal
	for n := 1; ; n++ {
		if err := p.lookOnce(v); err != nil {
			return err
		}
		missing := p.remapped()
		if len(missing) == 0 || slices.Equal(missing, before) {
			return nil
		}
		if n == looks {
			p.unsettle(before)
			return nil
		}
		before = missing
		time.Sleep(lookPause)
	}
}

func (p *Process) lookOnce(v view) (err error) {
	p.Modules = nil
	clear(p.vins)
	p.vinErrors, p.leftover = nil, nil
	p.interceptors, p.interceptorErrors = nil, nil
	if p.maps, err = v.Maps(); err != nil {
		return err
	}
	if err := p.checkSame(v); err != nil {
		return err
	}
	if err := p.find(v); err != nil {
		return err
	}
	p.findVINs()
	p.findInterceptors()
	p.findOpened()
	for _, m := range p.Modules {
		m.check(p.Started)
	}
	return nil
}

// checkSame makes sure that the process still runs the program that is inspected.
func (p *Process) checkSame(v view) error {
	if now, err := v.Auxv(); err != nil || !maps.Equal(now, p.identity) {
		return fmt.Errorf("inspect process %d: it has become another program: %w", p.PID(), procfs.ErrGone)
	}
	return nil
}

// remapped returns the refusals of modules whose code is no longer the file's
// mapping.
func (p *Process) remapped() (all []api.Refusal) {
	for _, m := range p.Modules {
		for _, r := range m.Obstacles {
			if r.Code == codeTextRemapped {
				all = append(all, r)
			}
		}
	}
	return all
}

// unsettle makes others of the refusals for code that was missing in another way
// in each look: the module comes or goes.
func (p *Process) unsettle(before []api.Refusal) {
	for _, m := range p.Modules {
		for i, r := range m.Obstacles {
			if r.Code == codeTextRemapped && !slices.Contains(before, r) {
				m.Obstacles[i] = api.Refusal{Code: codeUnmapped, Subject: m.Name,
					Detail: "the program was still mapping it, or closing it", Remedy: "try again"}
			}
		}
	}
}
