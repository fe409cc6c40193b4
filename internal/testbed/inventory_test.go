package testbed

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(RunTests(m)) }

func TestParseStat(t *testing.T) {
	for _, test := range []struct {
		text string
		want processStat
		ok   bool
	}{
		{"12 (nginx) S 1 12 12 0", processStat{12, 1, 12, 'S'}, true},
		{"12 (a) R 7 8\n9 (b) T 3 4 5", processStat{12, 3, 4, 'T'}, true},
		{"12 nginx", processStat{}, false},
		{"", processStat{}, false},
		{"x (a) S 1 2", processStat{}, false},
	} {
		got, err := parseStat([]byte(test.text))
		if (err == nil) != test.ok || (test.ok && got != test.want) {
			t.Errorf("parseStat(%q) = %+v, %v, want %+v", test.text, got, err, test.want)
		}
	}
}

func TestInventoryDiff(t *testing.T) {
	before, err := TakeInventory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.RSS == 0 || len(before.Mappings) == 0 {
		t.Errorf("inventory is empty: %+v", before)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after, err := TakeInventory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	found := strings.Join(before.Diff(after), "\n")
	if !strings.Contains(found, "+ descriptor ") || !strings.Contains(found, os.DevNull) {
		t.Errorf("an opened file is not in the difference: %q", found)
	}
}

func TestSnapshotFindsLeaks(t *testing.T) {
	before, err := TakeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	leaks, err := before.Leaks()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := sleep.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleep.Wait() // it was killed
	found := strings.Join(leaks, "\n")
	if !strings.Contains(found, os.DevNull) || !strings.Contains(found, "sleep") {
		t.Errorf("leaks = %q, want a descriptor and a child", found)
	}
	if leaks, err = before.Leaks(); err != nil || len(leaks) > 0 {
		t.Errorf("still leaks %q, %v", leaks, err)
	}
}

func TestDisturbance(t *testing.T) {
	f := RunFixture(t, "threads", "3", "blocked")
	AssertUndisturbed(t, f.Pid())
	if err := syscall.Kill(f.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var found string
	for range 100 {
		var err error
		if found, err = Disturbance(f.Pid(), false); err != nil {
			t.Fatal(err)
		}
		if strings.Count(found, "stopped") == 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if strings.Count(found, "stopped") != 3 {
		t.Errorf("a stopped process is described as %q", found)
	}
	if found, err := Disturbance(f.Pid(), true); err != nil || found != "" {
		t.Errorf("the expected stop is described as %q, %v", found, err)
	}
	if err := syscall.Kill(f.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// A process that has ended and is not reaped yet has no thread that is stopped.
func TestDisturbanceOfDeadProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	awaitExit(cmd.Process.Pid)
	if found, err := Disturbance(cmd.Process.Pid, false); err != nil || found == "" {
		t.Errorf("a dead process is described as %q, %v", found, err)
	}
}

func TestCorrupt(t *testing.T) {
	f := RunFixture(t, "threads", "1", "blocked")
	// The executable's ELF header is mapped read-only and used by nobody.
	maps, err := os.ReadFile("/proc/" + texts([]int{f.Pid()})[0] + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	var start uint64
	for _, c := range maps[:bytes.IndexByte(maps, '-')] {
		start = start<<4 | uint64(bytes.IndexByte([]byte("0123456789abcdef"), c))
	}
	before, err := Corrupt(f.Pid(), start+8, []byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, []byte{0, 0, 0}) {
		t.Errorf("before = %x, want zeros", before)
	}
	now, err := Corrupt(f.Pid(), start+8, before)
	if err != nil || !bytes.Equal(now, []byte{1, 2, 3}) {
		t.Errorf("what was written reads as %x, %v", now, err)
	}
	if _, err := Corrupt(f.Pid(), 0, []byte{1}); err == nil {
		t.Error("nothing is mapped at 0, and no error")
	}
}
