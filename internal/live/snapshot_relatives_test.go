package live

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
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
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return "", err
		}
		// The server ends the connection last: then it has none.
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			return "", fmt.Errorf("the connection does not end: %w", err)
		}
		return strings.TrimSpace(answer), nil
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

// TestSnapshotRelativesKilled kills vos at random instants of checkpoints and restores of
// them: they go on, or have ended behind an image; they are built again, or nothing of them
// is there; nobody was waited for, or has ended twice.
func TestSnapshotRelativesKilled(t *testing.T) {
	kills := 20
	if soak {
		kills = 300
	}
	root, ask := relatives(t)
	folder, target := t.TempDir(), strconv.Itoa(root)
	ask("zombies")
	settled(t, target)
	limit := whole(t, "checkpoint", "--tree", target, "-D", filepath.Join(folder, "base"), "--leave-running")
	killed, ended, built := 0, 0, 0
	for n := range kills {
		image := filepath.Join(folder, strconv.Itoa(n))
		settled(t, target)
		told, before := ask("told"), tree(t, root)
		f, passing := &family{}, &family{}
		for _, r := range before {
			if (&family{pids: []int{r.pid}}).there() == nil {
				passing.pids = append(passing.pids, r.pid)
			} else {
				f.pids = append(f.pids, r.pid)
			}
			// Who stands for a leader has its id, and ends with a restore that is killed.
			for _, leader := range []int{r.group, r.session} {
				if !slices.ContainsFunc(before, func(o relative) bool { return o.pid == leader }) {
					passing.pids = append(passing.pids, leader)
				}
			}
		}
		if killAfter(t, time.Duration(rand.Int64N(int64(limit*time.Duration(1+2*(n%3))))), []string{"checkpoint", "--tree", target, "-D", image}) {
			killed++
		}
		_, err := os.Stat(image)
		if complete := err == nil; f.ended(t) {
			if !complete {
				t.Fatalf("they have ended, image %v", err)
			}
			ended++
			f.gone(t)
			passing.gone(t)
			if killAfter(t, time.Duration(rand.Int64N(int64(limit*time.Duration(1+n%3)))), []string{"restore", "-D", image}) {
				killed++
			}
			if f.settled(t) {
				built++
			} else {
				passing.gone(t)
				vos(t, "restore", "-D", image).expect(t, 0)
			}
		}
		if after := tree(t, root); !slices.Equal(after, before) {
			t.Fatalf("processes, parents, groups and sessions were %v and are %v", before, after)
		}
		for _, pid := range f.pids {
			checkFree(t, pid)
		}
		if again := ask("told"); again != told {
			t.Fatalf("the end of a child was told %s times, and before %s times", again, told)
		}
		if got := ask("reap"); got != howTheyEnded {
			t.Fatalf("they have ended by %q, want %q", got, howTheyEnded)
		}
		ask("zombies")
	}
	t.Logf("%d of %d runs were killed before their end, the program ended %d times, %d times it was there behind a restore that was killed", killed, kills+ended, ended, built)
	if killed == 0 {
		t.Errorf("none of %d runs was killed", kills)
	}
}

// TestSnapshotRelativesTakenIDs restores them where nobody has waited for the end of the
// root, in a namespace of their own.
func TestSnapshotRelativesTakenIDs(t *testing.T) {
	root, ask := relatives(t)
	ask("zombies")
	image, target := filepath.Join(t.TempDir(), "image"), strconv.Itoa(root)
	settled(t, target)
	before := tree(t, root)
	vos(t, "checkpoint", target, "--tree", "-D", image).expect(t, 0)
	if s := lines[api.Snapshot](t, vos(t, "restore", "-D", image, "--json").expect(t, 7)); s[0].Refusals[0].Code != "pid_taken" {
		t.Fatalf("restored where its id is taken: %+v", s)
	}
	s := lines[api.Snapshot](t, vos(t, "restore", "-D", image, "--pid-any", "--json").expect(t, 0))
	if got := ask("reap"); got != howTheyEnded {
		t.Errorf("they have ended by %q, want %q", got, howTheyEnded)
	}
	first := number(t, field(s[0].PID, "PPid"))
	if after := tree(t, s[0].PID); len(after) != len(before)-3 {
		t.Errorf("%d processes are %d, when three were waited for", len(before), len(after))
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reapAll(append(before, relative{pid: first}))
}

// TestSnapshotLeftJob checkpoints a shell with a job whose first process, which led its
// group, has ended: it is the shell's job as before.
func TestSnapshotLeftJob(t *testing.T) {
	y := holdTerminal(t, testbed.NeedTool(t, "bash"), "--norc")
	y.types(t, "PS1='ready> '; true | sleep 1000 &\r", prompt)
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
