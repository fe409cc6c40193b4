package live

import (
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestReplaceByManyAtOnce lets several vos take turns at one program: it runs one
// build as a whole.
func TestReplaceByManyAtOnce(t *testing.T) {
	m := runMixed(t, form{}, "busy=4")
	second, third := mixedBuild(t, 2), mixedBuild(t, 3)
	for range 5 {
		var all sync.WaitGroup
		for _, args := range [][]string{
			{"replace", m.module(), "--with", second}, {"replace", m.module(), "--with", third}, {"rollback", m.module()},
			{"replace", m.module(), "--with", second}, {"refresh", m.target()},
		} {
			all.Go(func() {
				out, err := exec.Command(binary, args...).CombinedOutput()
				if err != nil && !strings.Contains(string(out), "no_generation_before") {
					t.Errorf("vos %v: %v\n%s", args, err, out)
				}
			})
		}
		all.Wait()
		m.unharmed(t)
		report, err := m.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.runs(t, report.Counts["build"])
	}
	vos(t, "verify", "--full", m.target()).expect(t, 0)
}

// TestReplaceInterrupted sends SIGINT to vos at random instants: what it had begun
// is undone, or done.
func TestReplaceInterrupted(t *testing.T) {
	interrupts := 80
	if soak {
		interrupts = 1000
	}
	m := runMixed(t, form{}, "busy=2")
	second := mixedBuild(t, 2)
	limit := whole(t, "replace", m.module(), "--with", second)
	vos(t, "rollback", m.module()).expect(t, 0)
	codes := make(map[int]int)
	for n := range interrupts {
		if n%10 == 0 { // one that has no other build yet
			m = runMixed(t, form{}, "busy=2")
		}
		before := inventory(t, m.pid)
		cmd := exec.Command(binary, "replace", m.module(), "--with", second)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(max(instant(limit), time.Duration(n%8)*limit/8)) // later than its start
		_ = cmd.Process.Signal(syscall.SIGINT)                      // it may have ended
		_ = cmd.Wait()
		code := cmd.ProcessState.ExitCode()
		codes[code]++
		switch code {
		case 0:
			m.runs(t, 2)
			m.rollback(t)
		case 130, -1: // -1: before it could see to signals
			m.runs(t, 1)
			if d := before.Diff(inventory(t, m.pid)); len(d) > 0 && code == 130 {
				t.Errorf("after an interrupt: %v", d)
			}
		default:
			t.Errorf("exit code %d", code)
		}
	}
	t.Logf("exit codes: %v", codes)
}

// TestReplaceInProgramsThatEnd kills programs at random instants of a replacement.
func TestReplaceInProgramsThatEnd(t *testing.T) {
	second := mixedBuild(t, 2)
	codes := make(map[int]int)
	limit := 20 * time.Millisecond
	for range 30 {
		m := runMixed(t, form{}, "busy=2")
		cmd := exec.Command(binary, "replace", m.module(), "--with", second)
		var out strings.Builder
		cmd.Stderr = &out
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(instant(limit))
		m.Kill()
		_ = cmd.Wait()
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		code := cmd.ProcessState.ExitCode()
		codes[code]++
		switch {
		case code == 0, code == 6:
		case code == 7, strings.Contains(out.String(), "nothing is mapped there any more"):
			t.Log(out.String()) // mappings and threads end before the process does
		default:
			t.Errorf("exit code %d: %s", code, out.String())
		}
	}
	t.Logf("exit codes: %v", codes)
}

// TestReplaceInAStoppedProgram replaces a library of a program that was stopped by
// SIGSTOP, and stays so.
func TestReplaceInAStoppedProgram(t *testing.T) {
	m := runMixed(t, form{}, "busy=2")
	stopped := func() bool {
		found, err := testbed.Disturbance(m.pid, true)
		if err != nil {
			t.Fatal(err)
		}
		return found == ""
	}
	for _, want := range []int64{2, 3, 2} {
		if err := syscall.Kill(m.pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		await(t, "the stop", stopped)
		vos(t, "replace", m.module(), "--with", mixedBuild(t, int(want))).expect(t, 0)
		if !stopped() {
			t.Error("it is not stopped any more")
		}
		if err := syscall.Kill(m.pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		m.runs(t, want)
	}
}

// TestReplaceOfStrippedBuilds lets builds without symbols take over, as far as
// they are proved: a refusal is right too, harm is not.
func TestReplaceOfStrippedBuilds(t *testing.T) {
	for _, flags := range [][]string{{"-s"}, {"-s", "-O0"}, {"-s", "-Os"}, {"-s", "-O3"}} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			m := runMixed(t, form{library: flags})
			for _, build := range []int{2, 3} {
				r := vos(t, "replace", m.module(), "--with", mixedBuild(t, build, flags...), "--json")
				if r.Code == 7 {
					for _, refusal := range refusals(t, r) {
						t.Logf("build %d: %v", build, refusal)
						if !slices.Contains([]string{"data_identity_unproved", "data_identity_conflict", "data_grown", "layout_drift", "pairing_unproved"}, string(refusal.Code)) {
							t.Errorf("build %d is refused for %v", build, refusal)
						}
					}
					m.runs(t, 1)
					continue
				}
				r.expect(t, 0)
				m.runs(t, int64(build))
				m.rollback(t)
				m.runs(t, 1)
			}
		})
	}
}
