// Command vos verifies and refreshes the modules of running Linux programs.
package main

import (
	"os"

	"github.com/virtualizing-os/vos/internal/cli"
)

func main() { os.Exit(cli.Main(newExecutive)) }
