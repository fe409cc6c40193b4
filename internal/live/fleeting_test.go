package live

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// TestProgramThatBecomesAnother refreshes a program that executes itself every
// few milliseconds: what was looked at may be gone at any time. It is healed,
// gone or refused, and goes on.
func TestProgramThatBecomesAnother(t *testing.T) {
	for _, period := range []string{"2", "5", "20"} {
		t.Run("every "+period+" ms", func(t *testing.T) {
			s := fixture(t, "exec", period)
			outcomes := make(map[int]int)
			for range 50 {
				if _, err := corruptEvery(s.pid); err != nil && s.last.Errors > 0 {
					t.Fatal(err)
				}
				r := vos(t, "refresh", s.target(), "--json")
				outcomes[r.Code]++
				checkCutShort(t, r)
			}
			t.Logf("exit codes: %v", outcomes)
			await(t, "the next of them", func() bool {
				before := s.last.Counts["execs"]
				s.works(t)
				return s.last.Counts["execs"] > before
			})
			checkFree(t, s.pid)
			// In one of its lives it is quiet enough to be healed.
			await(t, "a refresh of all", func() bool { return vos(t, "refresh", s.target()).Code == 0 })
		})
	}
}

// TestVerifyWhatIsUnloaded verifies and refreshes a program that loads and unloads two
// libraries all the time: nothing in it is wrong, and neither says so.
func TestVerifyWhatIsUnloaded(t *testing.T) {
	rounds := 2000
	if soak {
		rounds = 20000
	}
	s := fixture(t, "churn", "libraries")
	machine, err := vex.New()
	if err != nil {
		t.Fatal(err)
	}
	target := api.Target{Program: s.target()}
	for range rounds {
		err := machine.Verify(t.Context(), api.VerifyRequest{Target: target}, func(v api.Verification) error {
			if v.Corrupt {
				t.Errorf("%+v", v)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = machine.Refresh(t.Context(), api.RefreshRequest{Target: target}, func(o api.Operation) error {
			if o.Outcome != api.Clean {
				t.Errorf("%+v", o)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.works(t)
}

// beingLoaded are the refusals of a program that is just becoming another, or of
// libraries that come and go.
var beingLoaded = []api.Code{"no_gadget", "no_scratch", "zombie", "module_unmapped", "text_remapped", "uninterruptible"}

// checkCutShort checks that a refresh of a program that may end or become another
// at any time was carried out, or ended as it must then.
func checkCutShort(t *testing.T, r result) {
	t.Helper()
	switch r.Code {
	case 0, 6: // done; gone
		return
	case 1, 3, 7: // some or all of its modules were no longer there
	default:
		t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, refusal := range refusals(t, r) {
		if !slices.Contains(beingLoaded, refusal.Code) {
			t.Errorf("refused: %v", refusal)
		}
	}
	for _, o := range operations(t, r) {
		if o.Outcome == api.Failed {
			t.Errorf("%s failed: %s", o.Module, o.Error)
		}
	}
}

// TestProgramThatEnds refreshes programs that end at random times meanwhile, by
// themselves, with the status that they mean to.
func TestProgramThatEnds(t *testing.T) {
	path := compiled(t, "exec")
	outcomes := make(map[int]int)
	for range 40 {
		f, err := testbed.StartFixture(context.WithoutCancel(t.Context()), path, "20", "exit")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Kill)
		_, _ = corruptEvery(f.Pid()) // it may have ended
		r := vos(t, "refresh", strconv.Itoa(f.Pid()), "--json")
		outcomes[r.Code]++
		checkCutShort(t, r)
		<-f.Done()
		if code, signal := f.ExitStatus(); code != 0 {
			t.Fatalf("it ended with exit code %d, signal %v", code, signal)
		}
		vos(t, "refresh", strconv.Itoa(f.Pid())).expect(t, 6)
	}
	t.Logf("exit codes: %v", outcomes)
}

// TestKilledProgram refreshes programs that somebody kills meanwhile.
func TestKilledProgram(t *testing.T) {
	outcomes := make(map[int]int)
	for n := range 20 {
		s, f := start(t, testbed.FixtureOptions{}, compiled(t, "plain"))
		if _, err := corruptEvery(s.pid); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			time.Sleep(time.Duration(n) * time.Millisecond)
			f.Kill()
		}()
		r := vos(t, "refresh", s.target(), "--json")
		<-done
		outcomes[r.Code]++
		checkCutShort(t, r)
	}
	t.Logf("exit codes: %v", outcomes)
}

// TestNameOfSeveralProgramsMeansAll has two programs of one name: both are
// verified and both are healed, also where only one of them is corrupt.
func TestNameOfSeveralProgramsMeansAll(t *testing.T) {
	name := fmt.Sprintf("twin-%d", os.Getpid())
	path := filepath.Join(publicFolder(t), name)
	copyFile(t, compiled(t, "plain"), path)
	a, _ := start(t, testbed.FixtureOptions{}, path)
	b, _ := start(t, testbed.FixtureOptions{}, path)
	for _, target := range []string{name, path} {
		for _, corrupt := range [][]*subject{{a}, {b}, {a, b}} {
			var want []int
			for _, s := range corrupt {
				corruptGap(t, s.pid, libc)
				want = append(want, s.pid)
			}
			slices.Sort(want)
			var found, healed, seen []int
			for _, d := range differences(t, vos(t, "verify", target, "--json").expect(t, 10)) {
				found = append(found, d.PID)
			}
			for _, o := range operations(t, vos(t, "refresh", target+":"+libc, "--json").expect(t, 0)) {
				seen = append(seen, o.PID)
				if o.Outcome == api.Refreshed {
					healed = append(healed, o.PID)
				}
			}
			if !slices.Equal(found, want) || !slices.Equal(healed, want) || len(seen) != 2 || !slices.IsSorted(seen) {
				t.Errorf("%s: corrupt are %v, found %v, healed %v of %v", target, want, found, healed, seen)
			}
			vos(t, "verify", target).expect(t, 0)
		}
	}
	a.unharmed(t)
	b.unharmed(t)
}

// TestLibraryThatComesAndGoes refreshes a program that opens and closes libraries
// all the time.
func TestLibraryThatComesAndGoes(t *testing.T) {
	s := fixture(t, "churn", "libraries", "threads")
	healed := 0
	for range 40 {
		if _, err := corruptEvery(s.pid); err != nil {
			t.Log(err) // a library was closed meanwhile
		}
		r := vos(t, "refresh", s.target(), "--json")
		checkCutShort(t, r)
		for _, o := range operations(t, r) {
			if o.Outcome == api.Refreshed {
				healed++
			}
		}
	}
	if healed == 0 {
		t.Error("nothing was healed")
	}
	s.unharmed(t)
	await(t, "a refresh of all", func() bool { return vos(t, "refresh", s.target()).Code == 0 })
	s.unharmed(t)
	t.Logf("%d modules healed", healed)
}

// TestProgramThatIsLoadedRaisesNoAlarm verifies a program that is mostly being
// loaded: what the loader has not relocated yet is no corruption.
func TestProgramThatIsLoadedRaisesNoAlarm(t *testing.T) {
	s := fixture(t, "exec", "1")
	outcomes := make(map[int]int)
	for range 100 {
		r := vos(t, "verify", s.target(), "--full", "--json")
		outcomes[r.Code]++
		// In the middle of an execve its modules are mapped in part.
		half := r.Code == 3 || r.Code == 7
		for _, refusal := range refusals(t, r) {
			half = half && slices.Contains(beingLoaded, refusal.Code)
		}
		if r.Code != 0 && r.Code != 6 && !half {
			t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	}
	t.Logf("exit codes: %v", outcomes)
	s.unharmed(t)
}

// TestDetachOfProcessesThatEnd detaches a program by its name, whose children end all
// the time: what has ended needs nothing.
func TestDetachOfProcessesThatEnd(t *testing.T) {
	program := filepath.Join(publicFolder(t), "comes-and-goes")
	copyFile(t, compiled(t, "churn"), program)
	s, _ := start(t, testbed.FixtureOptions{}, program, "forks", "spawns")
	for range 20 {
		vos(t, "attach", s.target()).expect(t, 0)
		vos(t, "detach", "comes-and-goes").expect(t, 0)
	}
	s.works(t)
}
