package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// window is how long latency is measured at a time.
const window = 4 * time.Second

// Latency measures what clients of nginx see while its libz is replaced once a
// second, against the same without. The two take turns.
func Latency(ctx context.Context, runs int) (figures []Figure, err error) {
	p, err := rebuiltPair(ctx, testbed.Zlib, "7")
	if err != nil {
		return nil, err
	}
	nginx, end, err := startWith(ctx, p.old)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end(), nginx.Stop()) }()
	p50, p99, p999 := Figure{}, Figure{}, Figure{}
	var served, failed int64
	for range max(1, min(runs/5, 6)) {
		var seen [2]testbed.Totals
		for i := range seen {
			load := nginx.Load(ctx, testbed.LoadOptions{})
			err := replaceFor(ctx, nginx, p, i == 1)
			seen[i] = load.Stop()
			if err != nil {
				return nil, err
			}
			served, failed = served+seen[i].Served, failed+seen[i].Failed
		}
		p50.add(seen[1].P50, seen[0].P50)
		p99.add(seen[1].P99, seen[0].P99)
		p999.add(seen[1].P999, seen[0].P999)
	}
	p50.Name, p99.Name, p999.Name = "p50", "p99", fmt.Sprintf("p99.9; of %v at a time; in all %d requests served, %d failed", window, served, failed)
	return []Figure{p50, p99, p999}, nil
}

// replaceFor waits for a window, in which builds take turns or do not.
func replaceFor(ctx context.Context, nginx *testbed.Nginx, p pair, replacing bool) error {
	for n := range int(window / time.Second) {
		began := time.Now()
		if replacing {
			for _, pid := range nginx.Workers() {
				if _, _, err := takeOver(ctx, pid, p, n%2 == 0); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second - time.Since(began)):
		}
	}
	return nil
}

// startWith starts nginx with a build of a library; end removes its folder.
func startWith(ctx context.Context, b testbed.LibraryBuild) (nginx *testbed.Nginx, end func() error, err error) {
	libraries, err := testbed.NewLibraries(b)
	if err != nil {
		return nil, nil, err
	}
	nginx, err = testbed.StartNginx(ctx, testbed.NginxOptions{Env: libraries.Env()})
	if err != nil {
		return nil, nil, errors.Join(err, libraries.Remove())
	}
	return nginx, libraries.Remove, nil
}

// Restart measures the longest time without any answer while nginx gets another
// libz: by a replacement in master and workers, and by a restart, as systemctl
// restart does with Debian's unit (SIGQUIT, wait, start). The reload of its
// configuration, which keeps the library, is beside it.
func Restart(ctx context.Context, runs int) ([]Figure, error) {
	p, err := rebuiltPair(ctx, testbed.Zlib, "7")
	if err != nil {
		return nil, err
	}
	ways := []struct {
		name string
		act  func(context.Context, *testbed.Nginx, pair) (end func() error, err error)
	}{
		{"nothing", func(context.Context, *testbed.Nginx, pair) (func() error, error) { return nil, nil }},
		{"vos replace, master and workers", replaceAll},
		{"reload (keeps the library)", reload},
		{"restart", restart},
	}
	figures, sums := make([]Figure, len(ways)), make([]testbed.Totals, len(ways))
	for range max(1, min(runs/3, 10)) {
		for i, way := range ways {
			totals, err := gap(ctx, p, way.act)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", way.name, err)
			}
			figures[i].Samples = append(figures[i].Samples, totals.WorstGap)
			sum := &sums[i]
			sum.Served, sum.Failed, sum.Reconnects = sum.Served+totals.Served, sum.Failed+totals.Failed, sum.Reconnects+totals.Reconnects
		}
	}
	for i, way := range ways {
		figures[i].Name = fmt.Sprintf("%s: longest gap; %d served, %d failed, %d connections lost", way.name, sums[i].Served, sums[i].Failed, sums[i].Reconnects)
		if i > 0 {
			figures[i].Floor = figures[0].Samples
		}
	}
	return figures, nil
}

// gap returns what a load saw while something was done to a fresh nginx.
func gap(ctx context.Context, p pair, act func(context.Context, *testbed.Nginx, pair) (func() error, error)) (totals testbed.Totals, err error) {
	nginx, remove, err := startWith(ctx, p.old)
	if err != nil {
		return totals, err
	}
	stop := nginx.Stop
	defer func() { err = errors.Join(err, stop(), remove()) }()
	load := nginx.Load(ctx, testbed.LoadOptions{Rate: 1500})
	defer load.Stop()
	if err := load.Await(ctx, 500); err != nil {
		return totals, err
	}
	end, err := act(ctx, nginx, p)
	if end != nil {
		stop = func() error {
			err := end()
			nginx.Stop() // it has ended before, which it says
			return err
		}
	}
	if err != nil {
		return totals, err
	}
	if err := load.Await(ctx, 1000); err != nil {
		return totals, err
	}
	return load.Stop(), nil
}

func replaceAll(ctx context.Context, nginx *testbed.Nginx, p pair) (func() error, error) {
	for _, pid := range nginx.Pids() {
		if _, _, err := takeOver(ctx, pid, p, true); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func reload(ctx context.Context, nginx *testbed.Nginx, _ pair) (func() error, error) {
	before := nginx.Workers()
	if err := syscall.Kill(nginx.Master(), syscall.SIGHUP); err != nil {
		return nil, err
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		if now := nginx.Workers(); len(now) == len(before) && now[0] > before[len(before)-1] {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("nginx %d has not reloaded: workers %v", nginx.Master(), nginx.Workers())
}

func restart(ctx context.Context, nginx *testbed.Nginx, _ pair) (func() error, error) {
	binary, err := exec.LookPath("/usr/sbin/nginx")
	if err != nil {
		return nil, err
	}
	if err := syscall.Kill(nginx.Master(), syscall.SIGQUIT); err != nil {
		return nil, err
	}
	select {
	case <-nginx.Done():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	cmd := exec.CommandContext(ctx, binary, "-p", nginx.Folder(), "-e", "error.log", "-c", "nginx.conf")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		err := cmd.Process.Signal(syscall.SIGQUIT)
		return errors.Join(err, cmd.Wait())
	}, nil
}
