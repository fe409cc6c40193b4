package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// image is `vos image`.
func (a *app) image() *cobra.Command {
	var r api.ImageRequest
	cmd := &cobra.Command{
		Use:   "image DIR",
		Short: "Show what the image of a checkpoint holds",
		Long: `Show the image that vos checkpoint has written to directory DIR: its processes,
their threads, how much memory they had mapped and how much of it is kept, and,
with --verbose, every mapping and descriptor. All of the image is checked first.

With --criu the same is written to a directory in CRIU's format, that of its parents
included, decompressed and decrypted: crit and go-criu read it. What the format leaves
out is named; what it has no place for is refused, and nothing is written.

` + exitHelp(exitOK, exitFailed, exitUsage, exitNotPermitted, exitRefused, exitInterrupted),
		Example: `  vos image /var/lib/vos/redis
  vos image now --verbose
  vos image now --json | jq '.processes[].kept_bytes'
  vos image now --criu /tmp/now && crit x /tmp/now mems`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("image needs one directory, that of an image")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Directory, err = filepath.Abs(args[0]); err != nil {
				return fmt.Errorf("find directory: %w", err)
			}
			if r.CRIU != "" {
				if r.CRIU, err = filepath.Abs(r.CRIU); err != nil {
					return fmt.Errorf("find directory: %w", err)
				}
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error { return a.showImage(ctx, x, r) })
		},
	}
	cmd.Flags().StringArrayVar(&r.Identities, "identity", nil, "`FILE` with an age identity to decrypt with; may be given several times")
	cmd.Flags().StringVar(&r.CRIU, "criu", "", "also write it to the new directory `OUT`, in CRIU's format")
	return cmd
}

func (a *app) showImage(ctx context.Context, x api.Executive, r api.ImageRequest) error {
	i, err := x.Image(ctx, r)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(i)
	}
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PARENT", right: true, spare: 3},
		column{title: "PROGRAM", elastic: true},
		column{title: "THREADS", right: true, spare: 1},
		column{title: "DESCRIPTORS", right: true, spare: 2},
		column{title: "MAPPED", right: true},
		column{title: "KEPT", right: true})
	for _, p := range i.Processes {
		t.add(
			text(strconv.Itoa(p.PID)),
			text(strconv.Itoa(p.Parent)),
			text(quoted(p.Program)),
			text(strconv.Itoa(p.Threads)),
			text(strconv.Itoa(len(p.Descriptors))),
			text(byteSize(int64(p.MappedBytes))),
			text(byteSize(int64(p.KeptBytes))))
		if a.verbose {
			addImageDetails(t, p)
		}
	}
	for _, e := range i.Ended {
		t.add(text(strconv.Itoa(e.PID)), text(strconv.Itoa(e.Parent)), text(quoted(e.Program)), text("ended"), text(""), text(""), text(""))
		if a.verbose {
			t.note("ended: " + escaped(e.Status))
		}
	}
	t.print(a.stdout)
	if err := a.stdout.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	a.stderr.notef("%s", imageSummary(i))
	if i.CRIU != "" {
		a.stderr.notef("written to %s in CRIU's format", quoted(i.CRIU))
		for _, text := range i.Residual {
			a.stderr.notef("not in it: %s", escaped(text))
		}
	}
	return nil
}

func addImageDetails(t *table, p api.ImageProcess) {
	t.note("command: " + escaped(strings.Join(p.Command, " ")))
	for _, m := range p.Mappings {
		t.note(strings.TrimRight(fmt.Sprintf("%s-%s %s %-9s %9s kept  %s",
			m.Start, m.End, m.Protection, escaped(m.Kind), byteSize(int64(m.KeptBytes)), quoted(m.Name)), " "))
	}
	for _, d := range p.Descriptors {
		t.note(strings.TrimRight(fmt.Sprintf("descriptor %d: %s %s", d.FD, escaped(d.Kind), quoted(d.Path)), " "))
	}
}

func imageSummary(i api.Image) string {
	s := fmt.Sprintf("image %s, %s model, %s on disk, taken %s on %s (Linux %s, %s)", escaped(i.ID), escaped(i.Model),
		byteSize(i.Bytes), i.Taken.Local().Format(time.DateTime), quoted(i.Hostname), escaped(i.Kernel), escaped(i.CPU))
	if len(i.Namespaces) > 0 {
		s += "; in namespaces of its own: " + escaped(strings.Join(i.Namespaces, ", "))
	}
	if i.Parent != "" {
		s += "; unchanged memory is in its parent " + escaped(i.Parent)
	}
	return s
}
