package testbed

import (
	"os"
	"os/exec"
	"strings"
)

// NeedRoot fails a test that root does not run: one that is left out would
// prove nothing, and nobody would notice.
func NeedRoot(tb TB) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Fatalf("this test changes ids, roots or mounts: run it as root, as make test does")
	}
}

// NeedTool returns the path of a program that a test runs, and fails the test
// where it is not installed.
func NeedTool(tb TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Fatalf("%v: make deps installs what tests need", err)
	}
	return path
}

// GCC runs the compiler and returns what it printed; where it fails, so does the
// test. Objects that a test spoils are made by it; those that are only run come
// from the cache of [Compile].
func GCC(tb TB, args ...string) (printed string) {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), NeedTool(tb, "gcc"), args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
