package dump

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestRefused looks at programs that have something which is not kept: it is refused by
// name.
func TestRefused(t *testing.T) {
	for kind, want := range map[string]api.Code{
		"nothing of that": "", "asynchronous I/O": codeAIO, "userfaultfd": codeFault, "a ring": codeMapping,
		"memory of two processes": codeSharedWith, "memory of a stranger": codeSharedWith,
		"rights of a thread": codeThreadIDs, "no main thread": codeZombie,
	} {
		t.Run(kind, func(t *testing.T) {
			plan := lookAtRefused(t, kind)
			if codes := codesOf(plan.Refusals); (len(codes) == 0) != (want == "") || want != "" && !slices.Contains(codes, want) {
				t.Errorf("refused as %v, want %q", codes, want)
			}
		})
	}
}

// TestKeysAreRefused: whether there are keys is known to the program alone, which is asked
// when it is held. It goes on.
func TestKeysAreRefused(t *testing.T) {
	for _, kind := range []string{"keys of its own", "keys of its thread"} {
		t.Run(kind, func(t *testing.T) {
			plan := lookAtRefused(t, kind)
			if len(plan.Refusals) > 0 {
				t.Fatal(plan.Refusals)
			}
			_, err := commitTo(t, plan, filepath.Join(t.TempDir(), "image"))
			var r api.Refusal
			if !errors.As(err, &r) || r.Code != codeKeys {
				t.Fatalf("it ends with %v", err)
			}
			if stat, err := plan.Process.Stat(); err != nil || stat.Zombie() {
				t.Errorf("the program has ended, %v", err)
			}
			testbed.AssertUndisturbed(t, plan.Process.PID())
		})
	}
}

func codesOf(all []api.Refusal) (codes []api.Code) {
	for _, r := range all {
		codes = append(codes, r.Code)
	}
	return codes
}

func lookAtRefused(t *testing.T, kind string) *Plan {
	t.Helper()
	source, err := os.ReadFile("testdata/refused.c")
	if err != nil {
		t.Fatal(err)
	}
	path := testbed.MustCompile(t, testbed.Build{Name: "refused", Source: string(source), Flags: []string{"-pthread"}})
	cmd := exec.Command(path, kind)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		for { // what it has left
			if _, err := syscall.Wait4(-cmd.Process.Pid, nil, 0, nil); err != nil {
				return
			}
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("it says %q, %v: %s", line, err, &stderr)
	}
	p, err := procfs.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	for end := time.Now().Add(10 * time.Second); kind == "no main thread"; time.Sleep(time.Millisecond) {
		if stat, err := p.Stat(); err != nil || stat.Zombie() || time.Now().After(end) {
			break // the other one may be ready before it has ended
		}
	}
	plan, err := Look(t.Context(), p, Options{Inherit: []int{0, 1, 2}, Tree: true, LeaveRunning: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plan.Close(); err != nil {
			t.Error(err)
		}
	})
	return plan
}
