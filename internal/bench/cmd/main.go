// Command cmd of internal/bench prints vOS's figures: `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/virtualizing-os/vos/internal/bench"
)

func main() {
	runs := flag.Int("runs", 30, "measurements of each figure")
	only := flag.String("only", "", "one group: start, ps, verify, stop, refresh, match, replace, redirect, latency, calls, attach, counted, snapshot, criu or restart")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := bench.Run(ctx, os.Stdout, *only, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
