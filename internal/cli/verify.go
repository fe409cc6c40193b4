package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/virtualizing-os/vos/internal/api"
)

// verify is `vos verify`.
func (a *app) verify() *cobra.Command {
	var all, full bool
	cmd := &cobra.Command{
		Use:   "verify TARGET | --all",
		Short: "Compare running code and constants with the files they came from",
		Long: `Compare the text, the read-only data and the relocated constants of running
modules with the very files that are mapped, also where these were deleted or
replaced since. Nothing is stopped and nothing is changed.

Without --full only those pages are compared that the kernel knows as the
process's own; all others are the file's pages themselves.

Every difference is printed with its kind. Only corruption is an alarm: the
kinds breakpoint (a debugger's or a uprobe's), textrel (the loader relocates the
text of such a module) and vos (written by vOS) are known and leave the exit
code 0.

With --json each line is a difference, or, with the key refusals, a module that
could not be compared, or, with the key unchecked, one of which a part was not.

` + exitHelp(exitOK, exitFailed, exitUsage, exitSome, exitNotSupported,
			exitNotPermitted, exitGone, exitRefused, exitPending, exitInterrupted),
		Example: `  vos verify nginx
  vos verify 1234:libc.so.6 --full
  vos verify --all --json | jq -r 'select(.kind == "corruption") | .module'`,
		Args:              atMostOneTarget,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.targetOrAll(cmd, args, all)
			if err != nil {
				return err
			}
			return a.run(cmd, func(ctx context.Context, x api.Executive) error {
				return a.verifyModules(ctx, x, api.VerifyRequest{Target: t, Full: full})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every program of this machine")
	cmd.Flags().BoolVar(&full, "full", false, "compare every page")
	return cmd
}

// A verifyCount is what the summary of vos verify says.
type verifyCount struct {
	tally
	modules, pages, words int
	processes             map[int]bool
	corrupt               int // modules
	corruptions, known    int // differences
	unchecked             int // modules of which a part was left out
	hidden                int // differences left out of the table
}

func (a *app) verifyModules(ctx context.Context, x api.Executive, r api.VerifyRequest) error {
	t := newTable(
		column{title: "PID", right: true},
		column{title: "PROGRAM", spare: 7},
		column{title: "MODULE", elastic: true},
		column{title: "SECTION", spare: 2},
		column{title: "FUNCTION", elastic: true},
		column{title: "ADDRESS"},
		column{title: "BYTES", right: true, spare: 3},
		column{title: "KIND"},
		column{title: "FOUND", elastic: true, spare: 1},
		column{title: "EXPECTED", elastic: true, spare: 1})
	n := verifyCount{processes: map[int]bool{}}
	a.startProgress()
	err := x.Verify(ctx, r, func(v api.Verification) error {
		n.add(v)
		a.stderr.report(func() string {
			return fmt.Sprintf("verified %s in %s, %d corrupt …",
				count(n.modules, "module"), count(len(n.processes), "process"), n.corrupt)
		})
		if a.verbose {
			a.stderr.notef("%s: %s, %s compared in %s", place(v.Module, v.PID),
				count(v.Pages, "page"), count(v.Words, "word"), pause(v.TotalUS))
		}
		for _, refusal := range v.Refusals {
			a.stderr.refusal(place(v.Module, v.PID), refusal)
		}
		for _, left := range v.Unchecked {
			a.stderr.unchecked(place(v.Module, v.PID), left)
		}
		if a.json {
			return a.printVerification(v)
		}
		n.hidden += a.addDifferences(t, v.Differences)
		return nil
	})
	a.stderr.endProgress()
	t.print(a.stdout)
	err = a.settle(n.tally, err)
	if n.hidden > 0 {
		a.stderr.notef("%s more not shown; --verbose or --json shows all", count(n.hidden, "difference"))
	}
	if n.modules > 0 {
		a.stderr.notef("%s", n.summary())
	}
	return err
}

func (n *verifyCount) add(v api.Verification) {
	n.modules++
	n.pages += v.Pages
	n.words += v.Words
	n.processes[v.PID] = true
	corruptions := 0
	for _, d := range v.Differences {
		if d.Kind == api.KindCorruption {
			corruptions++
		} else {
			n.known++
		}
	}
	n.corruptions += corruptions
	if v.Corrupt || corruptions > 0 {
		n.corrupt++
		n.pending = true
	}
	if len(v.Unchecked) > 0 {
		n.unchecked++
	}
	if len(v.Refusals) > 0 {
		n.refused++
	} else {
		n.good++
	}
}

func (n *verifyCount) summary() string {
	s := fmt.Sprintf("verified %s (%s, %s) in %s: ", count(n.modules-n.refused, "module"),
		count(n.pages, "page"), count(n.words, "word"), count(len(n.processes), "process"))
	switch {
	case n.modules == n.refused && n.corrupt == 0:
		s = "nothing verified"
	case n.corrupt > 0:
		s += fmt.Sprintf("%s corrupt, %s", count(n.corrupt, "module"), count(n.corruptions, "difference"))
	default:
		s += "no corruption"
	}
	if n.known > 0 {
		s += fmt.Sprintf("; %s of known kinds", count(n.known, "difference"))
	}
	if n.unchecked > 0 {
		s += fmt.Sprintf("; %s only in part", count(n.unchecked, "module"))
	}
	if n.refused > 0 {
		s += fmt.Sprintf("; %s could not be verified", count(n.refused, "module"))
	}
	return s
}

func (a *app) printVerification(v api.Verification) error {
	for _, d := range v.Differences {
		if err := a.printJSON(d); err != nil {
			return err
		}
	}
	if len(v.Unchecked) > 0 {
		if err := a.printJSON(partlyVerified{v.PID, v.Program, v.Module, v.Path, v.Unchecked}); err != nil {
			return err
		}
	}
	if len(v.Refusals) == 0 {
		return nil
	}
	return a.printJSON(unverified{v.PID, v.Program, v.Module, v.Path, v.Refusals})
}

// differencesShown is how many differences of one module a table shows without
// -v: a module that was overwritten has thousands, and the first ones tell.
const differencesShown = 20

// addDifferences adds a module's differences to the table and returns how many
// it left out.
func (a *app) addDifferences(t *table, differences []api.Difference) (hidden int) {
	for i, d := range differences {
		if i == differencesShown && !a.verbose {
			return len(differences) - i
		}
		found, expected := quoted(d.Found), quoted(d.Expected)
		if !a.verbose {
			found, expected = shortHex(found, d.Length), shortHex(expected, d.Length)
		}
		kind := cell{quoted(d.Kind), plain}
		if d.Kind == api.KindCorruption {
			kind.style = bad
		}
		t.add(
			text(strconv.Itoa(d.PID)),
			text(quoted(d.Program)),
			text(quoted(d.Module)),
			text(quoted(d.Section)),
			text(quoted(d.Function)),
			text(quoted(d.Address)),
			text(strconv.Itoa(d.Length)),
			kind,
			text(found),
			text(expected),
		)
	}
	return 0
}

// shortBytes is how many bytes of a difference a table shows without -v: a word.
const shortBytes = 8

// shortHex cuts hex digits; other text, such as what a bound import should
// point to, stays whole. An ellipsis says that bytes are left out.
func shortHex(digits string, length int) string {
	if _, err := hex.DecodeString(digits); err != nil {
		return digits
	}
	if len(digits) > 2*shortBytes {
		return digits[:2*shortBytes] + "…"
	}
	if digits != "" && length > len(digits)/2 {
		return digits + "…"
	}
	return digits
}
