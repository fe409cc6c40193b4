package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// scratchGroup makes a control group, of version 2 or of a controller of version 1, and
// returns its directory.
func scratchGroup(t *testing.T, option string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		before, behind, _ := strings.Cut(strings.TrimSpace(line), " - ")
		fields, of := strings.Fields(before), strings.Fields(behind)
		if len(fields) < 6 || len(of) < 3 || fields[3] != "/" || !(option == "" && of[0] == "cgroup2" || option != "" && of[0] == "cgroup" && strings.Contains(of[2]+",", ","+option+",")) {
			continue
		}
		at, err := os.MkdirTemp(fields[4], "vos-test-")
		if err != nil {
			t.Skipf("no control groups can be made: %v", err)
		}
		t.Cleanup(func() {
			await(t, "the control group to be removed", func() bool {
				err := os.Remove(at)
				return err == nil || os.IsNotExist(err)
			})
		})
		return at
	}
	t.Skipf("no hierarchy of control groups (%q) is mounted", option)
	return ""
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotControlGroups restores processes to the control groups that they were in.
func TestSnapshotControlGroups(t *testing.T) {
	for _, test := range []struct{ option, freeze, frozen, thawed string }{
		{"", "cgroup.freeze", "1", "0"},
		{"freezer", "freezer.state", "FROZEN", "THAWED"},
	} {
		name := "version 1"
		if test.option == "" {
			name = "version 2"
		}
		t.Run(name, func(t *testing.T) {
			group := scratchGroup(t, test.option)
			root, ask := relatives(t)
			target, folder := strconv.Itoa(root), t.TempDir()
			all := tree(t, root)
			for _, r := range all {
				_ = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(r.pid)), 0) // it may have ended
			}
			inGroup := func() (n int) {
				text, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
				if err != nil {
					t.Fatal(err)
				}
				return len(strings.Fields(string(text)))
			}
			before := inGroup()
			if before < 2 {
				t.Fatalf("%d processes are in the group", before)
			}
			for n := range 2 {
				endAndRestore(t, root, filepath.Join(folder, strconv.Itoa(n)))
				if now := inGroup(); now != before {
					t.Fatalf("%d processes are in the group, which had %d", now, before)
				}
			}
			ask("told")

			// Into a frozen one nothing is built.
			settled(t, target)
			last := filepath.Join(folder, "last")
			all = tree(t, root)
			vos(t, "checkpoint", target, "--tree", "-D", last).expect(t, 0)
			reapAll(all)
			put(t, filepath.Join(group, test.freeze), test.frozen)
			r := vos(t, "restore", "-D", last).expect(t, 7)
			if !strings.Contains(r.Stdout+r.Stderr, "cgroup_frozen") || !strings.Contains(r.Stdout+r.Stderr, filepath.Base(group)) {
				t.Errorf("refused otherwise: %s%s", r.Stdout, r.Stderr)
			}
			put(t, filepath.Join(group, test.freeze), test.thawed)

			// Where it is gone it is said so.
			await(t, "the group to be empty", func() bool { return os.Remove(group) == nil })
			r = vos(t, "restore", "-D", last).expect(t, 0)
			if said := fmt.Sprintf("put it there: echo %d > %s", root, group); !strings.Contains(r.Stdout+r.Stderr, said) {
				t.Errorf("that the group is gone is not said: %s%s", r.Stdout, r.Stderr)
			}
			ask("told")
		})
	}
}
