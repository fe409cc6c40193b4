// Command vos verifies and refreshes the modules of running Linux programs.
package main

import (
	"os"

	"github.com/virtualizing-os/vos/internal/cli"
	"github.com/virtualizing-os/vos/internal/vex"
)

func main() {
	if os.Args[0] == vex.InsideName {
		os.Exit(vex.Inside())
	}
	os.Exit(cli.Main(vex.New))
}
