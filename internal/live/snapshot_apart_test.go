package live

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// pins is where vos holds the namespaces of programs that it has ended.
const pins = "/run/vos/namespaces"

// A service is a redis-server in namespaces of its own, with a /tmp of its own, as a
// service manager starts one.
type service struct {
	pid        int
	namespaces []string
}

const serviceScript = `mount -t tmpfs tmpfs /tmp && ip link set lo up && echo inner >/proc/sys/kernel/hostname && echo here >/tmp/mark || exit 1
	run() { exec "$0" --port 7777 --dir /tmp --save "" --bind 127.0.0.1 --unixsocket /tmp/sock --logfile /tmp/log; }
	case $1 in within) setsid sh -c "$(printf 'exec "%s" --port 7777 --dir /tmp --save "" --bind 127.0.0.1 --unixsocket /tmp/sock --logfile /tmp/log' "$0")" & while :; do wait; read x; done ;; *) run ;; esac`

func startService(t *testing.T, kinds string) *service {
	t.Helper()
	server := testbed.NeedTool(t, "redis-server")
	how := append([]string{testbed.NeedTool(t, "unshare")}, strings.Fields(kinds)...)
	where := "alone"
	if slices.Contains(how, "--pid") {
		where = "within"
	}
	s := &service{pid: startAlone(t, append(how, testbed.NeedTool(t, "sh"), "-c", serviceScript, server, where)...)}
	if where == "within" { // below the first process of the pid namespace
		await(t, "the server to be born", func() bool {
			all := tree(t, s.pid)
			for _, r := range all {
				if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.pid)); err == nil && strings.TrimSpace(string(name)) == "redis-server" {
					s.pid = r.pid
					return true
				}
			}
			return false
		})
	}
	await(t, "the server to listen", func() bool { return s.ask("ping") == "PONG" })
	s.namespaces = s.links(t)
	return s
}

// ask asks the server, in its network.
func (s *service) ask(args ...string) string {
	// Of a server that is just being ended or built there is no answer.
	out, _ := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(s.pid), "--net", "redis-cli", "-p", "7777"}, args...)...).Output()
	return strings.TrimSpace(string(out))
}

func (s *service) links(t *testing.T) (all []string) {
	t.Helper()
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", s.pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, link)
	}
	return all
}

// end waits for the end of the server, whoever its parent is.
func (s *service) end(t *testing.T) {
	t.Helper()
	await(t, "the server to end", func() bool {
		var status syscall.WaitStatus
		_, _ = syscall.Wait4(s.pid, &status, syscall.WNOHANG, nil) // it may be another's child
		return syscall.Kill(s.pid, 0) != nil
	})
}

// back finds the server again, which may have another id here.
func (s *service) back(t *testing.T, r result) {
	t.Helper()
	r.expect(t, 0)
	s.pid = lines[struct{ PID int }](t, r)[0].PID
	await(t, "the server to answer", func() bool { return s.ask("ping") == "PONG" })
	if now := s.links(t); !slices.Equal(now, s.namespaces) {
		t.Errorf("it is in the namespaces %v, and was in %v", now, s.namespaces)
	}
}

func pinned(t *testing.T) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(pins)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return entries
}

// TestSnapshotApart checkpoints services in namespaces of their own, ends them, and builds
// them again in the same ones.
func TestSnapshotApart(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	for name, kinds := range map[string]string{
		"mounts":     "--mount",
		"service":    "--mount --ipc --uts --net",
		"containers": "--mount --ipc --uts --net --cgroup --pid --fork --mount-proc",
	} {
		t.Run(name, func(t *testing.T) {
			kept := len(pinned(t))
			s := startService(t, kinds)
			images := t.TempDir()
			pid := strconv.Itoa(s.pid)
			if r := vos(t, "check", pid); r.Code != 0 || !strings.Contains(r.Stderr, "mnt") {
				t.Fatalf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
			}
			parent := filepath.Join(images, "first")
			vos(t, "checkpoint", pid, "-D", parent, "--leave-running").expect(t, 0)
			vos(t, "restore", "-D", parent).refuses(t, "namespace_gone")
			for n := range cycles {
				if got := s.ask("incr", "n"); got != strconv.Itoa(n+1) {
					t.Fatalf("it has counted to %s", got)
				}
				image := filepath.Join(images, strconv.Itoa(n))
				vos(t, "checkpoint", strconv.Itoa(s.pid), "-D", image, "--parent", parent).expect(t, 0)
				s.end(t)
				if r := vos(t, "image", image); r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, "namespaces of its own: ") {
					t.Fatalf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
				}
				if now := pinned(t); len(now) != kept+1 {
					t.Fatalf("%d namespaces are held, not %d", len(now), kept+1)
				}
				s.back(t, vos(t, "restore", "-D", image, "--json"))
				parent = image
			}
			if len(pinned(t)) != kept {
				t.Error("its namespaces are still held")
			}
			vos(t, "restore", "-D", parent).refuses(t, "namespace_gone")
			mark, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/mark", s.pid))
			if err != nil || string(mark) != "here\n" {
				t.Errorf("in its own /tmp there is %q, %v", mark, err)
			}
			if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.end(t)
			if name == "mounts" {
				s.namespaces = (&service{pid: os.Getpid()}).links(t)
				s.back(t, vos(t, "restore", "-D", parent, "--here", "--close-connections", "--json"))
			}
		})
	}
}

// TestSnapshotApartClosed refuses what is in a mount namespace without /proc.
func TestSnapshotApartClosed(t *testing.T) {
	pid := startAlone(t, testbed.NeedTool(t, "unshare"), "--mount", testbed.NeedTool(t, "sh"), "-c", "umount -l /proc && exec sleep 1000")
	await(t, "it to sleep", func() bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(name) == "sleep\n"
	})
	vos(t, "check", strconv.Itoa(pid)).refuses(t, "foreign_namespace")
	vos(t, "checkpoint", strconv.Itoa(pid), "-D", filepath.Join(t.TempDir(), "image")).refuses(t, "foreign_namespace")
	checkFree(t, pid)
}

// refuses wants a command to be refused by a code.
func (r result) refuses(t *testing.T, code string) {
	t.Helper()
	if r.Code != 7 || !strings.Contains(r.Stderr, code) {
		t.Fatalf("exit code %d, without %s: %s%s", r.Code, code, r.Stdout, r.Stderr)
	}
}

// TestSnapshotApartKilled kills vos while it checkpoints a service in namespaces of its
// own, or builds it again: the service runs, or there is an image of which it can be
// built. What a vos has left of its holds another one takes away.
func TestSnapshotApartKilled(t *testing.T) {
	kills := 30
	if soak {
		kills = 300
	}
	s := startService(t, "--mount --ipc --uts --net")
	kept := len(pinned(t))
	folder := t.TempDir()
	for n := range kills {
		image := filepath.Join(folder, strconv.Itoa(n))
		killVOS(t, s, "checkpoint", strconv.Itoa(s.pid), "-D", image)
		if _, err := os.Stat(image); err != nil {
			await(t, "the server to go on", func() bool { return s.ask("ping") == "PONG" })
			continue
		}
		s.end(t)
		killVOS(t, s, "restore", "-D", image)
		// It is there already, and its namespaces may still be held, until another
		// checkpoint when its image is gone. Or nothing is left of it.
		there := false
		await(t, "the server to go on, or to be gone", func() bool {
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(s.pid, &status, syscall.WNOHANG, nil)
			there = s.ask("ping") == "PONG"
			return there || syscall.Kill(s.pid, 0) != nil
		})
		if !there {
			s.back(t, vos(t, "restore", "-D", image, "--json"))
		}
		if err := os.RemoveAll(image); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(folder, "last")
	vos(t, "checkpoint", strconv.Itoa(s.pid), "-D", image).expect(t, 0)
	s.end(t)
	s.back(t, vos(t, "restore", "-D", image, "--json"))
	if now := len(pinned(t)); now != kept {
		t.Errorf("%d namespaces are held, and were %d", now, kept)
	}
}

// killVOS kills a vos at any time, and waits until the one that it had started in the
// namespaces is gone, too.
func killVOS(t *testing.T, s *service, args ...string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(rand.Int64N(int64(80 * time.Millisecond))))
	_ = cmd.Process.Kill() // it may be done
	_ = cmd.Wait()
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	await(t, "the vos inside to end", func() bool {
		children, err := self.Children()
		if err != nil {
			t.Fatal(err)
		}
		ended := true
		for _, child := range children {
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && (string(name) == "exe\n" || string(name) == "vos\n") { // it has not executed yet
				var status syscall.WaitStatus
				reaped, err := syscall.Wait4(child, &status, syscall.WNOHANG, nil)
				ended = ended && err == nil && reaped == child
			}
		}
		return ended
	})
}
