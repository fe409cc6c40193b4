// Package demo shows vOS at work: a real nginx under verified load, whose code is
// corrupted while it serves, found and healed, and whose libz is replaced by
// another build and rolled back, by the commands that a user would type.
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

// program is what the nginx of the demo is called: no other one of this machine
// is meant by that.
const program = "nginx-demo"

// rounds is how often corruption and healing are repeated after the first time,
// a second apart.
const rounds = 8

// A stage is where the demo plays.
type stage struct {
	out       io.Writer
	libraries *testbed.Libraries
	nginx     *testbed.Nginx
	load      *testbed.Load
	heals     []api.Operation
	switches  []api.Operation
}

// Run plays the demo. It ends what it starts.
func Run(ctx context.Context, out io.Writer) (err error) {
	fmt.Fprintln(out, "Setting up: another build of zlib is made from the distribution's source (once; it is kept).")
	first, second, why := chooseBuilds(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if first.Path == "" {
		return why
	}
	libraries, err := testbed.NewLibraries(first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, libraries.Remove()) }()
	binary, err := copyNginx(libraries)
	if err != nil {
		return err
	}
	nginx, err := testbed.StartNginx(ctx, testbed.NginxOptions{Binary: binary, Env: libraries.Env()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nginx.Stop()) }()
	s := &stage{out: out, libraries: libraries, nginx: nginx, load: nginx.Load(ctx, testbed.LoadOptions{})}
	defer s.load.Stop()
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()

	s.say("%s serves at %s: master %d, workers %v. Clients fetch gzipped files from it, without a pause, and compare every byte.",
		program, nginx.Addr(), nginx.Master(), nginx.Workers())
	if err := s.load.Await(ctx, 100); err != nil {
		return err
	}
	if err := s.playHealing(ctx); err != nil {
		return err
	}
	if second == nil {
		s.say(noSource, why)
	} else if err := s.playReplacement(ctx, *second); err != nil {
		return err
	}
	return s.sum()
}

// longest is how long the demo may play.
const longest = time.Minute

const noSource = `The replacement of libz is left out: no second build of it could be made (%v).
The source of zlib comes from the package mirrors that apt's sources name, and is compiled by gcc. Where a
mirror serves no source packages, name one that does in /etc/apt/sources.list, as deb.debian.org, and play again.`

// copyNginx puts a copy of nginx into the folder, by the name of the demo.
func copyNginx(libraries *testbed.Libraries) (string, error) {
	binary, err := exec.LookPath("/usr/sbin/nginx")
	if err != nil {
		if binary, err = exec.LookPath("nginx"); err != nil {
			return "", err
		}
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return "", err
	}
	path := libraries.Path(program)
	return path, os.WriteFile(path, content, 0o755)
}

// playHealing corrupts and heals.
func (s *stage) playHealing(ctx context.Context) error {
	if err := s.show(ctx, 0, "ps", program); err != nil {
		return err
	}
	s.say("Now bytes are flipped in the code of libz and of nginx itself, in both workers, in functions that are idle just now.")
	if err := s.corrupt(); err != nil {
		return err
	}
	for _, step := range []struct {
		code int
		args []string
	}{{10, []string{"verify", program}}, {0, []string{"refresh", program}}, {0, []string{"verify", "--full", program}}} {
		if err := s.show(ctx, step.code, step.args...); err != nil {
			return err
		}
	}
	s.say("The same once a second, %d times.", rounds)
	for n := range rounds {
		if err := s.round(ctx); err != nil {
			return err
		}
		if totals := s.load.Totals(); (n+1)%4 == 0 {
			fmt.Fprintf(s.out, "round %2d of %d: %d requests served, %d failed\n", n+1, rounds, totals.Served, totals.Failed)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pause waits for a second.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second):
		return nil
	}
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
	done, err := operations(ctx, "refresh", program)
	for _, o := range done {
		if o.Outcome == api.Refreshed {
			s.heals = append(s.heals, o)
		}
	}
	return err
}

// operations runs vos and returns what it did.
func operations(ctx context.Context, args ...string) ([]api.Operation, error) {
	cmd := exec.CommandContext(ctx, Binary, append(args, "--json", "--quiet")...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err := expect(cmd, err, 0); err != nil {
		return nil, err
	}
	var done []api.Operation
	for line := range strings.Lines(string(text)) {
		var o api.Operation
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return nil, fmt.Errorf("read what vos %s printed: %w", args[0], err)
		}
		done = append(done, o)
	}
	return done, nil
}

// idle are functions that nginx does not run while it serves files.
var idle = map[string][]string{
	"libz.so.1": {"inflateBack", "gzread", "inflateSync"},
	program:     {"ngx_http_v2_huff_encode", "ngx_http_upstream_create_round_robin_peer", "ngx_conf_set_bitmask_slot"},
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
	if len(times) == 0 {
		return errors.New("nothing was refreshed")
	}
	s.say(`requests served      %d
requests failed      %d
latency              p50 %v, p99 %v, worst %v

modules refreshed    %d
all threads stopped  %s
one thread borrowed  %s
%s`,
		totals.Served, totals.Failed, totals.P50.Round(time.Microsecond), totals.P99.Round(time.Microsecond), totals.Max.Round(time.Microsecond),
		len(s.heals), never(paused), spread(times), s.sumReplacement(totals))
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

// spread tells median and worst of times in µs.
func spread(times []int64) string {
	slices.Sort(times)
	return fmt.Sprintf("median %d µs, worst %d µs", times[len(times)/2], times[len(times)-1])
}
