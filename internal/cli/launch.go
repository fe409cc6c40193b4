package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/virtualizing-os/vos/internal/api"
)

// An ended error is the end of the program that vos run has started: its exit code is
// that of vos, and nothing is to be said.
type ended struct{ code int }

func (e ended) Error() string { return fmt.Sprintf("the program ended with exit code %d", e.code) }

// launchProgram is `vos run`.
func (a *app) launchProgram() *cobra.Command {
	var r api.LaunchRequest
	cmd := &cobra.Command{
		Use:   "run [flags] COMMAND [ARGUMENT...]",
		Short: "Start a program whose calls are counted from its first instruction",
		Long: `Start a program and count its calls from the first instruction on: it is held when
all its libraries are loaded and bound, and before a constructor of them or any
code of its own has run, so that calls by addresses that it takes early are seen
with --pointers, too. vos attach says what is counted, vos usage shows it.

The program is a child of vos, which waits for it, hands it signals, and exits
with its exit code, or 128 and the number of the signal that killed it. 127 and
126 say that COMMAND was not found, or can't be started. If vos itself is killed
the program goes on.

A program whose calls can't be counted, as it is linked statically, is refused:
it does not begin. Programs that it starts are not counted; vos attach them.

` + exitHelp(exitUsage, exitNotSupported, exitRefused),
		Example: `  vos run redis-server --port 7000
  vos run --memory python3 server.py`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("run needs a COMMAND")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.runProgram(ctx, x, r, args) })
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.SetInterspersed(false)
	flags.BoolVar(&r.Memory, "memory", false, "count the bytes that modules allocate and free, too")
	flags.BoolVar(&r.Pointers, "pointers", false, "count calls by pointers that the loader stored, too")
	return cmd
}

// What a shell exits with for a command that it can't start.
const (
	exitCannotStart = 126
	exitNotFound    = 127
)

func (a *app) runProgram(ctx context.Context, x api.Executive, r api.LaunchRequest, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		code := exitNotFound
		if errors.Is(err, os.ErrPermission) {
			code = exitCannotStart
		}
		return settled{code, fmt.Errorf("run %s: %w", args[0], errors.Unwrap(err))}
	}
	r.Path, r.Args = path, args
	launcher, ok := x.(api.Launcher)
	if !ok {
		return fmt.Errorf("start a program from afar: %w", api.ErrNotSupported)
	}
	// From here on signals are the program's.
	a.launched.Store(true)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	defer signal.Stop(signals)

	code, err := launcher.Launch(ctx, r, func(i api.Interception) error {
		if a.verbose {
			a.stderr.notef("%s (%d): %d functions of %d modules are counted", i.Program, i.PID, i.Functions, i.Modules)
		}
		for _, note := range i.Residual {
			a.stderr.notef("%s", note)
		}
		go forward(signals, i.PID)
		return nil
	})
	if err != nil {
		return err
	}
	return ended{code}
}

// forward hands signals to the program. Those that a terminal sends to all of its
// foreground it has got already.
func forward(signals <-chan os.Signal, pid int) {
	terminal := term.IsTerminal(int(os.Stdin.Fd()))
	for s := range signals {
		number, ok := s.(syscall.Signal)
		switch {
		case !ok:
		case number == syscall.SIGCHLD, number == syscall.SIGURG, number == syscall.SIGPIPE, number == syscall.SIGCONT, number == syscall.SIGWINCH:
		case (number == syscall.SIGINT || number == syscall.SIGQUIT || number == syscall.SIGTSTP) && terminal:
		default:
			// The program may have ended: then nobody wants it.
			_ = syscall.Kill(pid, number)
		}
	}
}
