package live

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// binary is the vos that is tested.
var binary = func() string {
	path, err := filepath.Abs("../../bin/vos")
	if err != nil {
		panic(err)
	}
	return path
}()

// soak makes tests run as long as they promise to hold; otherwise they run a
// part of it.
var soak = os.Getenv("VOS_SOAK") != ""

func TestMain(m *testing.M) {
	if _, err := os.Stat(binary); err != nil {
		fmt.Fprintln(os.Stderr, "these tests run bin/vos: make build")
		os.Exit(1)
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests trace and change programs of other users: run them as root")
		os.Exit(1)
	}
	os.Exit(testbed.RunTests(m))
}

// A result is how a run of the binary ended.
type result struct {
	Code           int
	Stdout, Stderr string
}

// vos runs the binary.
func vos(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("vos %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// expect fails the test if a run did not end with the code.
func (r result) expect(t *testing.T, code int) result {
	t.Helper()
	if r.Code != code {
		t.Fatalf("exit code %d, want %d\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// lines decodes what --json printed, an object a line.
func lines[T any](t *testing.T, r result) []T {
	t.Helper()
	var all []T
	for line := range strings.Lines(r.Stdout) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("decode %q: %v", line, err)
		}
		all = append(all, v)
	}
	return all
}

func operations(t *testing.T, r result) []api.Operation {
	t.Helper()
	return lines[api.Operation](t, r)
}

func differences(t *testing.T, r result) []api.Difference {
	t.Helper()
	return lines[api.Difference](t, r)
}

func modules(t *testing.T, r result) []api.Module { t.Helper(); return lines[api.Module](t, r) }

// inspect returns the modules of a process as they are now.
func inspect(t *testing.T, pid int) *module.Process {
	t.Helper()
	p, err := module.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func checkFree(t *testing.T, pid int) { t.Helper(); testbed.AssertUndisturbed(t, pid) }
