package restore

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// TestGuard lets a guard see the end of vOS, as the end of its pipe: it kills all that it
// was told of, and ends. One that was dismissed before kills nobody.
func TestGuard(t *testing.T) {
	for name, dismissed := range map[string]bool{"vos ends": false, "dismissed": true} {
		t.Run(name, func(t *testing.T) {
			var running []*exec.Cmd
			var built []*process
			for range 40 { // more than the starter's own table holds
				cmd := exec.Command("sleep", "1000")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				running, built = append(running, cmd), append(built, &process{pid: cmd.Process.Pid})
			}
			kernel.OnOwnThread(func() { guards(t, built, dismissed) })
			for _, cmd := range running {
				if dismissed {
					if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
						t.Error(err)
					}
				}
				want := map[bool]string{false: "signal: killed", true: "signal: terminated"}[dismissed]
				if err := cmd.Wait(); err == nil || err.Error() != want {
					t.Errorf("process %d: %v, want %s", cmd.Process.Pid, err, want)
				}
			}
		})
	}
}

// guards keeps a guard of processes, and dismisses it or lets it see vOS end.
func guards(t *testing.T, built []*process, dismissed bool) {
	tr, err := newTracer(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() {
		if err := tr.waiter.Close(); err != nil {
			t.Error(err)
		}
	}()
	g, err := tr.keepGuard(built)
	if err != nil {
		t.Error(err)
		return
	}
	pid := g.pid
	if dismissed {
		if err := tr.dismiss(g); err != nil {
			t.Error(err)
		}
	} else if err := g.pipe.Close(); err != nil {
		t.Error(err)
	} else {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Exited() || status.ExitStatus() != 0 {
			t.Errorf("the guard ended with %#x: %v", status, err)
		}
	}
}
