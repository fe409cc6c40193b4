// Command cmd of internal/demo plays the demonstration: `make demo`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/virtualizing-os/vos/internal/demo"
	"github.com/virtualizing-os/vos/internal/testbed"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("nginx changes its user, and vos looks into it: run the demo as root")
	}
	if err := testbed.Subreaper(); err != nil {
		return err
	}
	return demo.Run(ctx, os.Stdout)
}
