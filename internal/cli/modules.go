package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// modules is `vos modules`.
func (a *app) modules() *cobra.Command {
	return &cobra.Command{
		Use:   "modules TARGET",
		Short: "List the modules of a program, and whether each can be refreshed",
		Long: `List the executable and the shared libraries of every process of a program.

DIRTY is the number of text pages that are no longer the file's but the
process's own. FILE says what became of the module's file on disk: same,
replaced (another file is at its path now), deleted, modified (written in
place), none (it exists in memory only) or unknown. REFRESH is yes, or no with
the codes of the reasons; --verbose spells the reasons and their remedies out.

GEN is shown where a module was replaced: 0→1 is the build that the program
loaded, whose calls now reach generation 1; 1 alone is the build of generation
1 that vOS mapped beside it. USED is shown where calls are counted (vos
attach): of the functions that the module imports, those that it has called
since.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitInterrupted),
		Example: `  vos modules redis-server
  vos modules nginx:libz.so.1 --verbose
  vos modules nginx --json | jq -r 'select(.outdated) | "\(.pid) \(.module)"'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("modules needs a target, PROGRAM or PROGRAM:MODULE")
			}
			return atMostOneTarget(cmd, args)
		},
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(args[0])
			if err != nil {
				return err
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.listModules(ctx, x, api.ModulesRequest{Target: t})
			})
		},
	}
}

func (a *app) listModules(ctx context.Context, x api.Executive, r api.ModulesRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 7},
		column{title: "MODULE", elastic: true},
		column{title: "GEN", rare: true},
		column{title: "KIND", spare: 4},
		column{title: "BUILD-ID", spare: 3},
		column{title: "BASE", spare: 2},
		column{title: "TEXT", right: true, spare: 5},
		column{title: "MAPPED", right: true, spare: 6},
		column{title: "DIRTY", right: true, spare: 1},
		column{title: "USED", right: true, rare: true, spare: 1},
		column{title: "FILE"},
		column{title: "CORRUPT"},
		column{title: "REFRESH", elastic: true})
	var done tally
	reasons := 0
	err := x.Modules(ctx, r, func(m api.Module) error {
		done.good++
		if a.json {
			m.Refusals, m.Obstacles = list(m.Refusals), list(m.Obstacles)
			return a.printJSON(m)
		}
		if !m.Refreshable {
			reasons++
		}
		a.addModule(t, m)
		return nil
	})
	t.print(a.stdout)
	err = a.settle(done, err)
	if reasons > 0 && !a.verbose {
		a.stderr.notef("%s can't be refreshed; --verbose says why and what to do", count(reasons, "module"))
	}
	return err
}

func (a *app) addModule(t *table, m api.Module) {
	buildID := m.BuildID
	if len(buildID) > shortBuildID && !a.verbose {
		buildID = buildID[:shortBuildID]
	}
	t.add(
		text(strconv.Itoa(m.PID)),
		text(quoted(m.Program)),
		text(quoted(m.Module)),
		text(generation(m)),
		text(quoted(m.Kind)),
		text(quoted(buildID)),
		text(quoted(m.Base)),
		text(byteSize(m.TextBytes)),
		text(byteSize(m.MappedBytes)),
		text(strconv.Itoa(m.DirtyTextPages)),
		text(usedOf(m)),
		fileCell(m),
		yesNo(m.Corrupt, bad),
		refreshCell(m),
	)
	if !a.verbose {
		return
	}
	if m.Path != "" {
		t.note(quoted(m.Path))
	}
	t.note(fmt.Sprintf("data %s, %s", byteSize(m.DataBytes), generationNote(m)))
	for _, r := range m.Refusals {
		t.note(escaped(refusalNote(m.Module, r)))
		if r.Remedy != "" {
			t.note(escaped("  remedy: " + r.Remedy))
		}
	}
}

// usedOf is empty of a module whose calls are not counted.
func usedOf(m api.Module) string {
	if m.Imported == nil || m.Used == nil {
		return ""
	}
	return fmt.Sprintf("%d/%d", *m.Used, *m.Imported)
}

// generation is empty of a module that vOS never replaced.
func generation(m api.Module) string {
	switch {
	case m.Staged:
		return strconv.Itoa(m.Generation)
	case m.Generation > 0:
		return "0→" + strconv.Itoa(m.Generation)
	}
	return ""
}

func generationNote(m api.Module) string {
	switch {
	case m.Staged:
		return fmt.Sprintf("generation %d, mapped by vOS", m.Generation)
	case m.Generation > 0:
		return fmt.Sprintf("generation 0, calls reach generation %d", m.Generation)
	}
	return "generation 0"
}

// refusalNote is a refusal as a line below the row of its module.
func refusalNote(module string, r api.Refusal) string {
	var parts []string
	if r.Subject != "" && r.Subject != module {
		parts = append(parts, quoted(r.Subject))
	}
	if r.Detail != "" {
		parts = append(parts, r.Detail)
	}
	return "not refreshable: " + strings.Join(parts, ": ") + " (" + string(r.Code) + ")"
}

// shortBuildID is how many digits of a build-id a table shows without -v: few
// enough to read, enough to tell builds apart.
const shortBuildID = 12

func fileCell(m api.Module) cell {
	switch m.File {
	case api.FileSame, api.FileNone, api.FileUnknown:
		return text(m.File)
	}
	return cell{quoted(m.File), warn}
}

func yesNo(yes bool, s style) cell {
	if yes {
		return cell{"yes", s}
	}
	return text("no")
}

func refreshCell(m api.Module) cell {
	if m.Refreshable {
		return text("yes")
	}
	var codes []string
	for _, r := range m.Refusals {
		codes = append(codes, string(r.Code))
	}
	if len(codes) == 0 {
		return text("no")
	}
	return cell{quoted("no: " + strings.Join(codes, ", ")), warn}
}
