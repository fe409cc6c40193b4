package procfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// In a container, files are on an overlay of another mount namespace: the
// reader sees them only through the process's root, and (depending on the
// kernel) with device numbers that differ between maps and stat.
func TestOverlay(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedTool(t, "setpriv")
	binary := mapperBinary(t)
	dir := publicDirectory(t)
	inside := filepath.Join(dir, "merged")
	script := `set -e
		mount -t tmpfs -o mode=755 none "$1"
		cd "$1"; mkdir lower upper work merged
		mount -t tmpfs none lower # two file systems: stat then invents devices
		for f in same gone replaced; do echo "$f" >lower/$f; done
		mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,xino=off overlay merged
		exec setpriv --reuid 65534 --regid 65534 --clear-groups "$2" "$1"/merged/same "$1"/merged/gone "$1"/merged/replaced`
	if out, err := exec.Command("unshare", "-m", "sh", "-c", script, "sh", dir, "/bin/true").CombinedOutput(); err != nil {
		known, readErr := os.ReadFile("/proc/filesystems") // after the mount, which loads it
		if readErr == nil && !strings.Contains(string(known), "\toverlay\n") {
			t.Skip("this kernel has no overlay file system")
		}
		t.Fatalf("mount an overlay: %v: %s", err, out)
	}
	_, p := mapper(t, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", script, "sh", dir, binary}
		cmd.Path = "/bin/sh"
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	})
	// From outside only its root leads there.
	there := "/proc/" + strconv.Itoa(p.PID()) + "/root" + inside
	if err := os.Remove(there + "/gone"); err != nil {
		t.Fatal(err)
	}
	if err := overwriteByRename(there + "/replaced"); err != nil {
		t.Fatal(err)
	}
	check := func(who string, privileged bool) {
		maps, err := p.Maps()
		if err != nil {
			t.Errorf("%s: %v", who, err)
			return
		}
		found := 0
		for _, m := range maps {
			name, ok := strings.CutPrefix(m.Path, inside+"/")
			if !ok {
				continue
			}
			found++
			want := map[string]FileChange{"same": FileSame, "gone": FileDeleted, "replaced": FileReplaced}[name]
			if state := p.FileState(m); state.Change != want {
				t.Errorf("%s: %v: %v (%v), want %v", who, &m, state.Change, state.Why, want)
			}
			file, err := p.OpenMapped(m)
			if (err == nil) != (privileged || want == FileSame) {
				t.Errorf("%s: open %v: %v", who, &m, err)
			}
			if err == nil {
				st, _ := kernel.StatFile(file)
				major, minor := kernel.Device(st.Device)
				t.Logf("%s: %s is %d:%d %d in maps, %d:%d %d by stat", who, name, m.DevMajor, m.DevMinor, m.Inode, major, minor, st.Inode)
				content := make([]byte, 64)
				n, _ := file.Read(content)
				if string(content[:n]) != name+"\n" {
					t.Errorf("%s: %s holds %q", who, name, content[:n])
				}
				file.Close()
			}
		}
		if found != 3 {
			t.Errorf("%s: %d mappings in the overlay, want 3", who, found)
		}
	}
	check("root", true)
	asUser(t, func() { check("user", false) })
}
