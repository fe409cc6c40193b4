package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// The exit codes. They are a promise to scripts (docs/scripting.md).
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitSome         = 3
	exitNotSupported = 4
	exitNotPermitted = 5
	exitGone         = 6
	exitRefused      = 7
	exitPending      = 10
	exitInterrupted  = 130
)

var exitMeanings = map[int]string{
	exitOK:           "done",
	exitFailed:       "failed, nothing changed",
	exitUsage:        "the command line is wrong",
	exitSome:         "some of several failed or were refused",
	exitNotSupported: "not supported on this machine",
	exitNotPermitted: "not permitted",
	exitGone:         "the target is gone, or there is none of that name",
	exitRefused:      "refused, nothing was touched",
	exitPending:      "running code differs from its file, or work is pending",
	exitInterrupted:  "interrupted, what had begun was undone",
}

// exitHelp is the part of a command's help that lists its exit codes.
func exitHelp(codes ...int) string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for _, c := range codes {
		fmt.Fprintf(&b, "  %3d  %s\n", c, exitMeanings[c])
	}
	return strings.TrimRight(b.String(), "\n")
}

// errorCodes maps errors to exit codes, the first that matches.
var errorCodes = []struct {
	err  error
	code int
}{
	{api.ErrUsage, exitUsage},
	{api.ErrGone, exitGone},
	{api.ErrNotPermitted, exitNotPermitted},
	{fs.ErrPermission, exitNotPermitted},
	{api.ErrNotSupported, exitNotSupported},
	{errors.ErrUnsupported, exitNotSupported},
}

// remedies says what the user can do about errors of a code.
var remedies = map[int]string{
	exitNotPermitted: "run as root (with CAP_SYS_PTRACE), or as the program's own user",
	exitGone:         "vos ps lists what runs now",
}

// codeOf is the exit code of one error that joins no others. A refusal of a process
// that has ended meanwhile says no more than that.
func codeOf(err error) int {
	if errors.Is(err, api.ErrGone) {
		return exitGone
	}
	if len(api.Refusals(err)) > 0 {
		return exitRefused
	}
	for _, c := range errorCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return exitFailed
}

// A usageError says that the command line is wrong.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (usageError) Is(target error) bool { return target == api.ErrUsage }

func (u usageError) Unwrap() error { return u.error }

// A settled error is what remains of a command that has printed its results: an
// exit code, and the errors still to be printed, perhaps none.
type settled struct {
	code int
	err  error
}

func (s settled) Error() string { return fmt.Sprintf("exit code %d: %v", s.code, s.err) }

func (s settled) Unwrap() error { return s.err }

// A tally counts how the parts of a command ended.
type tally struct {
	good    int // modules or programs that are as they should be now
	changed int // those of them that the command changed
	refused int
	failed  int
	pending bool // corruption was found, or a plan has work
}

// troubles is the end of a summary: how many were refused, and how many failed.
func (t tally) troubles() string {
	var s string
	if t.refused > 0 {
		s += fmt.Sprintf("; %d refused", t.refused)
	}
	if t.failed > 0 {
		s += fmt.Sprintf("; %d failed", t.failed)
	}
	return s
}

// settle turns a command's tally and the executive's error into what it exits
// with. What is known for certain to differ (10) goes before what could not be
// looked at (3). Where nothing went well the code is that of the failures, if
// they all are of one kind. A single process that went away is gone (6), however
// many of its modules had been looked at. Results that could not be written are
// a failure, whatever they would have said.
func (a *app) settle(t tally, err error) error {
	output := a.stdout.Flush()
	if output != nil && !errors.Is(err, output) {
		err = errors.Join(err, fmt.Errorf("write output: %w", output))
	}
	var codes []int
	if t.refused > 0 {
		codes = append(codes, exitRefused)
	}
	if t.failed > 0 {
		codes = append(codes, exitFailed)
	}
	for _, e := range leaves(err) {
		codes = append(codes, codeOf(e))
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)

	_, single := a.subject.PID()
	code := exitOK
	switch {
	case output != nil && t.changed == 0:
		code = exitFailed
	case single && slices.Equal(codes, []int{exitGone}):
		code = exitGone
	case t.pending:
		code = exitPending
	case len(codes) == 0:
		code = exitOK
	case t.good > 0:
		code = exitSome
	case len(codes) == 1:
		code = codes[0]
	default:
		code = exitFailed
	}
	if code == exitOK {
		return nil
	}
	return settled{code, err}
}

// leaves returns the errors that err joins, or err itself. Errors that merely
// wrap several (a sentinel and a cause, in one sentence) are not taken apart.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	var texts []string
	for _, e := range joined.Unwrap() {
		all = append(all, leaves(e)...)
		texts = append(texts, e.Error())
	}
	if err.Error() != strings.Join(texts, "\n") {
		return []error{err}
	}
	return all
}

// finish prints what is left to say about err and returns the exit code.
func (a *app) finish(ctx context.Context, command *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	code := 0
	var program ended
	if errors.As(err, &program) {
		return program.code
	}
	var s settled
	if errors.As(err, &s) {
		code, err = s.code, s.err
	} else {
		code = a.settle(tally{}, err).(settled).code
	}
	a.printErrors(ctx, command, err)
	// An interrupt that came too late to change the result does not hide it.
	if ctx.Err() != nil && (err != nil || code == exitFailed || code == exitSome) {
		return exitInterrupted
	}
	return code
}

// errorsShown is how many errors of one kind are printed without -v: on a
// machine with hundreds of programs that may not be read, more is noise.
const errorsShown = 5

func (a *app) printErrors(ctx context.Context, command *cobra.Command, err error) {
	// What the user has done needs no words: an interrupt, or a closed pipe.
	silent := func(e error) bool {
		return ctx.Err() != nil && errors.Is(e, context.Canceled) ||
			errors.Is(e, syscall.EPIPE) && errors.Is(a.stdout.Flush(), syscall.EPIPE)
	}
	shown := map[int]int{}
	var kinds []int
	for _, e := range leaves(err) {
		if silent(e) {
			continue
		}
		code := codeOf(e)
		if !slices.Contains(kinds, code) {
			kinds = append(kinds, code)
		}
		if shown[code]++; shown[code] > errorsShown && !a.verbose {
			continue
		}
		a.printError(e, code)
	}
	for _, code := range kinds {
		if n := shown[code] - errorsShown; n > 0 && !a.verbose {
			a.stderr.errorf("and %d more like these; -v shows all", n)
		}
		if code == exitUsage {
			a.stderr.line(plain, "", fmt.Sprintf("try '%s --help'", command.CommandPath()))
			continue
		}
		a.stderr.remedy(remedies[code])
	}
}

func (a *app) printError(err error, code int) {
	switch {
	case code == exitRefused:
		a.printRefused(err)
	case errors.Is(err, context.DeadlineExceeded) && a.timedOut:
		a.stderr.errorf("timed out after %v (--timeout); what had begun was undone", a.timeout)
	default:
		a.stderr.errorf("%v", err)
	}
}

// printRefused prints an error that is a refusal of the target as a whole, as a
// line of data too where the user reads JSON: its code is for scripts.
func (a *app) printRefused(err error) {
	refusals := api.Refusals(err)
	where := ""
	if len(refusals) == 1 {
		// What the refusal was wrapped with says which process it is about.
		if before, found := strings.CutSuffix(err.Error(), refusals[0].Error()); found {
			where = strings.TrimRight(before, ": ")
		}
	}
	for _, r := range refusals {
		a.stderr.refusal(where, r)
	}
	if a.json {
		// An output that fails here has failed before, or will at the last flush.
		_ = a.printJSON(refusedTarget{a.subject.String(), refusals})
	}
}
