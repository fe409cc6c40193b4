package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// check is `vos check`.
func (a *app) check() *cobra.Command {
	var r api.CheckRequest
	cmd := &cobra.Command{
		Use:   "check TARGET",
		Short: "Tell whether a program can be checkpointed, and if not why",
		Long: `Look at a running program and tell whether vos checkpoint could write its state
down, and vos restore build it again. Nothing is stopped and nothing changed.

MODEL is how much of its surroundings the state needs: minimal (memory, threads
and handles of its own), enhanced (files and connections, too), full (process
trees, terminals, namespaces). KEPT is the memory that an image would hold now.
Each obstacle has a line with its reason and a remedy; then the exit code is 7.

A check holds for the moment at which it was made; vos checkpoint makes it again.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitInterrupted),
		Example: `  vos check redis-server
  vos check 1234 --json | jq .refusals`,
		Args:              oneProgram,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.programTarget(cmd, args[0])
			if err != nil {
				return err
			}
			r.Target = t
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.checkPrograms(ctx, x, r) })
		},
	}
	cmd.Flags().BoolVar(&r.Tree, "tree", false, "with all processes that descend from it")
	cmd.Flags().IntSliceVar(&r.Inherit, "inherit", nil, "`FD,…`: descriptors that whoever restores would give")
	return cmd
}

func (a *app) checkPrograms(ctx context.Context, x api.Executive, r api.CheckRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", elastic: true},
		column{title: "CHECKPOINT"},
		column{title: "MODEL"},
		column{title: "THREADS", right: true, spare: 2},
		column{title: "DESCRIPTORS", right: true, spare: 3},
		column{title: "MAPPED", right: true, spare: 1},
		column{title: "KEPT", right: true})
	var n tally
	err := x.Check(ctx, r, func(c api.Check) error {
		possible, how := "possible", good
		if c.Checkpointable {
			n.good++
		} else {
			n.refused++
			possible, how = "refused", warn
		}
		for _, refusal := range c.Refusals {
			a.stderr.refusal(fmt.Sprintf("%s (%d)", quoted(c.Program), c.PID), refusal)
		}
		for _, note := range c.Notes {
			a.stderr.notef("%s (%d): %s", quoted(c.Program), c.PID, note)
		}
		if a.json {
			c.Refusals, c.Notes = list(c.Refusals), list(c.Notes)
			return a.printJSON(c)
		}
		t.add(
			text(strconv.Itoa(c.PID)),
			text(quoted(c.Program)),
			cell{possible, how},
			text(c.Model),
			text(strconv.Itoa(c.Threads)),
			text(strconv.Itoa(c.Descriptors)),
			text(byteSize(int64(c.MappedBytes))),
			text(byteSize(int64(c.KeptBytes))))
		return nil
	})
	t.print(a.stdout)
	return a.settle(n, err)
}
