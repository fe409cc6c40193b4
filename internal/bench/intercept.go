package bench

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

var (
	//go:embed programs/calls.c
	callsSource string
	//go:embed programs/callee.c
	calleeSource string
	//go:embed programs/preload.c
	preloadSource string
)

const calleeSoname = "libcallee.so"

// Calls measures what a call costs more while it is counted, and a pair of malloc and
// free while memory is attributed: processor time. What others take for the same is
// beside it, as far as it runs here.
func Calls(ctx context.Context, runs int) ([]Figure, error) {
	program, err := testbed.Compile(ctx, testbed.Build{Name: "calls", Source: callsSource, Flags: []string{"-Wl,-z,now"}, Parts: []testbed.Build{
		{Name: calleeSoname, Source: calleeSource, Flags: []string{"-shared", "-fPIC", "-Wl,-soname," + calleeSoname}}}})
	if err != nil {
		return nil, err
	}
	preload, err := testbed.Compile(ctx, testbed.Build{Name: "libpreload.so", Source: preloadSource, Flags: []string{"-shared", "-fPIC"}})
	if err != nil {
		return nil, err
	}
	library := filepath.Join(filepath.Dir(program), calleeSoname)
	var figures []Figure
	for _, threads := range []string{"1", "64"} {
		for _, c := range []struct {
			name, line, aim string
			with            counting
		}{
			{"a call, counted", "call", "2 ns more", attached(module.AttachOptions{})},
			{"a call, LD_PRELOAD", "call", "", preloaded(preload)},
			{"a call, uprobe", "call", "", probed(library)},
			{"malloc and free, counted", "pair", "", attached(module.AttachOptions{})},
			{"malloc and free, attributed", "pair", "", attached(module.AttachOptions{Memory: true})},
			{"malloc and free, LD_PRELOAD", "pair", "", preloaded(preload)},
			{"malloc and free, heaptrack", "pair", "", preloaded(heaptrack, "DUMP_HEAPTRACK_OUTPUT=/dev/null")},
		} {
			f := Figure{Name: fmt.Sprintf("%s, threads: %s", c.name, threads), Aim: c.aim}
			if c.name == "a call, uprobe" && threads != "1" {
				continue // 1 µs a call
			}
			err := c.with(ctx, program, threads, func(plain, counted *caller) error {
				for range max(3, runs/3) {
					floor, err := plain.ask(c.line)
					if err != nil {
						return err
					}
					took, err := counted.ask(c.line)
					if err != nil {
						return err
					}
					f.add(took, floor)
				}
				return nil
			})
			if errors.Is(err, errNotHere) {
				f.Name += fmt.Sprintf(" (%v)", err)
			} else if err != nil {
				return figures, fmt.Errorf("%s: %w", c.name, err)
			}
			figures = append(figures, f)
		}
	}
	return figures, nil
}

// A counting starts the program twice, one of them with its calls counted.
type counting func(ctx context.Context, program, threads string, measure func(plain, counted *caller) error) error

// errNotHere is that another tool does not run on this machine.
var errNotHere = errors.New("not here")

// A caller is programs/calls.c.
type caller struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

func startCaller(ctx context.Context, program, threads string, env ...string) (*caller, error) {
	c := &caller{cmd: exec.CommandContext(ctx, program, threads)}
	c.cmd.Env, c.cmd.Stderr = append(os.Environ(), env...), os.Stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	c.lines = bufio.NewScanner(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = c.ask("call") // all is bound from here on
	if err == nil {
		_, err = c.ask("pair")
	}
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

// ask returns the time of a call.
func (c *caller) ask(line string) (time.Duration, error) {
	if _, err := fmt.Fprintln(c.stdin, line); err != nil {
		return 0, err
	}
	var ns float64
	if !c.lines.Scan() {
		return 0, fmt.Errorf("the program has ended: %w", io.ErrUnexpectedEOF)
	}
	if _, err := fmt.Sscan(c.lines.Text(), &ns); err != nil {
		return 0, err
	}
	// A Duration has no parts of ns: figures are of 1000 calls.
	return time.Duration(ns * 1000), nil
}

func (c *caller) end() error {
	return errors.Join(c.stdin.Close(), c.cmd.Wait())
}

// both starts the program plainly and in a way, and measures.
func both(ctx context.Context, program, threads string, env []string, measure func(plain, counted *caller) error) (err error) {
	plain, err := startCaller(ctx, program, threads)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.end()) }()
	counted, err := startCaller(ctx, program, threads, env...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, counted.end()) }()
	return measure(plain, counted)
}

func attached(o module.AttachOptions) counting {
	return func(ctx context.Context, program, threads string, measure func(plain, counted *caller) error) error {
		return both(ctx, program, threads, nil, func(plain, counted *caller) error {
			if _, err := attach(ctx, counted.cmd.Process.Pid, o); err != nil {
				return err
			}
			return measure(plain, counted)
		})
	}
}

func preloaded(library string, env ...string) counting {
	return func(ctx context.Context, program, threads string, measure func(plain, counted *caller) error) error {
		if _, err := os.Stat(library); err != nil {
			return errNotHere
		}
		return both(ctx, program, threads, append(env, "LD_PRELOAD="+library), measure)
	}
}

// heaptrack is Debian's.
const heaptrack = "/usr/lib/heaptrack/libheaptrack_preload.so"

// probed counts the calls of the library's function by a uprobe, which perf and
// bpftrace use, too.
func probed(library string) counting {
	return func(ctx context.Context, program, threads string, measure func(plain, counted *caller) error) (err error) {
		const events, enable = "/sys/kernel/tracing/uprobe_events", "/sys/kernel/tracing/events/vosbench/nothing/enable"
		offset, err := functionOffset(library, "nothing")
		if err != nil {
			return err
		}
		plain, err := startCaller(ctx, program, threads)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, plain.end()) }()
		// A copy of the library, so that the plain program has no probe.
		copied, err := os.MkdirTemp("", "vos-bench-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(copied)) }()
		bytes, err := os.ReadFile(library)
		if err != nil {
			return err
		}
		target := filepath.Join(copied, calleeSoname)
		if err := os.WriteFile(target, bytes, 0o700); err != nil {
			return err
		}
		if os.WriteFile(events, []byte(fmt.Sprintf("p:vosbench/nothing %s:0x%x\n", target, offset)), 0) != nil {
			return errNotHere
		}
		defer func() { err = errors.Join(err, os.WriteFile(events, []byte("-:vosbench/nothing\n"), 0)) }()
		if os.WriteFile(enable, []byte("1"), 0) != nil {
			return errNotHere
		}
		defer func() { err = errors.Join(os.WriteFile(enable, []byte("0"), 0), err) }()
		counted, err := startCaller(ctx, program, threads, "LD_PRELOAD="+target)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, counted.end()) }()
		return measure(plain, counted)
	}
}

func functionOffset(library, name string) (offset uint64, err error) {
	f, err := os.Open(library)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	o, err := dso.ReadFile(f, info.Size())
	if err != nil {
		return 0, err
	}
	s, ok, err := o.Lookup(name, "")
	if err != nil {
		return 0, err
	}
	offset, known := o.FileOffset(s.Value)
	if !ok || !known {
		return 0, fmt.Errorf("%s has no %s", library, name)
	}
	return offset, nil
}

// attach does in one process what `vos attach` does.
func attach(ctx context.Context, pid int, o module.AttachOptions) (done module.Attached, err error) {
	err = held(ctx, pid, func(p *module.Process) error {
		plan, err := p.PlanAttach(o)
		if err != nil {
			return err
		}
		if len(plan.Refusals) > 0 {
			return plan.Refusals[0]
		}
		done, err = p.CommitAttach(ctx, plan)
		return err
	})
	return done, err
}

// detach does in one process what `vos detach` does.
func detach(ctx context.Context, pid int) (done module.Attached, err error) {
	err = held(ctx, pid, func(p *module.Process) error {
		plan, err := p.PlanDetach()
		if err != nil {
			return err
		}
		if len(plan.Refusals) > 0 {
			return plan.Refusals[0]
		}
		done, err = p.CommitDetach(ctx, plan)
		return err
	})
	return done, err
}

func held(ctx context.Context, pid int, f func(*module.Process) error) (err error) {
	store := module.NewStore()
	defer func() { err = errors.Join(err, store.Close()) }()
	process, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	if err := process.Lock(ctx); err != nil {
		return errors.Join(err, process.Close())
	}
	p, err := module.Inspect(store, process)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return f(p)
}

// Attach measures how long programs are held up when their calls come to be counted,
// and cease to be.
func Attach(ctx context.Context, runs int) (figures []Figure, err error) {
	nginx, err := testbed.StartNginx(ctx, testbed.NginxOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, nginx.Stop()) }()
	redis, err := testbed.StartRedis(ctx, testbed.RedisOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, redis.Stop()) }()
	for _, c := range []struct {
		name string
		pid  int
		load *testbed.Load
	}{
		{"nginx worker", nginx.Workers()[0], nginx.Load(ctx, testbed.LoadOptions{Rate: 200})},
		{"redis", redis.Pid(), redis.Load(ctx, testbed.LoadOptions{Rate: 200})},
	} {
		var all [4]Figure
		for i, name := range []string{"attach, stopped", "attach, borrowed", "attach, in all", "detach, stopped"} {
			all[i].Name = c.name + ": " + name
		}
		for range runs {
			on, err := attach(ctx, c.pid, module.AttachOptions{})
			if err != nil {
				return figures, err
			}
			off, err := detach(ctx, c.pid)
			if err != nil {
				return figures, err
			}
			floor, err := stopOf(c.pid)
			if err != nil {
				return figures, err
			}
			all[0].add(on.Times.Pause, floor)
			all[1].Samples = append(all[1].Samples, on.Times.Borrow)
			all[2].Samples = append(all[2].Samples, on.Total)
			all[3].add(off.Times.Pause, floor)
		}
		if totals := c.load.Stop(); totals.Failed > 0 {
			return figures, fmt.Errorf("requests of %s failed: %v", c.name, totals)
		}
		figures = append(figures, all[:]...)
	}
	return figures, nil
}

// Counted measures what real work costs more while all calls are counted, and while
// memory is attributed: processor time of a request. The ways take turns.
func Counted(ctx context.Context, runs int) ([]Figure, error) {
	var figures []Figure
	for _, work := range []func(context.Context) (*work, error){nginxWork, redisWork, xmlWork} {
		w, err := work(ctx)
		if errors.Is(err, errNotHere) {
			figures = append(figures, Figure{Name: err.Error()})
			continue
		}
		if err != nil {
			return figures, err
		}
		more, err := w.measure(ctx, max(3, runs/4))
		figures = append(figures, more...)
		if err = errors.Join(err, w.end()); err != nil {
			return figures, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return figures, nil
}

// A work is a program that serves some requests, and the processor time that each
// takes.
type work struct {
	name string
	pid  int
	once func() (time.Duration, error) // of a request
	end  func() error
}

func (w *work) measure(ctx context.Context, runs int) ([]Figure, error) {
	counted := Figure{Name: w.name + ", all calls counted", Aim: "1.01"}
	memory := Figure{Name: w.name + ", memory attributed", Aim: "1.03"}
	if _, err := w.once(); err != nil { // caches are warm from here on
		return nil, err
	}
	for range runs {
		plain, err := w.once()
		if err != nil {
			return nil, err
		}
		for _, c := range []struct {
			f *Figure
			o module.AttachOptions
		}{{&counted, module.AttachOptions{}}, {&memory, module.AttachOptions{Memory: true}}} {
			if _, err := attach(ctx, w.pid, c.o); err != nil {
				return nil, err
			}
			took, err := w.once()
			if err != nil {
				return nil, err
			}
			if _, err := detach(ctx, w.pid); err != nil {
				return nil, err
			}
			c.f.add(took, plain)
		}
	}
	return []Figure{counted, memory}, nil
}

// processorTime returns what a process has used, in ns: the sum of its threads.
func processorTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			return 0, err
		}
		sum += ns
	}
	return time.Duration(sum), nil
}

// each returns the processor time that a process takes for one of the requests that
// act makes.
func each(pid int, act func() (requests int64, err error)) (time.Duration, error) {
	before, err := processorTime(pid)
	if err != nil {
		return 0, err
	}
	requests, err := act()
	if err != nil {
		return 0, err
	}
	after, err := processorTime(pid)
	if err != nil || requests == 0 {
		return 0, errors.Join(err, fmt.Errorf("%d requests", requests))
	}
	return (after - before) / time.Duration(requests), nil
}

func nginxWork(ctx context.Context) (*work, error) {
	nginx, err := testbed.StartNginx(ctx, testbed.NginxOptions{Workers: 1})
	if err != nil {
		return nil, err
	}
	pid := nginx.Workers()[0]
	return &work{name: "nginx, a request with gzip", pid: pid, end: nginx.Stop, once: func() (time.Duration, error) {
		return each(pid, func() (int64, error) {
			load := nginx.Load(ctx, testbed.LoadOptions{})
			err := load.Await(ctx, 6000)
			totals := load.Stop()
			if totals.Failed > 0 {
				err = errors.Join(err, fmt.Errorf("requests failed: %v", totals))
			}
			return totals.Served, err
		})
	}}, nil
}

func redisWork(ctx context.Context) (*work, error) {
	client, err := exec.LookPath("redis-benchmark")
	if err != nil {
		return nil, fmt.Errorf("redis-benchmark: %w", errNotHere)
	}
	redis, err := testbed.StartRedis(ctx, testbed.RedisOptions{})
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(redis.Address(), ":")
	const requests = 400_000
	return &work{name: "redis-benchmark -P 16, a request", pid: redis.Pid(), end: redis.Stop, once: func() (time.Duration, error) {
		return each(redis.Pid(), func() (int64, error) {
			out, err := exec.CommandContext(ctx, client, "-p", port, "-P", "16", "-n", fmt.Sprint(requests/2), "-t", "set,get", "-q").CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return requests, err
		})
	}}, nil
}

// xmlJob parses and walks a document for each line that it reads.
const xmlJob = `
import sys
from lxml import etree
text = b"<all>" + b"".join(b"<item n='%d'><name>value %d</name></item>" % (i, i) for i in range(2000)) + b"</all>"
for line in sys.stdin:
    for n in range(20):
        root = etree.fromstring(text)
        assert len(root.findall("item/name")) == 2000
    print("done", flush=True)
`

func xmlWork(ctx context.Context) (*work, error) {
	if exec.CommandContext(ctx, "/usr/bin/python3", "-c", "import lxml").Run() != nil {
		return nil, fmt.Errorf("python3-lxml: %w", errNotHere)
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", xmlJob)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	return &work{name: "python3 with lxml, a document", pid: cmd.Process.Pid,
		end: func() error { return errors.Join(stdin.Close(), cmd.Wait()) },
		once: func() (time.Duration, error) {
			return each(cmd.Process.Pid, func() (int64, error) {
				if _, err := fmt.Fprintln(stdin, "go"); err != nil {
					return 0, err
				}
				if !lines.Scan() {
					return 0, io.ErrUnexpectedEOF
				}
				return 20, nil
			})
		}}, nil
}
