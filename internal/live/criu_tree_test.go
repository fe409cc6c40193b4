package live

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestCRIUTree writes an image of nginx with its workers in CRIU's format: crit sees the
// same relations, and where CRIU works it builds them, and they serve.
func TestCRIUTree(t *testing.T) {
	root, works := nginxTree(t)
	works(t)
	settled(t, strconv.Itoa(root))
	before := tree(t, root)
	image, out := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "criu")
	vos(t, "checkpoint", strconv.Itoa(root), "--tree", "-D", image).expect(t, 0)
	reapAll(before)
	vos(t, "image", image, "--criu", out).expect(t, 0)
	var found struct {
		Entries []struct{ PID, PPID, PGID, SID int } `json:"entries"`
	}
	if err := json.Unmarshal([]byte(printed(t, "crit", "show", filepath.Join(out, "pstree.img"))), &found); err != nil {
		t.Fatal(err)
	}
	var relatives []relative
	for _, e := range found.Entries {
		relatives = append(relatives, relative{e.PID, e.PPID, e.PGID, e.SID})
	}
	slices.SortFunc(relatives, func(a, b relative) int { return a.pid - b.pid })
	if !slices.Equal(relatives, before) {
		t.Errorf("crit finds %v, not %v", relatives, before)
	}
	printed(t, "crit", "x", out, "fds")
	printed(t, "crit", "x", out, "mems")

	t.Run("restored", func(t *testing.T) {
		criu := testbed.NeedTool(t, "criu")
		if said, err := exec.Command(criu, "check").CombinedOutput(); err != nil {
			t.Skipf("CRIU does not work on this machine: %v\n%s", err, said)
		}
		if said, err := exec.Command(criu, "restore", "-D", out, "-d", "--shell-job", "-o", "restore.log").CombinedOutput(); err != nil {
			text, _ := os.ReadFile(filepath.Join(out, "restore.log"))
			t.Fatalf("criu restore: %v\n%s%s", err, said, text)
		}
		if after := tree(t, root); !slices.Equal(after, before) {
			t.Errorf("there is %v, not %v", after, before)
		}
		works(t)
	})
}
