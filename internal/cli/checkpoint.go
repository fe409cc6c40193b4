package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// checkpoint is `vos checkpoint`.
func (a *app) checkpoint() *cobra.Command {
	var r api.CheckpointRequest
	cmd := &cobra.Command{
		Use:   "checkpoint TARGET -D DIR",
		Short: "Write a running program's state down, for vos restore",
		Long: `Write the state of a running program to directory DIR, which is made: memory,
threads, signals, timers, and what its descriptors lead to. The program ends once
the image is whole and on its disk; with --leave-running it goes on.

What can't be kept exactly is refused by name before anything is touched; vos check
tells it beforehand. If anything fails, or vos itself is killed, the program goes on
and no half image is left: DIR appears when it is complete.

With --tree all that descends from the process is kept, too: the workers of a server, the
processes of a database. Memory, files and connections that they share are shared again.

With --every a series of images is written into DIR, each named by its time, building on
the one before (every --keep-th on none), until vos is interrupted or the program ends.
vos restore -D DIR/NAME goes back to any of them.

An image holds all that the program's memory holds, secrets too: its files are for
their owner alone (0600), and --recipient encrypts them to keys of age(1).

` + exitHelp(exitOK, exitFailed, exitUsage, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos checkpoint redis-server -D /var/lib/vos/redis
  vos checkpoint nginx --tree -D /var/lib/vos/nginx
  vos checkpoint 1234 -D now --leave-running --compress zstd
  vos checkpoint 1234 -D later --leave-running --parent now
  vos checkpoint 1234 -D /var/lib/vos/job --every 5m --keep 3`,
		Args:              oneProgram,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.programTarget(cmd, args[0])
			if err != nil {
				return err
			}
			r.Target = t
			switch {
			case r.Directory == "":
				return usagef("checkpoint needs -D DIR, the directory to make")
			case r.Every < 0 || r.Every > 0 && (r.Keep < 1 || r.Parent != "" || r.DryRun):
				return usagef("--every needs a time and --keep 1 or more, and goes without --parent and --dry-run")
			case r.Every > 0 && len(r.Recipients) > 0 && len(r.Identities) == 0:
				return usagef("--every with --recipient needs --identity: an image builds on the one before, which is to be read")
			case r.Compression != "none" && r.Compression != "zstd":
				return usagef("--compress is none or zstd, not %q", r.Compression)
			}
			if r.Directory, err = filepath.Abs(r.Directory); err != nil {
				return fmt.Errorf("find directory: %w", err)
			}
			if r.Parent != "" {
				if r.Parent, err = filepath.Abs(r.Parent); err != nil {
					return fmt.Errorf("find directory: %w", err)
				}
			}
			r.Progress = a.snapshotProgress("written")
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				if r.Every > 0 {
					a.watches.Store(true)
				}
				return a.snapshot(r.Every > 0, func(emit func(api.Snapshot) error) error { return x.Checkpoint(ctx, r, emit) })
			})
		},
	}
	cmd.Flags().StringVarP(&r.Directory, "dir", "D", "", "the `DIR` to make and to write to")
	cmd.Flags().BoolVar(&r.Tree, "tree", false, "with all processes that descend from it")
	cmd.Flags().BoolVar(&r.LeaveRunning, "leave-running", false, "the program goes on")
	cmd.Flags().IntSliceVar(&r.Inherit, "inherit", nil, "`FD,…`: descriptors that vos restore will give: a terminal, pipes of whoever started it")
	cmd.Flags().StringVar(&r.Compression, "compress", "none", "of memory: `none` or zstd")
	cmd.Flags().StringVar(&r.Parent, "parent", "", "`DIR` of an image before: what did not change since is not written again")
	cmd.Flags().StringArrayVar(&r.Recipients, "recipient", nil, "an age `KEY` to encrypt to; may be given several times")
	cmd.Flags().StringArrayVar(&r.Identities, "identity", nil, "`FILE` with an age identity, to read an encrypted parent")
	cmd.Flags().DurationVar(&r.Every, "every", 0, "a checkpoint each `TIME` (5m), into DIR/TIME-OF-DAY; implies --leave-running")
	cmd.Flags().IntVar(&r.Keep, "keep", 3, "with --every: how many to keep, and those that they build on")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "tell what would be written, and write nothing")
	return cmd
}

// snapshotProgress tells how much of the memory is done.
func (a *app) snapshotProgress(past string) func(api.SnapshotProgress) {
	return func(p api.SnapshotProgress) {
		a.stderr.report(func() string {
			return fmt.Sprintf("%s of %s %s …", byteSize(int64(p.Done)), byteSize(int64(p.Total)), past)
		})
	}
}

// snapshot carries out a checkpoint or restore and prints what comes back.
// Of a series each is printed when it is made.
func (a *app) snapshot(series bool, run func(emit func(api.Snapshot) error) error) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", elastic: true},
		column{title: "OUTCOME"},
		column{title: "MODEL", spare: 3},
		column{title: "IMAGE", elastic: true},
		column{title: "BYTES", right: true, spare: 2},
		column{title: "STOPPED", right: true, spare: 1},
		column{title: "TOTAL", right: true})
	var n tally
	a.startProgress()
	err := run(func(s api.Snapshot) error {
		where := fmt.Sprintf("%s (%d)", quoted(s.Program), s.PID)
		a.count(&n, where, s.Outcome, s.Refusals, s.Error)
		for _, known := range s.Residual {
			a.stderr.notef("%s: %s", where, known)
		}
		if a.json {
			s.Residual, s.Refusals = list(s.Residual), list(s.Refusals)
			return a.printJSON(s)
		}
		addSnapshot(t, s)
		if series {
			t.print(a.stdout)
			t.rows = nil
			return a.stdout.Flush()
		}
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	return a.settle(n, err)
}

// count counts how the work on one process ended, and says why where it did not.
func (a *app) count(n *tally, where string, o api.Outcome, refusals []api.Refusal, failed string) {
	switch o {
	case api.Planned:
		n.good++
		n.pending = true
	case api.Refused:
		n.refused++
	case api.Failed:
		n.failed++
		a.stderr.errorf("%s: %s", where, failed)
	default:
		n.good++
		n.changed++
	}
	for _, refusal := range refusals {
		a.stderr.refusal(where, refusal)
	}
}

func addSnapshot(t *table, s api.Snapshot) {
	styles := map[api.Outcome]style{
		api.Checkpointed: good, api.Restored: good, api.Restarted: good, api.Planned: bold, api.Refused: warn, api.Failed: bad,
	}
	size := "-"
	if s.Bytes > 0 {
		size = byteSize(s.Bytes)
	}
	t.add(
		text(strconv.Itoa(s.PID)),
		text(quoted(s.Program)),
		cell{quoted(string(s.Outcome)), styles[s.Outcome]},
		text(s.Model),
		text(quoted(s.Image)),
		text(size),
		text(pauseOrNone(s.FreezeUS)),
		text(pauseOrNone(s.TotalUS)))
	for _, step := range s.Steps {
		t.note(escaped(step))
	}
}
