package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version overrides what the build recorded:
//
//	go build -ldflags "-X github.com/virtualizing-os/vos/internal/cli.version=1.2.3"
var version string

// A build says which vOS this is.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source, "" where it was not recorded
	Modified bool   `json:"modified"` // the source differed from that revision
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildVersion() build {
	b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	return b
}

func (b build) String() string {
	s := "vos " + b.Version
	if b.Revision != "" {
		s += " (" + b.Revision
		if b.Modified {
			s += ", modified"
		}
		s += ")"
	}
	return fmt.Sprintf("%s %s %s", s, b.Go, b.Platform)
}

// version is `vos version`.
func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long:  "Print the version of vOS, the source revision it was built from, and the\nGo release.\n\n" + exitHelp(exitOK, exitFailed, exitUsage),
		Example: `  vos version
  vos version --json | jq -r .version`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(buildVersion())
			}
			fmt.Fprintln(a.stdout, buildVersion())
			return nil
		},
	}
}
