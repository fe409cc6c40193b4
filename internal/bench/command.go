package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// Binary is the vos that is timed as a command.
const Binary = "bin/vos"

// Start measures vos from its start to its end, against a program that does
// nothing.
func Start(ctx context.Context, runs int) ([]Figure, error) {
	f := Figure{Name: "vos version; floor: true(1)", Aim: "10 ms"}
	for range runs {
		for _, c := range []struct {
			samples *[]time.Duration
			argv    []string
		}{{&f.Floor, []string{"true"}}, {&f.Samples, []string{Binary, "version"}}} {
			begin := time.Now()
			if err := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...).Run(); err != nil {
				return nil, fmt.Errorf("run %v: %w", c.argv, err)
			}
			*c.samples = append(*c.samples, time.Since(begin))
		}
	}
	return []Figure{f}, nil
}

// Programs measures `vos ps` of a machine with 300 processes more than it has.
func Programs(ctx context.Context, runs int) ([]Figure, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range 300 {
		cmd := exec.CommandContext(ctx, "sleep", "1000")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		defer func() {
			cancel()
			cmd.Wait() // killed: its error says no more
		}()
	}
	machine, err := vex.New()
	if err != nil {
		return nil, err
	}
	f := Figure{Name: "all programs, memory and corruption looked at", Aim: "500 ms"}
	for range runs {
		count := 0
		begin := time.Now()
		err := machine.Programs(ctx, api.ProgramsRequest{}, func(p api.Program) error {
			count += len(p.Processes)
			return nil
		})
		if err != nil {
			return nil, err
		}
		if count < 300 {
			return nil, fmt.Errorf("only %d processes were found", count)
		}
		f.Samples = append(f.Samples, time.Since(begin))
	}
	return []Figure{f}, nil
}

// Verify measures verification, as a caller in process sees it.
func Verify(ctx context.Context, runs int) (figures []Figure, err error) {
	nginx, err := testbed.StartNginx(ctx, testbed.NginxOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, nginx.Stop()) }()
	workers := nginx.Workers()
	quick := Figure{Name: "an nginx worker, all modules, quick", Aim: "5 ms"}
	full := Figure{Name: "an nginx worker, all modules, full"}
	for range runs {
		for _, c := range []struct {
			figure *Figure
			full   bool
		}{{&quick, false}, {&full, true}} {
			took, err := verifyOnce(ctx, workers[0], c.full)
			if err != nil {
				return nil, err
			}
			c.figure.Samples = append(c.figure.Samples, took)
		}
	}
	return []Figure{quick, full}, nil
}

func verifyOnce(ctx context.Context, pid int, full bool) (took time.Duration, err error) {
	begin := time.Now()
	p, err := module.Open(pid)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	for _, m := range p.Modules {
		c, err := p.Compare(ctx, m, full)
		if err != nil {
			return 0, err
		}
		if c.Corrupt() {
			return 0, fmt.Errorf("%s of process %d is corrupt", m.Name, pid)
		}
	}
	return time.Since(begin), nil
}
