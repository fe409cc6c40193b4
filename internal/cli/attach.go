package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// attach is `vos attach`.
func (a *app) attach() *cobra.Command {
	var menu bool
	var r api.MenuRequest
	cmd := &cobra.Command{
		Use:   "attach --menu TARGET",
		Short: "Put an item of vOS into the menu bar of a running program",
		Long: `Put an item "vOS" into the menu bars of a running GTK 3 program. Its entries,
Status, Verify and Refresh now, start vos ctl, and show its answer in a dialog
of the program. The program's own main loop adds the item, at its own time; it
works on when no vos runs. Two pages of memory are left in the program; with
--remove the item is taken out again, and these with it.

A window that is opened later has the item when this is done once more. Programs
of other toolkits, and windows without a menu bar, can't be served: that is
refused, and nothing was touched.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos attach --menu galculator
  vos attach --menu --remove galculator`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !menu:
				return usagef("attach needs --menu")
			case len(args) == 0:
				return usagef("attach needs a target, PROGRAM")
			}
			t, err := a.target(args[0])
			if err != nil {
				return err
			}
			if t.Module != "" {
				return usagef("a menu is a program's, not a module's: leave %q out", ":"+t.Module)
			}
			r.Target, r.Steps = t, a.verbose
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.attachMenu(ctx, x, r) })
		},
	}
	cmd.Flags().BoolVar(&menu, "menu", false, "an item in the menu bars of a GTK 3 program")
	cmd.Flags().BoolVar(&r.Remove, "remove", false, "take the item out again")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	return cmd
}
