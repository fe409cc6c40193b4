package testbed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A Report is what a fixture says about itself.
type Report struct {
	Fixture  string           `json:"fixture"`
	Errors   int64            `json:"errors"`   // things that must never happen
	Error    string           `json:"error"`    // the first of them
	Progress int64            `json:"progress"` // grows as long as the fixture works
	Counts   map[string]int64 `json:"counts"`   // the fixture's own counters
}

// Healthy returns nil if nothing went wrong and work was done since the report
// before, which may be the zero Report.
func (r Report) Healthy(before Report) error {
	switch {
	case r.Errors > before.Errors:
		return fmt.Errorf("fixture %s: %d errors, the first: %s", r.Fixture, r.Errors, r.Error)
	case r.Progress <= before.Progress:
		return fmt.Errorf("fixture %s: no progress since the last report (%d)", r.Fixture, r.Progress)
	}
	return nil
}

// A Fixture is a running program that speaks the protocol of
// fixtures/report.h. Its methods may be called by several goroutines.
type Fixture struct {
	child  *child
	errors *lastOutput

	mu    sync.Mutex // one question at a time
	stdin *os.File
	lines chan []byte // stdout, closed at its end
	owed  int         // answers that came too late for their question
}

// FixtureOptions changes how a fixture is started. The zero value is usual.
type FixtureOptions struct {
	Env   []string                     // added to the environment
	Attr  *syscall.SysProcAttr         // credentials, namespaces
	Ready time.Duration                // how long it may take to be ready; 20 s if 0
	Wrap  func(argv []string) []string // another program that starts it by exec, as unshare
	Mute  bool                         // it says that it is ready, and neither reports nor quits; for [Run]
}

// StartFixture starts the program at path and waits until it is ready. The
// caller ends it with Quit or Kill; it also ends when ctx does.
func StartFixture(ctx context.Context, path string, args ...string) (*Fixture, error) {
	return StartFixtureWith(ctx, FixtureOptions{}, path, args...)
}

// StartFixtureWith is [StartFixture] with options.
func StartFixtureWith(ctx context.Context, o FixtureOptions, path string, args ...string) (_ *Fixture, err error) {
	name := filepath.Base(path)
	stdinRead, stdinWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start fixture %s: %w", name, err)
	}
	defer stdinRead.Close()
	stdoutRead, stdoutWrite, err := os.Pipe()
	if err != nil {
		stdinWrite.Close()
		return nil, fmt.Errorf("start fixture %s: %w", name, err)
	}
	defer stdoutWrite.Close()
	defer func() {
		if err != nil {
			stdinWrite.Close()
		}
	}()

	argv := append([]string{path}, args...)
	if o.Wrap != nil {
		argv = o.Wrap(argv)
	}
	f := &Fixture{errors: &lastOutput{}, stdin: stdinWrite, lines: make(chan []byte, 4)}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinRead, stdoutWrite, f.errors
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.SysProcAttr = o.Attr
	f.child, err = startChild(cmd)
	if err != nil {
		stdoutRead.Close()
		return nil, err
	}
	go f.readLines(stdoutRead)

	within := o.Ready
	if within == 0 {
		within = 20 * time.Second
	}
	readyCtx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	line, err := f.line(readyCtx)
	if err == nil && string(line) != "ready" {
		err = fmt.Errorf("printed %q, not ready", line)
	}
	if err != nil {
		f.child.kill()
		f.child.endGroup()
		return nil, fmt.Errorf("start fixture %s: %w%s", name, err, f.stderr())
	}
	return f, nil
}

// RunFixture compiles the fixture name (see [Source]) and runs it.
func RunFixture(tb TB, name string, args ...string) *Fixture {
	tb.Helper()
	build, err := Source(name)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return Run(tb, FixtureOptions{}, MustCompile(tb, build), args...)
}

// Run starts a program for the length of a test, at whose end it must quit when
// it is told; a test that kills or waits for the program is free to do so. A mute
// one is killed at the end, and must not have ended before.
func Run(tb TB, o FixtureOptions, path string, args ...string) *Fixture {
	tb.Helper()
	f, err := StartFixtureWith(context.WithoutCancel(tb.Context()), o, path, args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		select {
		case <-f.Done():
			if o.Mute {
				code, signal := f.ExitStatus()
				tb.Errorf("%s ended by itself: exit code %d, signal %v%s", filepath.Base(path), code, signal, f.stderr())
			}
			f.Kill()
		default:
			if o.Mute {
				f.Kill()
			} else if err := f.Quit(20 * time.Second); err != nil {
				tb.Errorf("%v", err)
			}
		}
	})
	return f
}

func (f *Fixture) readLines(stdout *os.File) {
	defer stdout.Close()
	defer close(f.lines)
	scanner := bufio.NewScanner(stdout)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		f.lines <- append([]byte(nil), scanner.Bytes()...)
	}
}

// Pid returns the process id.
func (f *Fixture) Pid() int { return f.child.pid() }

// Done is closed when the fixture has ended and was reaped.
func (f *Fixture) Done() <-chan struct{} { return f.child.done }

// ExitStatus tells how it ended, after Done: the exit code, or -1 and the
// signal that killed it.
func (f *Fixture) ExitStatus() (code int, signal syscall.Signal) { return f.child.exitStatus() }

func (f *Fixture) stderr() string {
	if text := f.errors.String(); text != "" {
		return "\n" + text
	}
	return ""
}

// fate says how a fixture that does not answer ended, if it did.
func (f *Fixture) fate() string {
	select {
	case <-f.child.done:
		code, signal := f.ExitStatus()
		return fmt.Sprintf(" (exit code %d, signal %v)%s", code, signal, f.stderr())
	case <-time.After(100 * time.Millisecond):
		return f.stderr()
	}
}

var errFixtureEnded = errors.New("its output ended")

func (f *Fixture) line(ctx context.Context) ([]byte, error) {
	select {
	case line, ok := <-f.lines:
		if !ok {
			return nil, errFixtureEnded
		}
		return line, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer: %w", ctx.Err())
	}
}

// Report asks the fixture how it fares.
func (f *Fixture) Report(ctx context.Context) (Report, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.stdin.WriteString("report\n"); err != nil {
		return Report{}, fmt.Errorf("ask fixture %d: %w%s", f.Pid(), err, f.fate())
	}
	f.owed++
	var line []byte
	for f.owed > 0 {
		var err error
		if line, err = f.line(ctx); err != nil {
			return Report{}, fmt.Errorf("ask fixture %d: %w%s", f.Pid(), err, f.fate())
		}
		f.owed--
	}
	var r Report
	if err := json.Unmarshal(line, &r); err != nil {
		return Report{}, fmt.Errorf("ask fixture %d: %w in %.200q", f.Pid(), err, line)
	}
	return r, nil
}

// Quit tells the fixture to end, and waits. Anything but status 0 in time is an
// error; the fixture is gone in any case.
func (f *Fixture) Quit(within time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, writeErr := f.stdin.WriteString("quit\n")
	defer f.stdin.Close()
	defer f.drain()
	defer f.child.endGroup()
	select {
	case <-f.child.done:
	case <-time.After(within):
		f.child.kill()
		return fmt.Errorf("quit fixture %d: not ended within %v: killed", f.Pid(), within)
	}
	if code, signal := f.ExitStatus(); code != 0 {
		return fmt.Errorf("quit fixture %d: exit code %d, signal %v%s", f.Pid(), code, signal, f.stderr())
	}
	if writeErr != nil {
		return fmt.Errorf("quit fixture %d: %w", f.Pid(), writeErr)
	}
	return nil
}

// Kill ends the fixture with SIGKILL and reaps it. It may be called twice.
func (f *Fixture) Kill() {
	f.child.kill()
	f.child.endGroup()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stdin.Close()
	f.drain()
}

// drain takes what was printed and never asked for, so that the reader ends.
func (f *Fixture) drain() {
	timeout := time.After(time.Second) // a child of the fixture may hold stdout
	for {
		select {
		case _, ok := <-f.lines:
			if !ok {
				return
			}
		case <-timeout:
			return
		}
	}
}
