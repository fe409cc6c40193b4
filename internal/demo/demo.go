// Package demo shows vOS at work: a real nginx under verified load, whose code is
// corrupted while it serves, found and healed by the commands that a user would
// type.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// Binary is the vos that is shown.
const Binary = "bin/vos"

// rounds is how often corruption and healing are repeated after the first time,
// a second apart.
const rounds = 15

// A stage is where the demo plays.
type stage struct {
	out   io.Writer
	nginx *testbed.Nginx
	load  *testbed.Load
	heals []api.Operation
}

// Run plays the demo. It ends what it starts.
func Run(ctx context.Context, out io.Writer) (err error) {
	nginx, err := testbed.StartNginx(ctx, testbed.NginxOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nginx.Stop()) }()
	s := &stage{out: out, nginx: nginx, load: nginx.Load(ctx, testbed.LoadOptions{})}
	defer s.load.Stop()

	s.say("nginx serves at %s: master %d, workers %v. Clients fetch gzipped files from it, without a pause, and compare every byte.",
		nginx.Addr(), nginx.Master(), nginx.Workers())
	if err := s.load.Await(ctx, 100); err != nil {
		return err
	}
	if err := s.show(ctx, 0, "ps", "nginx"); err != nil {
		return err
	}
	s.say("Now bytes are flipped in the code of libz and of nginx itself, in both workers, in functions that are idle just now.")
	if err := s.corrupt(); err != nil {
		return err
	}
	for _, step := range []struct {
		code int
		args []string
	}{{10, []string{"verify", "nginx"}}, {0, []string{"refresh", "nginx"}}, {0, []string{"verify", "--full", "nginx"}}} {
		if err := s.show(ctx, step.code, step.args...); err != nil {
			return err
		}
	}
	s.say("The same once a second, %d times.", rounds)
	for n := range rounds {
		if err := s.round(ctx); err != nil {
			return err
		}
		if totals := s.load.Totals(); (n+1)%5 == 0 {
			fmt.Fprintf(out, "round %2d of %d: %d requests served, %d failed\n", n+1, rounds, totals.Served, totals.Failed)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return s.sum()
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.out, "\n"+format+"\n", args...)
}

// show runs vos as a user would and prints the command with what it prints.
func (s *stage) show(ctx context.Context, code int, args ...string) error {
	fmt.Fprintf(s.out, "\n$ vos %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, Binary, args...)
	cmd.Stdout, cmd.Stderr = s.out, s.out
	return expect(cmd, cmd.Run(), code)
}

// expect turns an unexpected end of vos into an error.
func expect(cmd *exec.Cmd, err error, code int) error {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return fmt.Errorf("%v ended with exit code %d instead of %d", cmd.Args[1:], got, code)
	}
	return nil
}

// round corrupts and heals once more, and keeps the figures.
func (s *stage) round(ctx context.Context) error {
	if err := s.corrupt(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, Binary, "refresh", "nginx", "--json", "--quiet")
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err := expect(cmd, err, 0); err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var o api.Operation
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return fmt.Errorf("read what vos refresh printed: %w", err)
		}
		if o.Outcome == api.Refreshed {
			s.heals = append(s.heals, o)
		}
	}
	return nil
}

// idle are functions that nginx does not run while it serves files.
var idle = map[string][]string{
	"libz.so.1": {"inflateBack", "gzread", "inflateSync"},
	"nginx":     {"ngx_http_v2_huff_encode", "ngx_http_upstream_create_round_robin_peer", "ngx_conf_set_bitmask_slot"},
}

// corrupt flips bytes in the idle functions of the workers.
func (s *stage) corrupt() error {
	for _, pid := range s.nginx.Workers() {
		if err := corruptProcess(pid); err != nil {
			return fmt.Errorf("corrupt worker %d: %w", pid, err)
		}
	}
	return nil
}

func corruptProcess(pid int) (err error) {
	p, err := module.Open(pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	for _, m := range p.Modules {
		for _, function := range idle[m.Name] {
			symbol, ok, err := m.Object.Lookup(function, "")
			if err != nil {
				return err
			}
			if ok {
				if _, err := testbed.Corrupt(pid, m.Bias+symbol.Value+16, []byte{0xde, 0xad, 0xbe, 0xef}); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// sum prints what it cost.
func (s *stage) sum() error {
	totals := s.load.Stop()
	borrowed := make(map[int][]int64) // pid → once a session
	var times []int64
	paused := int64(0)
	for _, o := range s.heals {
		paused = max(paused, o.PauseUS)
		if list := borrowed[o.PID]; len(list) == 0 || list[len(list)-1] != o.BorrowUS {
			borrowed[o.PID] = append(list, o.BorrowUS)
			times = append(times, o.BorrowUS)
		}
	}
	slices.Sort(times)
	if len(times) == 0 {
		return errors.New("nothing was refreshed")
	}
	s.say(`requests served      %d
requests failed      %d
latency              p50 %v, p99 %v, worst %v
modules refreshed    %d
all threads stopped  %s
one thread borrowed  median %d µs, worst %d µs`,
		totals.Served, totals.Failed, totals.P50.Round(time.Microsecond), totals.P99.Round(time.Microsecond), totals.Max.Round(time.Microsecond),
		len(s.heals), never(paused), times[len(times)/2], times[len(times)-1])
	if totals.Failed > 0 {
		return fmt.Errorf("requests failed: %v", totals.Errors)
	}
	return nil
}

func never(us int64) string {
	if us == 0 {
		return "never"
	}
	return fmt.Sprintf("at most %d µs", us)
}
