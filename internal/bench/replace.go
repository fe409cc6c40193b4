package bench

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// A pair is two builds of a library that are to take turns.
type pair struct{ old, new testbed.LibraryBuild }

// String tells what both have in common and how they differ.
func (p pair) String() string {
	if after, ok := strings.CutPrefix(p.new.Version, p.old.Version+"+"); ok {
		return fmt.Sprintf("%s %s, %s", p.old.Soname, p.old.Version, after)
	}
	return fmt.Sprintf("%s %s→%s", p.old.Soname, p.old.Version, p.new.Version)
}

// Replace measures replacements in nginx workers and in programs of many
// threads. A first one maps the build; later ones set the selector, and entries.
func Replace(ctx context.Context, runs int) ([]Figure, error) {
	var all []Figure
	for _, measure := range []func(context.Context, int) ([]Figure, error){replaceZlib, replacePcre2, replaceSSL, replaceThreads} {
		figures, err := measure(ctx, runs)
		all = append(all, figures...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

func replaceZlib(ctx context.Context, runs int) ([]Figure, error) {
	return replaceRebuilt(ctx, runs, testbed.Zlib, "7", testbed.NginxOptions{}, aims{pause: "200 µs", total: "50 ms"})
}

func replacePcre2(ctx context.Context, runs int) ([]Figure, error) {
	return replaceRebuilt(ctx, runs, testbed.Pcre2, "!", testbed.NginxOptions{Regex: true}, aims{pause: "200 µs"})
}

func replaceRebuilt(ctx context.Context, runs int, source testbed.LibrarySource, change string, o testbed.NginxOptions, a aims) ([]Figure, error) {
	p, err := rebuiltPair(ctx, source, change)
	if err != nil {
		return nil, err
	}
	return replaceInNginx(ctx, runs, o, []testbed.LibraryBuild{p.old}, p, a)
}

func rebuiltPair(ctx context.Context, source testbed.LibrarySource, change string) (p pair, err error) {
	if p.old, err = source.Original(ctx); err != nil {
		return p, err
	}
	p.new, err = source.Rebuilt(ctx, change)
	return p, err
}

// replaceSSL takes versions of OpenSSL as the distribution built them: of each
// library the newest two of which one can take over from the other in nginx.
func replaceSSL(ctx context.Context, runs int) ([]Figure, error) {
	served := make(map[string][]testbed.LibraryBuild)
	for _, soname := range []string{"libssl.so.3", "libcrypto.so.3"} {
		var err error
		if served[soname], err = testbed.LibraryBuilds(ctx, "libssl3", soname); err != nil {
			return nil, err
		}
	}
	var all []Figure
	for _, library := range []struct {
		soname string
		aims   aims
	}{{"libssl.so.3", aims{pause: "3 ms"}}, {"libcrypto.so.3", aims{pause: "3 ms", total: "600 ms"}}} {
		soname, a := library.soname, library.aims
		pairs, err := servedPairs(served[soname])
		if err != nil {
			return all, err
		}
		err = fmt.Errorf("no two of %d builds of %s can take turns", len(served[soname]), soname)
		for _, p := range pairs {
			var with []testbed.LibraryBuild // both libraries of one version
			for _, builds := range served {
				for _, b := range builds {
					if b.Version == p.old.Version {
						with = append(with, b)
					}
				}
			}
			var figures []Figure
			figures, err = replaceInNginx(ctx, runs, testbed.NginxOptions{TLS: true}, with, p, a)
			if len(api.Refusals(err)) == 0 {
				all = append(all, figures...)
				break
			}
		}
		if len(pairs) > 0 && err != nil {
			return all, err
		}
		if len(pairs) == 0 {
			all = append(all, Figure{Name: err.Error()})
		}
	}
	return all, nil
}

// servedPairs returns the pairs of builds of which files alone don't speak
// against a replacement, the newest first.
func servedPairs(builds []testbed.LibraryBuild) ([]pair, error) {
	var all []pair
	for newer := len(builds) - 1; newer > 0; newer-- {
		for older := newer - 1; older >= 0; older-- {
			p := pair{builds[older], builds[newer]}
			_, m, err := matchOnce(p)
			if err != nil {
				return nil, err
			}
			if len(m.Refusals) == 0 && !m.Same {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

type aims struct{ pause, total string }

// series are the figures of one library in one program.
type series struct {
	firstPause, firstBorrow, firstTotal, pause, total Figure
}

func newSeries(what string, a aims) *series {
	figure := func(name, aim string) Figure { return Figure{Name: what + ": " + name, Aim: aim} }
	return &series{
		firstPause: figure("first: stopped", a.pause), firstBorrow: figure("first: one thread borrowed", ""), firstTotal: figure("first: in all, matching included", a.total),
		pause: figure("later: stopped", a.pause), total: figure("later: in all", ""),
	}
}

func (s *series) figures() []Figure {
	return []Figure{s.firstPause, s.firstBorrow, s.firstTotal, s.pause, s.total}
}

// replaceInNginx starts nginx with builds, and lets the second build of a pair
// take over in its workers: once in each, then in turns in one of them.
func replaceInNginx(ctx context.Context, runs int, o testbed.NginxOptions, with []testbed.LibraryBuild, p pair, a aims) (figures []Figure, err error) {
	libraries, err := testbed.NewLibraries(with...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, libraries.Remove()) }()
	o.Env, o.Workers = libraries.Env(), min(runs, 12)
	nginx, err := testbed.StartNginx(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, nginx.Stop()) }()
	load := nginx.Load(ctx, testbed.LoadOptions{Rate: 100})
	defer load.Stop()
	if err := load.Await(ctx, 20); err != nil {
		return nil, err
	}
	s := newSeries(p.String()+", nginx worker", a)
	for _, pid := range nginx.Workers() {
		if err := s.first(ctx, pid, p); err != nil {
			return nil, err
		}
	}
	for n := range runs {
		if err := s.later(ctx, nginx.Workers()[0], p, n%2 == 1); err != nil {
			return nil, err
		}
	}
	if totals := load.Stop(); totals.Failed > 0 {
		return nil, fmt.Errorf("requests failed: %v", totals)
	}
	return s.figures(), nil
}

// first lets a build take over that the process has not had yet.
func (s *series) first(ctx context.Context, pid int, p pair) error {
	done, total, err := takeOver(ctx, pid, p, true)
	if err != nil {
		return err
	}
	floor, err := stopOf(pid)
	s.firstPause.add(done.Times.Pause, floor)
	s.firstBorrow.Samples = append(s.firstBorrow.Samples, done.Times.Borrow)
	s.firstTotal.Samples = append(s.firstTotal.Samples, total)
	return err
}

// later switches between builds that the process has.
func (s *series) later(ctx context.Context, pid int, p pair, forward bool) error {
	done, total, err := takeOver(ctx, pid, p, forward)
	if err != nil {
		return err
	}
	floor, err := stopOf(pid)
	s.pause.add(done.Times.Pause, floor)
	s.total.Samples = append(s.total.Samples, total)
	return err
}

func (f *Figure) add(sample, floor time.Duration) {
	f.Samples, f.Floor = append(f.Samples, sample), append(f.Floor, floor)
}

func stopOf(pid int) (pause time.Duration, err error) {
	p, err := procfs.Open(pid)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return bareStop(p)
}

// takeOver does in one process what `vos replace` or `vos rollback` does.
func takeOver(ctx context.Context, pid int, pair pair, forward bool) (done module.Replaced, total time.Duration, err error) {
	begin := time.Now()
	store := module.NewStore()
	defer func() { err = errors.Join(err, store.Close()) }()
	process, err := procfs.Open(pid)
	if err != nil {
		return done, 0, err
	}
	if err := process.Lock(ctx); err != nil {
		return done, 0, errors.Join(err, process.Close())
	}
	p, err := module.Inspect(store, process)
	if err != nil {
		return done, 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	m := loaded(p, pair.old.Soname)
	if m == nil {
		return done, 0, fmt.Errorf("process %d has no %s", pid, pair.old.Soname)
	}
	var plan *module.Replacement
	if forward {
		build, buildErr := store.OpenBuild(pair.new.Path)
		if buildErr != nil {
			return done, 0, buildErr
		}
		plan, err = p.PlanReplace(ctx, m, build, match.Options{})
	} else {
		plan, err = p.PlanRollback(m)
	}
	switch {
	case err != nil:
		return done, 0, err
	case len(plan.Refusals) > 0:
		return done, 0, fmt.Errorf("replace %s of process %d: %w", m.Name, pid, plan.Refusals[0])
	case plan.Empty():
		return done, 0, fmt.Errorf("replace %s of process %d: that build runs already", m.Name, pid)
	}
	done, err = p.CommitReplacement(ctx, plan)
	return done, time.Since(begin), err
}

// loaded returns the module that the program itself has loaded.
func loaded(p *module.Process, name string) *module.Module {
	for _, m := range p.Modules {
		if m.Name == name && !m.Staged() {
			return m
		}
	}
	return nil
}

var (
	//go:embed programs/lib.c
	libSource string
	//go:embed programs/within.c
	withinSource string
)

const libSoname = "libwithin.so"

func libPart(build int) testbed.Build {
	return testbed.Build{Name: libSoname, Source: libSource, Flags: []string{"-shared", "-fPIC", "-Wl,-soname," + libSoname, fmt.Sprintf("-DBUILD=%d", build)}}
}

// replaceThreads measures programs whose threads are in the library, or wait.
func replaceThreads(ctx context.Context, runs int) ([]Figure, error) {
	program, err := testbed.Compile(ctx, testbed.Build{Name: "within", Source: withinSource, Files: []string{"report.h"}, Parts: []testbed.Build{libPart(1)}})
	if err != nil {
		return nil, err
	}
	second, err := testbed.Compile(ctx, libPart(2))
	if err != nil {
		return nil, err
	}
	p := pair{old: testbed.LibraryBuild{Soname: libSoname, Path: filepath.Join(filepath.Dir(program), libSoname)},
		new: testbed.LibraryBuild{Soname: libSoname, Path: second}}
	var figures []Figure
	for _, c := range []struct {
		threads, mode string
		aims          aims
	}{{"1", "busy", aims{pause: "200 µs"}}, {"64", "busy", aims{pause: "2 ms"}}, {"256", "blocked", aims{}}} {
		s := newSeries(fmt.Sprintf("33 functions, %s threads, %s", c.threads, c.mode), c.aims)
		for range min(runs, 6) {
			if err := s.inProgram(ctx, program, p, c.threads, c.mode, runs/min(runs, 6)); err != nil {
				return figures, err
			}
		}
		figures = append(figures, s.figures()...)
	}
	return figures, nil
}

func (s *series) inProgram(ctx context.Context, program string, p pair, threads, mode string, switches int) error {
	fixture, err := testbed.StartFixture(ctx, program, threads, mode)
	if err != nil {
		return err
	}
	defer fixture.Kill()
	if err := s.first(ctx, fixture.Pid(), p); err != nil {
		return err
	}
	for n := range switches {
		if err := s.later(ctx, fixture.Pid(), p, n%2 == 1); err != nil {
			return err
		}
	}
	return nil
}
