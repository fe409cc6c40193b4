package restore

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/testbed"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(restoreEnv); dir != "" {
		if err := restoreOnly(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// What is restored becomes a child of the tests, which see how it ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(testbed.RunTests(m))
}
