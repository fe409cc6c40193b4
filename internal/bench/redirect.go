package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// Redirect measures how long a program is stopped while a descriptor of it is bound
// to something else, and back, and how long all of it takes.
func Redirect(ctx context.Context, runs int) (figures []Figure, err error) {
	folder, err := os.MkdirTemp("", "vos-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer server.Close()
	go holdConnections(server)
	_, port, err := net.SplitHostPort(server.Addr().String())
	if err != nil {
		return nil, err
	}
	log := "log=" + filepath.Join(folder, "one")
	toFile := "append:" + filepath.Join(folder, "two")
	for _, c := range []struct {
		name, kind, to string
		args           []string
		aim            string
	}{
		{"a log", "log", toFile, []string{log}, "1 ms"},
		{"a log of 4 processes", "log", toFile, []string{log, "children=3"}, ""},
		{"a connection in an epoll", "edge", "tcp:127.0.0.1:" + port, []string{"killed=1", "edge=" + port}, "1 ms"},
		{"a connection in an epoll, 9 threads", "edge", "tcp:127.0.0.1:" + port, strings.Fields(strings.ReplaceAll(
			"killed=1 edge=P recv=P read=P poll=P select=P oneshot=P level=P exclusive=P", "P", port)), ""},
	} {
		pause := Figure{Name: c.name + ": stopped", Aim: c.aim}
		total := Figure{Name: c.name + ": in all"}
		if err := redirectRuns(ctx, runs, c.kind, c.to, c.args, &pause, &total); err != nil {
			return figures, fmt.Errorf("%s: %w", c.name, err)
		}
		figures = append(figures, pause, total)
	}
	return figures, nil
}

// holdConnections accepts connections and says nothing.
func holdConnections(l net.Listener) {
	var all []net.Conn
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		all = append(all, c)
	}
	for _, c := range all {
		c.Close()
	}
}

func redirectRuns(ctx context.Context, runs int, kind, to string, args []string, pause, total *Figure) (err error) {
	build, err := testbed.Source("redirect")
	if err != nil {
		return err
	}
	path, err := testbed.Compile(ctx, build)
	if err != nil {
		return err
	}
	fixture, err := testbed.StartFixture(ctx, path, args...)
	if err != nil {
		return err
	}
	defer fixture.Kill()
	report, err := fixture.Report(ctx)
	if err != nil {
		return err
	}
	p, err := procfs.Open(fixture.Pid())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	machine, err := vex.New()
	if err != nil {
		return err
	}
	request := api.RedirectRequest{Target: api.Target{Program: strconv.Itoa(fixture.Pid())}, FD: int(report.Counts[kind+".fd"]), All: true}
	for n := range 2 * runs {
		floor, err := bareStop(p)
		if err != nil {
			return err
		}
		request.To, request.Back = to, false
		if n%2 == 1 {
			request.To, request.Back = "", true
		}
		longest, begin := int64(0), time.Now()
		err = machine.Redirect(ctx, request, func(r api.Redirection) error {
			if r.Outcome != api.Redirected && r.Outcome != api.Restored {
				return fmt.Errorf("%s: %v", r.Outcome, r.Refusals)
			}
			longest = max(longest, r.PauseUS)
			return nil
		})
		if err != nil {
			return err
		}
		total.Samples = append(total.Samples, time.Since(begin))
		pause.Samples = append(pause.Samples, time.Duration(longest)*time.Microsecond)
		pause.Floor = append(pause.Floor, floor)
	}
	if report, err = fixture.Report(ctx); err == nil && report.Errors > 0 {
		err = errors.New(report.Error)
	}
	return err
}
