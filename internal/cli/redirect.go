package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// redirect is `vos redirect`.
func (a *app) redirect() *cobra.Command {
	var r api.RedirectRequest
	cmd := &cobra.Command{
		Use:   "redirect TARGET FD --to RESOURCE | --back | --forget",
		Short: "Bind a running program's descriptor to another file or connection",
		Long: `Bind descriptor FD of a running program, and every duplicate of it, to another
resource. The program goes on with the same number: flags, offset,
close-on-exec and registrations with epolls are carried over, and threads that
wait in a read, receive, accept, poll or epoll_wait wait on, at the new one.
What is under way on a connection stays there; --at-rest waits until nothing
is. RESOURCE is

  file:PATH       a file, at the offset of the one before
  append:PATH     a file, written at its end: a log
  tcp:HOST:PORT   a new connection, from the program's network
  unix:PATH       a new connection to a unix socket, unix:@NAME an abstract one
  fd:PID:N        what process PID has open as N

Paths are looked up as the program sees them, and used by the rights of its
user; a file that is not there is made. All is opened before anything is
touched, so that an unreachable server is a refusal. What was bound before is
kept open in the program: --back binds it again, --forget closes it.

All processes that TARGET means are done, or none; with --all those that they
have started, too. With --dry-run the plan is printed, and the exit code is 10
if there is one; a dry run neither connects nor makes a file.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos redirect nginx 5 --to append:/mnt/other/access.log
  vos redirect nginx 5 --back
  vos redirect worker 7 --to tcp:db2:6379 --all --dry-run`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("redirect needs a target and the number of a descriptor: redirect TARGET FD")
			}
			return nil
		},
		ValidArgsFunction: a.completeProgram,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Target, err = a.target(args[0]); err != nil {
				return err
			}
			if r.Target.Module != "" {
				return usagef("redirect is about a program: write %s", r.Target.Program)
			}
			if r.FD, err = strconv.Atoi(args[1]); err != nil || r.FD < 0 {
				return usagef("%q is not the number of a descriptor", args[1])
			}
			ways := 0
			for _, chosen := range []bool{r.To != "", r.Back, r.Forget} {
				if chosen {
					ways++
				}
			}
			if ways != 1 {
				return usagef("redirect needs one of --to, --back and --forget")
			}
			r.Steps = a.verbose || r.DryRun
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.redirectDescriptors(ctx, x, r)
			})
		},
	}
	cmd.Flags().StringVar(&r.To, "to", "", "the `RESOURCE` to bind it to: file:PATH, append:PATH, tcp:HOST:PORT, unix:PATH, fd:PID:N")
	cmd.Flags().BoolVar(&r.Back, "back", false, "bind it to what it was bound to before")
	cmd.Flags().BoolVar(&r.Forget, "forget", false, "close what is kept of before: there is no way back then")
	cmd.Flags().BoolVar(&r.All, "all", false, "in the processes that the target has started, too")
	cmd.Flags().BoolVar(&r.AsCaller, "as-caller", false, "use files by the rights of vos, not of the program's user")
	cmd.Flags().BoolVar(&r.AtRest, "at-rest", false, "of a connection: when nothing is unread, unsent or waited for")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	return cmd
}

func (a *app) redirectDescriptors(ctx context.Context, x api.Executive, r api.RedirectRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 2},
		column{title: "DESCRIPTORS", elastic: true},
		column{title: "OUTCOME"},
		column{title: "FROM", elastic: true},
		column{title: "TO", elastic: true},
		column{title: "EPOLLS", right: true, spare: 3},
		column{title: "KEPT", right: true, spare: 1},
		column{title: "STOPPED", right: true},
		column{title: "TOTAL", right: true, spare: 4})
	n := redirectCount{request: r}
	err := x.Redirect(ctx, r, func(o api.Redirection) error {
		n.add(o)
		where := fmt.Sprintf("descriptor %d in %d", o.FD, o.PID)
		for _, refusal := range o.Refusals {
			a.stderr.refusal(where, refusal)
		}
		if o.Outcome == api.Failed {
			a.stderr.errorf("%s: %s", where, o.Error)
		}
		for _, known := range o.Residual {
			a.stderr.notef("%s: %s", where, known)
		}
		if a.json {
			o.Residual, o.Refusals, o.Descriptors = list(o.Residual), list(o.Refusals), list(o.Descriptors)
			return a.printJSON(o)
		}
		addRedirection(t, o)
		return nil
	})
	t.print(a.stdout)
	err = a.settle(n.tally, err)
	if n.processes > 0 {
		a.stderr.notef("%s", n.summary())
	}
	return err
}

func addRedirection(t *table, o api.Redirection) {
	styles := map[api.Outcome]style{
		api.Redirected: good, api.Restored: good, api.Forgotten: good, api.Planned: bold, api.Refused: warn, api.Failed: bad,
	}
	var numbers []string
	for _, fd := range o.Descriptors {
		numbers = append(numbers, strconv.Itoa(fd))
	}
	kept := "-"
	if o.Kept >= 0 {
		kept = strconv.Itoa(o.Kept)
	}
	t.add(
		text(strconv.Itoa(o.PID)),
		text(quoted(o.Program)),
		text(strings.Join(numbers, ",")),
		cell{quoted(string(o.Outcome)), styles[o.Outcome]},
		text(quoted(o.From)),
		text(quoted(o.To)),
		text(strconv.Itoa(o.Registrations)),
		text(kept),
		text(pauseOrNone(o.PauseUS)),
		text(pauseOrNone(o.TotalUS)),
	)
	for _, step := range o.Steps {
		t.note(escaped(step))
	}
}

// A redirectCount is what the summary of vos redirect says.
type redirectCount struct {
	tally
	request     api.RedirectRequest
	processes   int
	descriptors int
	worst       int64 // the longest pause, µs
}

func (n *redirectCount) add(o api.Redirection) {
	n.processes++
	n.worst = max(n.worst, o.PauseUS)
	switch o.Outcome {
	case api.Planned:
		n.pending = true
		n.good++
		n.descriptors += len(o.Descriptors)
	case api.Redirected, api.Restored, api.Forgotten:
		n.good++
		n.changed++
		n.descriptors += len(o.Descriptors)
	case api.Refused:
		n.refused++
	default:
		n.failed++
	}
}

func (n *redirectCount) summary() string {
	verb, past := "redirect", "redirected"
	switch {
	case n.request.Back:
		verb, past = "restore", "restored"
	case n.request.Forget:
		verb, past = "forget", "forgot"
	}
	what := count(n.descriptors, "descriptor")
	if n.request.Forget {
		what = fmt.Sprintf("what was kept of descriptor %d", n.request.FD)
	}
	var s string
	switch {
	case n.pending:
		s = fmt.Sprintf("would %s %s in %s; nothing was touched", verb, what, count(n.good, "process"))
	case n.changed > 0:
		s = fmt.Sprintf("%s %s in %s", past, what, count(n.changed, "process"))
		if n.worst > 0 {
			s += fmt.Sprintf("; all threads stopped for %s (worst)", pauseOrNone(n.worst))
		}
	default:
		s = "nothing " + past
	}
	return s + n.troubles()
}
