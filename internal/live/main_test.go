package live

import (
	"bytes"
	"debug/elf"
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

// corruptIdle changes two bytes of padding between functions in a module of a
// process, where nobody runs, and returns their address.
func corruptIdle(t *testing.T, pid int, name string) uint64 {
	t.Helper()
	p, err := module.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() // now: a soak comes by here thousands of times
	for _, m := range p.Modules {
		if m.Name != name && filepath.Base(m.Path) != name || m.Object == nil {
			continue
		}
		at, err := padding(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := testbed.Corrupt(pid, at, []byte{0xde, 0xad}); err != nil {
			t.Fatal(err)
		}
		return at
	}
	t.Fatalf("process %d has no module %s", pid, name)
	return 0
}

// padding returns an address between two functions.
func padding(m *module.Module) (uint64, error) {
	fdes, err := m.Object.FDEs()
	if err != nil {
		return 0, err
	}
	for i := 1; i < len(fdes); i++ {
		end := fdes[i-1].Start + fdes[i-1].Size
		if s, ok := m.Object.SegmentAt(end); ok && s.Flags&elf.PF_X != 0 && fdes[i].Start >= end+2 {
			return end + m.Bias, nil
		}
	}
	// A program without unwind tables (Go): the rest of the last page of code.
	for _, mapped := range m.Object.Mappings() {
		if s := mapped.Segment; s.Flags&elf.PF_X != 0 && mapped.Size > s.Filesz+64 {
			return m.Bias + mapped.Addr + mapped.Size - 16, nil
		}
	}
	return 0, fmt.Errorf("%s has no padding between functions", m.Name)
}

// checkFree fails the test if a process is gone, or any of its threads is
// traced or stopped.
func checkFree(t *testing.T, pid int) {
	t.Helper()
	switch s, err := testbed.Disturbance(pid, false); {
	case err != nil:
		t.Fatalf("process %d: %v", pid, err)
	case s != "":
		t.Fatalf("process %d: %s", pid, s)
	}
}
