package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// attach is `vos attach`.
func (a *app) attach() *cobra.Command {
	var r api.AttachRequest
	var menu api.MenuRequest
	withMenu := false
	cmd := &cobra.Command{
		Use:   "attach TARGET",
		Short: "Count the calls between the modules of a running program",
		Long: `Count the calls that the modules of a running program make of each other, and
with --memory the bytes that each of them allocates and frees: the import slots
of all modules are led to stubs that count and jump on. Nothing runs beside the
program; it counts on when no vos runs. vos usage shows what was counted, vos
detach takes all of it out again.

Once more it adds modules that were loaded since. What is counted goes on being
counted: --memory, where only calls were counted before, begins all counts
anew.

Calls that don't pass through an import slot can't be seen: those within a
module, by an address that was taken before, and of functions found by dlsym.
An imported function whose address is used as a pointer is left out unless
--pointers is given; its stub is then one for all modules. Where it is, and
with --memory for functions that allocate, stubs stay in the program when vos
detaches, as it may have kept their addresses. --verbose names what is left
out.

FUNCTIONS is how many are counted, as often as modules import them, STOPPED how
long all threads stood still. All processes of a program are attached; those
that they fork are with them, and count for themselves.

With --menu something else is done: an item "vOS" is put into the menu bars of
a running GTK 3 program. Its entries, Status, Verify, Refresh now and
Checkpoint, start vos ctl, and show its answer in a dialog of the program. The
program's own main loop adds the item, at its own time; it works on when no vos
runs. Two pages of memory are left in the program; with --remove the item is
taken out again, and these with it. Windows that are opened later have the
item, too. Programs of other toolkits, and windows without a menu bar, can't be
served: that is refused, and nothing was touched.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos attach nginx
  vos attach --memory redis-server
  vos attach nginx --dry-run
  vos attach --menu galculator
  vos attach --menu --remove galculator`,
		Args:              oneProgram,
		ValidArgsFunction: a.completeProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.programTarget(cmd, args[0])
			if err != nil {
				return err
			}
			r.Target, r.Steps = t, a.verbose
			switch {
			case menu.Remove && !withMenu:
				return usagef("--remove is of --menu; vos detach takes out what counts")
			case withMenu && (r.Memory || r.Pointers):
				return usagef("--menu puts in a menu and counts nothing; leave --memory and --pointers out")
			case withMenu:
				menu.Target, menu.DryRun, menu.Steps = t, r.DryRun, a.verbose
				return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.attachMenu(ctx, x, menu) })
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.intercept(attaching, func(emit func(api.Interception) error) error { return x.Attach(ctx, r, emit) })
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&r.Memory, "memory", false, "count the bytes that modules allocate and free, too")
	flags.BoolVar(&r.Pointers, "pointers", false, "count calls by pointers that the loader stored, too")
	flags.BoolVar(&withMenu, "menu", false, "an item in the menu bars of a GTK 3 program")
	flags.BoolVar(&menu.Remove, "remove", false, "take the item of --menu out again")
	flags.BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	return cmd
}

// detach is `vos detach`.
func (a *app) detach() *cobra.Command {
	var r api.DetachRequest
	cmd := &cobra.Command{
		Use:   "detach TARGET",
		Short: "Take out of a running program what counts its calls",
		Long: `Take out of a running program what vos attach or vos usage has put in: its
import slots lead to their functions again, and the memory is given back as
soon as no thread is within a stub. What has to stay is listed, with the
reason: stubs whose addresses the program may have copied (vos attach
--pointers), and such within which a thread still waits; vos detach later takes
the latter out.

The item of vos attach --menu goes, too. Builds that vos replace has mapped
stay; vos rollback leads back from them.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos detach nginx
  vos detach nginx --dry-run`,
		Args:              oneProgram,
		ValidArgsFunction: a.completeProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.programTarget(cmd, args[0])
			if err != nil {
				return err
			}
			r.Target, r.Steps = t, a.verbose
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.intercept(detaching, func(emit func(api.Interception) error) error { return x.Detach(ctx, r, emit) })
			})
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	return cmd
}

// oneProgram is a cobra argument rule.
func oneProgram(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a target, PROGRAM", cmd.Name())
	}
	return atMostOneTarget(cmd, args)
}

// programTarget reads a target that names no module.
func (a *app) programTarget(cmd *cobra.Command, text string) (api.Target, error) {
	t, err := a.target(text)
	if err == nil && t.Module != "" {
		return t, usagef("%s is about a whole program: leave %q out", cmd.Name(), ":"+t.Module)
	}
	return t, err
}
