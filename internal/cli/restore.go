package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// restore is `vos restore`.
func (a *app) restore() *cobra.Command {
	var r api.RestoreRequest
	var paths, inherited []string
	cmd := &cobra.Command{
		Use:   "restore -D DIR",
		Short: "Build a program again from the image of a checkpoint",
		Long: `Build the program of the image in directory DIR again, with the ids, memory,
threads and descriptors that it had, and let it go on. It does not depend on vos,
which ends, and is in a session of its own.

Files that it has open or mapped must be as they were, by size and time of change;
--map OLD=NEW opens another path instead, --force-files takes them as they are.
Its ids must be free. With --pid-any a program whose ids are taken gets them in a pid
namespace of its own, with a mount namespace for its /proc; outside it has others, which
are printed. A tiny process (vos-init) is the first there, and ends with the last.

A program that was in namespaces of its own (a service with PrivateTmp, a container) goes
back into these: its checkpoint holds them under /run/vos/namespaces when it ends it. With
--here it gets those that vos is in.

Connections of TCP go on where the checkpoint has ended the program, within a day and
on the same machine, and once; --close-connections tells the program that its
connections have ended (ECONNABORTED).

What can't be restored exactly is refused by name, and nothing is started. If
anything fails, or vos is killed, nothing is left of the half-built program.

` + exitHelp(exitOK, exitFailed, exitUsage, exitNotSupported,
			exitNotPermitted, exitRefused, exitPending, exitInterrupted),
		Example: `  vos restore -D /var/lib/vos/redis
  vos restore -D job --inherit 1,2 >job.out 2>job.err
  vos restore -D now --pid-any
  vos restore -D now --map /srv/data=/mnt/data`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("restore takes no target: the image in -D DIR says what to build")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if r.Directory == "" {
				return usagef("restore needs -D DIR, the directory of an image")
			}
			if r.Directory, err = filepath.Abs(r.Directory); err != nil {
				return fmt.Errorf("find directory: %w", err)
			}
			if r.Map, err = pathPairs(paths); err != nil {
				return err
			}
			if r.Inherit, err = descriptorPairs(inherited); err != nil {
				return err
			}
			r.Progress = a.snapshotProgress("read")
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.snapshot(false, func(emit func(api.Snapshot) error) error { return x.Restore(ctx, r, emit) })
			})
		},
	}
	cmd.Flags().StringVarP(&r.Directory, "dir", "D", "", "the `DIR` of the image")
	cmd.Flags().BoolVar(&r.AnyPID, "pid-any", false, "where its ids are taken, let it have them in a pid namespace of its own")
	cmd.Flags().BoolVar(&r.Here, "here", false, "in the namespaces of vos, where the program had others")
	cmd.Flags().BoolVar(&r.ForceFiles, "force-files", false, "files may have changed since: take them as they are")
	cmd.Flags().BoolVar(&r.CloseConnections, "close-connections", false, "tell the program that its connections of TCP have ended")
	cmd.Flags().StringArrayVar(&paths, "map", nil, "`OLD=NEW`: open NEW where the program had OLD open; may be given several times")
	cmd.Flags().StringSliceVar(&inherited, "inherit", nil, "`FD[=OWN],…`: descriptors that the program gets of those of vos (the same number, or OWN)")
	cmd.Flags().StringArrayVar(&r.Identities, "identity", nil, "`FILE` with an age identity to decrypt with; may be given several times")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "tell what would be built, and build nothing")
	return cmd
}

// pathPairs reads OLD=NEW.
func pathPairs(texts []string) (map[string]string, error) {
	pairs := make(map[string]string, len(texts))
	for _, pair := range texts {
		from, to, ok := strings.Cut(pair, "=")
		if !ok || !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			return nil, usagef("--map needs OLD=NEW with absolute paths, not %q", pair)
		}
		pairs[from] = to
	}
	return pairs, nil
}

// descriptorPairs reads FD or FD=OWN.
func descriptorPairs(texts []string) (map[int]int, error) {
	pairs := make(map[int]int, len(texts))
	for _, pair := range texts {
		number, own, both := strings.Cut(pair, "=")
		fd, err := strconv.Atoi(number)
		from := fd
		if err == nil && both {
			from, err = strconv.Atoi(own)
		}
		if err != nil || fd < 0 || from < 0 {
			return nil, usagef("--inherit needs FD or FD=OWN, numbers of descriptors, not %q", pair)
		}
		pairs[fd] = from
	}
	return pairs, nil
}
