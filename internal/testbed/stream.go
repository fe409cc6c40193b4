package testbed

import (
	"context"
	"fmt"
	"os"
	"time"
)

// systemPython is the distribution's, whatever else is in PATH: it has libz and
// libexpat from the distribution.
const systemPython = "/usr/bin/python3"

// StartStream starts python3 in the middle of one stream that ends when the
// [Fixture] quits, all of it checked: task "zlib" compresses and decompresses,
// task "expat" parses a document. Counts "mark.X" of a report are answers of the
// library by what they show of its build, see [Zlib] and [Expat].
func StartStream(ctx context.Context, task string, o FixtureOptions) (*Fixture, error) {
	script, err := fixtureFiles.ReadFile("fixtures/stream.py")
	if err != nil {
		return nil, fmt.Errorf("start a stream of %s: %w", task, err)
	}
	if _, err := os.Stat(systemPython); err != nil {
		return nil, fmt.Errorf("start a stream of %s: %w (scripts/deps.sh installs it)", task, err)
	}
	return StartFixtureWith(ctx, o, systemPython, "-I", "-c", string(script), task)
}

// RunStream is [StartStream] for the length of a test, at whose end what the
// stream gave must be what went in.
func RunStream(tb TB, task string, o FixtureOptions) *Fixture {
	tb.Helper()
	f, err := StartStream(context.WithoutCancel(tb.Context()), task, o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := f.Quit(20 * time.Second); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return f
}
