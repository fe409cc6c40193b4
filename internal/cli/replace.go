package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// replace is `vos replace`.
func (a *app) replace() *cobra.Command {
	var r api.ReplaceRequest
	cmd := &cobra.Command{
		Use:   "replace PROGRAM:MODULE | --outdated [TARGET]",
		Short: "Let another build of a module take over in a running program",
		Long: `Let another build of a library take over in a running program, with the data,
files and connections that the program holds: the new build is mapped beside the
old one, is given the old one's data, and calls of its functions are led to it.
Without --with it is the build that is at the module's path now, as an upgrade
left it there. The old build stays mapped, and vos rollback leads back to it.

The two builds are compared first. What isn't proved to be safe is refused with
the reason and a remedy, and then nothing was touched. Debug files prove more.
All threads stand still for the moment in which calls are led over; if vOS is
interrupted before, what it has begun is undone.

All processes of a program are done, or none, so that a master and its workers
run one build; with --partial those are done that can be. --outdated does so
with every module whose file was replaced on disk, of a target or, without one,
of the whole machine: what vos outdated lists.

FUNCTIONS is how many are led to the new build, STOPPED how long all threads
stood still. Calls that still reach old code are listed, with the reason. With
--dry-run the very plan is printed that would be carried out, and the exit code
is 10 if there is one.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos replace nginx:libz.so.1 --dry-run
  vos replace nginx:libz.so.1
  vos replace redis-server:libssl.so.3 --with ./libssl.so.3
  vos replace --outdated --timeout 5m --json`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.replaceTarget(&r, args); err != nil {
				return err
			}
			for _, file := range []*string{&r.With, &r.Debug, &r.OldDebug} {
				// The executive may stand in another directory.
				if *file != "" {
					abs, err := filepath.Abs(*file)
					if err != nil {
						return err
					}
					*file = abs
				}
			}
			r.Steps = a.verbose || r.DryRun
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.takeOver(replacing, r.Target, func(tell func(api.Progress), emit func(api.Operation) error) error {
					r.Progress = tell
					return x.Replace(ctx, r, emit)
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&r.With, "with", "", "the build that takes over, instead of the `file` at the module's path")
	flags.StringVar(&r.Debug, "debug-file", "", "the debug `file` of the build that takes over")
	flags.StringVar(&r.OldDebug, "old-debug-file", "", "the debug `file` of the build that runs")
	flags.BoolVar(&r.Outdated, "outdated", false, "every module whose file was replaced on disk")
	flags.BoolVar(&r.Partial, "partial", false, "where a process refuses, do the others")
	flags.BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	return cmd
}

// replaceTarget reads the target of vos replace and holds it against the flags.
func (a *app) replaceTarget(r *api.ReplaceRequest, args []string) error {
	switch {
	case r.Outdated && r.With != "":
		return usagef("--with names the build of one module, --outdated means many; leave one of them out")
	case len(args) == 0 && !r.Outdated:
		return usagef("replace needs a target, PROGRAM:MODULE, or --outdated")
	}
	r.Target = api.Target{All: len(args) == 0}
	if len(args) > 0 {
		t, err := a.target(args[0])
		if err != nil {
			return err
		}
		r.Target = t
	}
	if r.Target.Module != "" {
		return nil
	}
	for _, f := range []struct{ flag, file string }{
		{"--with", r.With}, {"--debug-file", r.Debug}, {"--old-debug-file", r.OldDebug},
	} {
		if f.file != "" {
			return usagef("%s is a file of one module; name it: PROGRAM:MODULE", f.flag)
		}
	}
	if !r.Outdated {
		return usagef("%q names no module; write %s:MODULE, or --outdated for all whose file was replaced", args[0], args[0])
	}
	return nil
}
