package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
)

type group struct {
	name, title string
	measure     func(ctx context.Context, runs int) ([]Figure, error)
}

var groups = []group{
	{"start", "vos as a command, whole processes", Start},
	{"ps", "vos ps of 300 processes", Programs},
	{"verify", "verification of an nginx worker and of this machine", Verify},
	{"stop", "all threads stopped and resumed; floor: bare seize, interrupt, wait, detach", Stop},
	{"refresh", "healing; held up: one thread borrowed, or all stopped where the processors are busy", Heal},
	{"match", "two builds compared, on their files", Match},
	{"replace", "another build takes over; floor: bare stop of the same process", Replace},
	{"redirect", "a descriptor is bound to something else, and back; floor: bare stop of one process", Redirect},
	{"latency", "nginx while its libz is replaced once a second; floor: while it is not", Latency},
	{"calls", "1000 calls, counted, processor time; floor: not counted", Calls},
	{"attach", "calls come to be counted, and cease to be; floor: bare stop of the same process", Attach},
	{"counted", "real work, processor time of the program; floor: nothing is counted", Counted},
	{"snapshot", "a program is checkpointed to files in memory, and built again; floor: bare stop, or a copy of its pages", Snapshot},
	{"series", "one checkpoint after another, written pages noted; floor: all memory compared with the parent", Series},
	{"criu", "the same by vos as a command; floor: CRIU, in the same run", CRIU},
	{"restart", "nginx gets another libz under load; floor: it does not", Restart},
}

// A notMeasured is why a group is left out on this machine.
type notMeasured string

func (n notMeasured) Error() string { return "not measured: " + string(n) }

// Run measures all groups, or the one that is named, and prints them as they
// come.
func Run(ctx context.Context, w io.Writer, only string, runs int) error {
	release, err := kernel.Release()
	if err != nil {
		return err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Linux %v, %d processors, load %s\n", release, runtime.NumCPU(), strings.Fields(string(load))[0])
	found := false
	for _, g := range groups {
		if only != "" && g.name != only {
			continue
		}
		found = true
		figures, err := g.measure(ctx, runs)
		var why notMeasured
		if errors.As(err, &why) {
			if _, err := fmt.Fprintf(w, "\n%s\n  not measured: %s\n", g.title, string(why)); err != nil {
				return err
			}
			continue
		}
		if printErr := Print(w, g.title, figures); printErr != nil {
			return printErr
		}
		if err != nil {
			return fmt.Errorf("measure %s: %w", g.name, err)
		}
	}
	if !found {
		return fmt.Errorf("there is no group %q", only)
	}
	return nil
}
