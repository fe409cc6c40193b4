// Command corpus matches the library builds that the package mirror serves in
// several versions, and writes what came out as a table.
//
// It asks apt which versions of the installed library packages there are,
// downloads and unpacks them into the user's cache folder, one at a time, and
// compares the libraries of each version with those of the next: all on files,
// nothing is installed and nothing runs.
//
//	go run ./internal/module/match/corpus -out docs/corpus.md
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/testbed"
)

func main() {
	out := flag.String("out", "docs/corpus.md", "the table to write; - for standard output")
	most := flag.Int("packages", 100, "at most so many packages")
	offline := flag.Bool("offline", false, "use what is in the cache only")
	only := flag.String("package", "", "this package only, with full reports on standard output")
	flag.Parse()
	runtime.GOMAXPROCS(1) // times are of one core
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *only, *most, *offline); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string, most int, offline bool) error {
	archive, err := testbed.OpenArchive(offline)
	if err != nil {
		return err
	}
	names := []string{only}
	if only == "" {
		if names, err = installedPackages(ctx); err != nil {
			return err
		}
	}
	packages, err := archive.Packages(ctx, names...)
	if err != nil {
		return err
	}
	packages = slices.DeleteFunc(packages, func(p testbed.Package) bool { return len(p.Versions) < 2 })
	packages = packages[:min(len(packages), most)]
	var rows []row
	for i, p := range packages {
		fmt.Fprintf(os.Stderr, "%d/%d %s: %d versions\n", i+1, len(packages), p.Name, len(p.Versions))
		more, err := comparePackage(ctx, archive, p)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "  %v\n", err)
			continue
		}
		rows = append(rows, more...)
	}
	if only != "" {
		for _, r := range rows {
			if err := r.report.Text(os.Stdout); err != nil {
				return err
			}
		}
		return nil
	}
	if out == "-" {
		return writeTable(os.Stdout, rows)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := writeTable(f, rows); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
