package module

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A flickering view yields other mappings of a process in each look.
type flickering struct {
	*procfs.Process
	cut    func(look int, all []procfs.Mapping) []procfs.Mapping
	become int // the look after which the process is another program
	look   int
}

func (f *flickering) Maps() ([]procfs.Mapping, error) {
	all, err := f.Process.Maps()
	f.look++
	return f.cut(f.look, all), err
}

func (f *flickering) Auxv() (procfs.Auxv, error) {
	auxv, err := f.Process.Auxv()
	if f.become > 0 && f.look >= f.become {
		auxv = maps.Clone(auxv)
		auxv[procfs.AuxBase] += procfs.PageSize
	}
	return auxv, err
}

// TestMappingsReadHalfWay looks at a program of which the mappings end early, in
// the midst of a library: in an execve the kernel takes them away as they are
// read.
func TestMappingsReadHalfWay(t *testing.T) {
	host, guest := buildHost(t)
	r := run(t, host)
	// without leaves out the last n of the parts of the library, and what
	// follows.
	without := func(n int, all []procfs.Mapping) []procfs.Mapping {
		last := len(all) - 1
		for last >= 0 && all[last].Path != guest {
			last--
		}
		if last < n {
			t.Fatalf("%s is mapped up to part %d of %d", guest, last, len(all))
		}
		return all[:last+1-n]
	}
	const constants = 3 // they lie behind the code, before RELRO and data
	tests := []struct {
		name   string
		cut    func(look int, all []procfs.Mapping) []procfs.Mapping
		become int
		want   []api.Code // of the library
		gone   bool
	}{
		{"read whole", func(_ int, all []procfs.Mapping) []procfs.Mapping { return all }, 0, nil, false},
		{"half way at first", func(look int, all []procfs.Mapping) []procfs.Mapping {
			if look == 1 {
				return without(constants, all)
			}
			return all
		}, 0, nil, false},
		{"half way in an execve", func(_ int, all []procfs.Mapping) []procfs.Mapping { return without(constants, all) }, 1, nil, true},
		{"an execve after the first look", func(_ int, all []procfs.Mapping) []procfs.Mapping { return without(constants, all) }, 2, nil, true},
		{"between two modules in an execve", func(_ int, all []procfs.Mapping) []procfs.Mapping { return all[:len(all)/2] }, 1, nil, true},
		{"never there", func(_ int, all []procfs.Mapping) []procfs.Mapping { return without(constants, all) }, 0, []api.Code{codeTextRemapped}, false},
		{"another part in each look", func(look int, all []procfs.Mapping) []procfs.Mapping {
			all = without(constants-look%2, all)
			if look%2 == 1 {
				all[len(all)-1].End -= procfs.PageSize // of the constants
			}
			return all
		}, 0, []api.Code{codeUnmapped}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := r.inspect(t)
			err := p.look(&flickering{Process: p.Process, cut: test.cut, become: test.become})
			if errors.Is(err, procfs.ErrGone) != test.gone || err != nil && !test.gone {
				t.Fatalf("error %v, want the process gone: %v", err, test.gone)
			}
			if test.gone {
				return
			}
			var got []api.Code
			for _, refusal := range module(t, p, "libguest.so").Obstacles {
				got = append(got, refusal.Code)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("refused for %v, want %v", got, test.want)
			}
		})
	}
}
