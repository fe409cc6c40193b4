package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// rollback is `vos rollback`.
func (a *app) rollback() *cobra.Command {
	var r api.RollbackRequest
	cmd := &cobra.Command{
		Use:   "rollback TARGET",
		Short: "Let the build before take over again, after a replacement",
		Long: `Let the build of a module that ran before vos replace take over again, with the
data, files and connections that the program holds now: calls are led back to
it. Without a module, every replaced module of the program is led back by one
generation; vos modules shows the generations.

What can't be done safely is refused with the reason and a remedy, and then
nothing was touched. All processes of a program are done, or none; with
--partial those are done that can be. With --dry-run the very plan is printed
that would be carried out, and the exit code is 10 if there is one.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos rollback nginx:libz.so.1
  vos rollback nginx --dry-run`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("rollback needs a target, PROGRAM or PROGRAM:MODULE")
			}
			return atMostOneTarget(cmd, args)
		},
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(args[0])
			if err != nil {
				return err
			}
			r.Target, r.Steps = t, a.verbose || r.DryRun
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.takeOver(rollingBack, t, func(tell func(api.Progress), emit func(api.Operation) error) error {
					r.Progress = tell
					return x.Rollback(ctx, r, emit)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	cmd.Flags().BoolVar(&r.Partial, "partial", false, "where a process refuses, do the others")
	return cmd
}
