package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// completionTime bounds how long a tab key may take.
const completionTime = time.Second

// completeProgram completes the names of running programs.
func (a *app) completeProgram(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.programNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
}

// completeTarget completes PROGRAM, and after a colon its modules.
func (a *app) completeTarget(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if program, _, found := strings.Cut(typed, ":"); found {
		return a.moduleNames(cmd.Context(), program), cobra.ShellCompDirectiveNoFileComp
	}
	return a.programNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
}

// programNames lists running programs; a failure lists none, for a tab key has
// nowhere to print it.
func (a *app) programNames(ctx context.Context) []string {
	x, err := a.executive()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	var names []string
	_ = x.Programs(ctx, api.ProgramsRequest{Target: api.Target{All: true}, Quick: true}, func(p api.Program) error {
		names = appendCompletion(names, "", p.Name)
		return nil
	})
	return names
}

func (a *app) moduleNames(ctx context.Context, program string) []string {
	target, err := api.ParseTarget(program)
	if err != nil {
		return nil
	}
	x, err := a.executive()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	var names []string
	_ = x.Modules(ctx, api.ModulesRequest{Target: target}, func(m api.Module) error {
		names = appendCompletion(names, program+":", m.Module)
		return nil
	})
	return names
}

// appendCompletion adds a name once. Names that a shell would have to quote are
// left out: they come from programs, and some are hostile.
func appendCompletion(names []string, prefix, name string) []string {
	if name == "" || name[0] == '-' || strings.ContainsFunc(name, needsQuoting) || slices.Contains(names, prefix+name) {
		return names
	}
	return append(names, prefix+name)
}

func needsQuoting(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("._+@/-", r)
}
