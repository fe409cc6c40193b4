// Command refusals writes the list of every refusal into docs/refusals.md.
//
// The codes are read from the source: all constants of type api.Code. What each
// means is in meanings.go; what helps comes from the package itself where it
// has one remedy a code, otherwise from there as well. A code without a meaning
// and a list that is out of date fail the test.
//
//	go run ./internal/refusals -out docs/refusals.md
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/module/match"
)

func main() {
	out := flag.String("out", "docs/refusals.md", "the list to write; - for standard output")
	source := flag.String("source", "internal", "the directory whose packages have the codes")
	flag.Parse()
	text, err := list(*source)
	if err == nil && *out == "-" {
		_, err = os.Stdout.WriteString(text)
	} else if err == nil {
		err = os.WriteFile(*out, []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "refusals:", err)
		os.Exit(1)
	}
}

// A section of the list holds the codes of one package.
type section struct {
	folder string // of the package, below the source directory
	title  string
	story  string
}

var sections = []section{
	{"tracee", "Programs", "The program can't be stopped, or nothing can be run inside it, without a trace."},
	{"module", "Modules", "A module that runs can't be compared with its file, changed or replaced."},
	{"module/match", "Builds", "Another build of a library can't take over with the data of the one that runs, as far as files tell. `vos replace --debug-file` lets structures be compared by name, which proves more."},
	{"handle", "Descriptors", "A descriptor can't be bound to something else by `vos redirect` without the program noticing."},
	{"restart", "Fresh memory", "The memory of a program can't be made anew in place. Nothing was touched."},
	{"snapshot/descriptor", "Descriptors in images", "What a descriptor leads to can't be kept in an image, or made again from one."},
	{"menu", "Menus", "`vos attach --menu` can't serve the program, or `vos ctl --show` can't show its answer."},
	{"snapshot/dump", "Checkpoints", "The state of a program can't be written down as a whole. Nothing was touched."},
	{"snapshot/restore", "Restoring", "The process of an image can't be built on this machine, or not now. Nothing was made."},
	{"image/criu", "Images of CRIU", "`vos image --criu` can't say it in CRIU's format. Nothing was written."},
	{"vex", "Requests", "One of several can't be done without the others."},
}

// list is the whole list, in Markdown. An error names every code that lacks a
// meaning.
func list(source string) (string, error) {
	codes, err := findCodes(source)
	if err != nil {
		return "", err
	}
	var wrong []error
	for folder, found := range codes {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.folder == folder }) {
			wrong = append(wrong, fmt.Errorf("package %s has codes, such as %s, and no section", filepath.Join(source, folder), found[0]))
		}
	}
	var b strings.Builder
	b.WriteString(opening)
	remedies := match.Codes()
	for _, s := range sections {
		if len(codes[s.folder]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| code | when | what helps |\n|---|---|---|\n", s.title, s.story)
		for _, code := range slices.Sorted(slices.Values(codes[s.folder])) {
			m, ok := meanings[code]
			if s.folder == "module/match" && remedies[code] != "" {
				m.helps = remedies[code]
			}
			if !ok || m.helps == "" {
				wrong = append(wrong, fmt.Errorf("meanings.go does not say when there is a refusal %s, or what helps", code))
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", code, m.when, m.helps)
		}
	}
	return b.String(), errors.Join(wrong...)
}

const opening = `# Refusals

Every reason for which vOS will not do something. A refusal means that nothing was
touched. Codes are stable: scripts may compare them, as ` + "`.refusals[].code`" + ` of what
` + "`--json`" + ` prints. Each refusal also says what it is about, what was found there, and
what helps in this very case. Made by ` + "`make refusals`" + `.
`
