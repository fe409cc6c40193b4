package live

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// relatives starts processes of which some have ended, among them leaders of sessions and
// groups, and returns how to give them a command.
func relatives(t *testing.T) (root int, ask func(command string) string) {
	t.Helper()
	port := freePort(t)
	root = startAlone(t, testbed.NeedTool(t, "python3"), data(t, "relatives.py"), port)
	try := func(command string) (string, error) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return "", err
		}
		defer c.Close()
		if _, err := io.WriteString(c, command); err != nil {
			return "", err
		}
		answer := make([]byte, 0, 100)
		for !slices.Contains(answer, '\n') {
			n, err := c.Read(answer[len(answer):cap(answer)])
			if answer = answer[:len(answer)+n]; err != nil {
				return "", err
			}
		}
		return strings.TrimSpace(string(answer)), nil
	}
	await(t, "the relatives to be there", func() bool { _, err := try("told"); return err == nil })
	return root, func(command string) string {
		t.Helper()
		answer, err := try(command)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

// howTheyEnded is what waitid tells of the three that have: CLD_EXITED 7, CLD_KILLED
// SIGKILL, CLD_KILLED SIGSEGV of another user's.
const howTheyEnded = "1 7 0 2 9 0 2 11 65534"

// TestSnapshotRelatives checkpoints processes whose sessions and groups have lost their
// leaders, whose parents have ended, and that have not waited for those that did; it ends
// them, and builds them again.
func TestSnapshotRelatives(t *testing.T) {
	cycles := 5
	if soak {
		cycles = 20
	}
	root, ask := relatives(t)
	folder, target := t.TempDir(), strconv.Itoa(root)
	for n := range cycles {
		ask("zombies")
		told := ask("told")
		image := filepath.Join(folder, strconv.Itoa(n))
		vos(t, "checkpoint", target, "--tree", "-D", image+"now", "--leave-running").expect(t, 0)
		endAndRestore(t, root, image)
		if again := ask("told"); again != told {
			t.Fatalf("the end of a child was told %s times, and before %s times", again, told)
		}
		if got := ask("reap"); got != howTheyEnded {
			t.Fatalf("they have ended by %q, want %q", got, howTheyEnded)
		}
	}
	r := vos(t, "image", filepath.Join(folder, "0")).expect(t, 0)
	if !strings.Contains(r.Stdout, "ended") {
		t.Errorf("the image does not show who has ended: %s", r.Stdout)
	}
}

// TestSnapshotLeftJob checkpoints a shell with a job whose first process, which led its
// group, has ended: it is the shell's job as before.
func TestSnapshotLeftJob(t *testing.T) {
	y := holdTerminal(t, testbed.NeedTool(t, "bash"), "--norc")
	y.types(t, "PS1='ready> '; true | sleep 1000 &\r", "ready> ")
	y.types(t, "\r", "ready> ")
	alone := func() bool {
		all := below(t, y.root)
		return len(all) == 2 && all[1].group != all[1].pid
	}
	await(t, "the first process of the job to end", alone)
	folder := t.TempDir()
	for n := range 3 {
		y.restored(t, filepath.Join(folder, strconv.Itoa(n)))
		y.types(t, fmt.Sprintf("echo $((%d+40)) $(jobs)\r", n), strconv.Itoa(n+40), "Running", "ready> ")
	}
	y.types(t, "fg\r", "sleep 1000\r")
	await(t, "the job to be in the foreground", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", below(t, y.root)[0].pid))
		return err == nil && strings.Contains(string(stat), fmt.Sprintf(" %d ", below(t, y.root)[1].group))
	})
	y.types(t, "\x03", "^C", "ready> ")
	await(t, "the job to end", func() bool { return len(below(t, y.root)) == 1 })
}
