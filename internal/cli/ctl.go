package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// ctl is `vos ctl`.
func (a *app) ctl() *cobra.Command {
	var r api.ControlRequest
	cmd := &cobra.Command{
		Use:   "ctl PROGRAM status | verify | refresh | checkpoint",
		Short: "Ask vOS about a program from within its own session",
		Long: `Ask vOS, as the user of a program and from its terminal or desktop, about that
program, and get an answer in some lines:

  status      how long it has run, and what is corrupted or replaced on disk
  verify      compare its running code with its files
  refresh     heal it
  checkpoint  write its state to ~/.local/state/vos/images; it goes on

The entries of the menu of vos attach --menu start this with --show: then the
program shows the answer itself, in a dialog; where it can't, notify-send,
zenity or xmessage do, if one is installed.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos ctl galculator status
  vos ctl 1234 refresh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("ctl needs a program and one of %s", verbList())
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.completeTarget(cmd, args, word)
			case 1:
				return strings.Split(verbList(), ", "), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(args[0])
			if err != nil {
				return err
			}
			r.Target, r.Verb = t, api.Verb(args[1])
			switch {
			case t.Module != "":
				return usagef("ctl is about a whole program: leave %q out", ":"+t.Module)
			case !strings.Contains(", "+verbList()+", ", ", "+args[1]+", "):
				return usagef("%q is none of %s", args[1], verbList())
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.control(ctx, x, r) })
		},
	}
	cmd.Flags().BoolVar(&r.Show, "show", false, "let the program show the answer, by its menu")
	return cmd
}

func verbList() string {
	var all []string
	for _, v := range api.Verbs {
		all = append(all, string(v))
	}
	return strings.Join(all, ", ")
}

func (a *app) control(ctx context.Context, x api.Executive, r api.ControlRequest) error {
	var n tally
	err := x.Control(ctx, r, func(c api.Control) error {
		where := place(c.Program, c.PID)
		switch c.Outcome {
		case api.Refused:
			n.refused++
		case api.Failed:
			if c.Error != "" {
				n.failed++
				a.stderr.errorf("%s: %s", where, c.Error)
			}
		case api.Corrupt:
			n.good, n.pending = n.good+1, true
		case api.Refreshed, api.Checkpointed:
			n.good++
			n.changed++
		default:
			n.good++
		}
		for _, refusal := range c.Refusals {
			a.stderr.refusal(where, refusal)
		}
		if c.Unshown != "" {
			a.stderr.notef("%s: not shown by the program: %s", where, c.Unshown)
			notify(ctx, strings.Join(c.Lines, "\n"))
		}
		switch {
		case a.json:
			c.Lines, c.Refusals = list(c.Lines), list(c.Refusals)
			return a.printJSON(c)
		case c.Shown:
			return nil
		}
		for _, line := range c.Lines {
			if _, err := fmt.Fprintln(a.stdout, escaped(line)); err != nil {
				return err
			}
		}
		return nil
	})
	return a.settle(n, err)
}

// notify shows a text to the user of the desktop by what is installed for that.
// That nothing is, has nowhere to be said.
func notify(ctx context.Context, text string) {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return
	}
	if exec.CommandContext(ctx, "notify-send", "--", "vOS", text).Run() == nil {
		return
	}
	// These stay until they are closed.
	for _, argv := range [][]string{{"zenity", "--info", "--no-markup", "--title=vOS", "--text=" + text}, {"xmessage", "-title", "vOS", text}} {
		if exec.Command(argv[0], argv[1:]...).Start() == nil {
			return
		}
	}
}
