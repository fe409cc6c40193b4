// Package cli is the command-line face of vOS: it reads a command, asks the
// executive to carry it out, and prints what comes back. It decides nothing
// about programs; whatever another face would need too is below it.
//
// A command's way through the package:
//
//   - run.go builds the command tree and runs it; one file a command (ps.go,
//     modules.go, outdated.go, handles.go, verify.go, refresh.go, replace.go, rollback.go,
//     version.go, manual.go) holds its flags, its help and what it prints;
//     takeover.go prints what replace and rollback share.
//   - Results come from [api.Executive] through an emit function, one at a
//     time. With --json each goes out at once as a line (json.go); otherwise
//     they are gathered into a table (table.go) fit to the terminal (terminal.go).
//   - Standard output carries data alone. Errors, refusals, progress and
//     summaries go to standard error through one writer that knows about the
//     progress line (messages.go, progress.go).
//   - exit.go is the one place that turns what happened into an exit code.
//
// Names of processes, modules, files and symbols are chosen by whoever wrote
// the program, so they are hostile: every one passes through quote.go before a
// terminal sees it, in tables, messages and JSON alike.
//
// Concurrency: a command runs on the caller's goroutine, and the executive
// calls emit from one goroutine at a time. Only an interrupt writes from
// another; messages is the sole holder of a lock.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// Main runs the command line of this process and returns its exit code.
//
// The first interrupt or SIGTERM cancels the command, which then undoes what it
// has begun; the second ends vOS at once, which is safe as well: a program that
// is being worked on goes on by itself.
func Main(executive func() (api.Executive, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	// Without a receiver the runtime ends the process when standard output is
	// closed early (vos refresh | head), perhaps with a thread borrowed. Received,
	// it is a write error that unwinds like any other.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)

	return Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, executive)
}

// Run carries out one command line, args without the name of the program, and
// returns the exit code. The executive is made only by commands that need one.
// Cancelling ctx interrupts the command: Run returns 130 after the executive
// has returned.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, executive func() (api.Executive, error)) int {
	a := &app{
		executive: executive,
		stdout:    newOutput(stdout),
		stderr:    newMessages(stderr),
	}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)

	unwatch := context.AfterFunc(ctx, func() {
		if a.started.Load() && !a.launched.Load() && !a.watches.Load() {
			a.stderr.notef("interrupted: waiting until what has begun is undone; a second interrupt leaves at once")
		}
	})

	command, err := root.ExecuteContextC(ctx)
	unwatch()
	a.stderr.endProgress()
	if err != nil && !a.started.Load() {
		// The library refused the command line before any command began.
		err = usageError{err}
	}
	if flushErr := a.stdout.Flush(); flushErr != nil && err == nil {
		err = fmt.Errorf("write output: %w", flushErr)
	}
	return a.finish(ctx, command, err)
}

// run carries out the body of a command with the executive, within --timeout.
func (a *app) run(cmd *cobra.Command, body func(context.Context, api.Executive) error) error {
	executive, err := a.executive()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	err = body(ctx, executive)
	a.timedOut = errors.Is(ctx.Err(), context.DeadlineExceeded)
	return err
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vos",
		Short: "Keep long-running programs young",
		Long: `vos verifies, refreshes and replaces the modules (the executable and its shared
libraries) of running, unmodified programs, in place: no restart, no lost
connection, no preparation of the program.

A target is PROGRAM or PROGRAM:MODULE. PROGRAM is a pid, a name, the path of an
executable, a systemd unit or a container id, and a name means every process it
matches. MODULE is a soname, a file name or a path.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos ps                       what runs, how old it is, what is corrupted
  vos verify nginx             compare nginx's running code with its files
  vos refresh nginx:libz.so.1  heal one library of every nginx process
  vos replace nginx:libz.so.1  after an upgrade: its build on disk takes over`,
		Version:       buildVersion().Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.stderr.quiet = a.quiet
			a.started.Store(true)
			if a.quiet && a.verbose {
				return usagef("--quiet and --verbose exclude each other")
			}
			if a.timeout < 0 {
				return usagef("--timeout %v is negative", a.timeout)
			}
			return nil
		},
	}
	root.SetVersionTemplate("vos {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.BoolVar(&a.json, "json", false, "print data as JSON, one object a line")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up, undo and fail after this `duration` (5s, 2m); 0 is never")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress, notes or summary; errors are still printed")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "more detail")

	root.AddCommand(a.ps(), a.modules(), a.outdated(), a.handles(), a.verify(), a.refresh(), a.replace(), a.rollback(), a.redirect(), a.attach(), a.detach(), a.launchProgram(), a.usage(), a.ctl(), a.check(), a.checkpoint(), a.restore(), a.restart(), a.image(), a.version(), a.manual())
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			// Made runnable so that a shell it does not know is an error, not help.
			c.RunE = func(cmd *cobra.Command, _ []string) error {
				return usagef("name a shell: bash, zsh, fish or powershell")
			}
		}
	}
	return root
}

// unknownCommand is the error for a word that is no command of parent.
func unknownCommand(parent *cobra.Command, word string) error {
	message := fmt.Sprintf("there is no command %q", word)
	if parent.SuggestionsMinimumDistance <= 0 {
		parent.SuggestionsMinimumDistance = 2
	}
	if near := parent.SuggestionsFor(word); len(near) > 0 {
		message += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{errors.New(message)}
}

// helpCommand is `vos help COMMAND`; unlike the library's it fails on a command
// that does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if len(args) == 0 {
				for _, c := range cmd.Root().Commands() {
					if c.IsAvailableCommand() {
						names = append(names, c.Name())
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about := cmd.Root()
			for _, word := range args {
				commands := about.Commands()
				i := slices.IndexFunc(commands, func(c *cobra.Command) bool { return c.Name() == word })
				if i < 0 {
					return unknownCommand(about, word)
				}
				about = commands[i]
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// targetOrAll reads the one target of a command that also takes --all.
func (a *app) targetOrAll(cmd *cobra.Command, args []string, all bool) (api.Target, error) {
	switch {
	case all && len(args) > 0:
		return api.Target{}, usagef("--all means every program; leave %q or --all out", args[0])
	case all:
		return api.Target{All: true}, nil
	case len(args) == 0:
		return api.Target{}, usagef("%s needs a target, PROGRAM or PROGRAM:MODULE, or --all", cmd.Name())
	}
	return a.target(args[0])
}

// target reads a target and remembers it for messages.
func (a *app) target(text string) (api.Target, error) {
	t, err := api.ParseTarget(text)
	if err != nil {
		return t, usageError{err}
	}
	a.subject = t
	return t, nil
}

// atMostOneTarget is a cobra argument rule with an error that says what to do.
func atMostOneTarget(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("%s takes one target, not %d; a name means every process it matches", cmd.Name(), len(args))
	}
	return nil
}

// noArguments is a cobra argument rule.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, and %q was given", cmd.Name(), args[0])
	}
	return nil
}
