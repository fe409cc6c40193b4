package live

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A kept is a server that counts: each connection is answered by the next number.
type kept struct {
	pid  int
	port int
	ask  string // what a connection sends
	last int    // the number answered last

	tree    []string // "--tree", if it is several processes
	members []int    // the others of them, as of the last look
}

// servers are the programs that are checkpointed: how to start one at a port, and what
// it is asked.
var servers = map[string]func(t *testing.T, port, folder string) (command []string, ask string){
	"redis": func(t *testing.T, port, folder string) ([]string, string) {
		return []string{testbed.NeedTool(t, "redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder}, "INCR n\r\n"
	},
	"python3 with sqlite in a transaction": func(t *testing.T, port, folder string) ([]string, string) {
		return []string{testbed.NeedTool(t, "python3"), data(t, "numbers.py"), port, filepath.Join(folder, "db")}, "next\n"
	},
	"node": func(t *testing.T, port, _ string) ([]string, string) {
		return []string{testbed.NeedTool(t, "node"), data(t, "numbers.js"), port}, "next\n"
	},
	"Java": func(t *testing.T, port, folder string) ([]string, string) {
		return []string{testbed.NeedTool(t, "java"), "-Xmx64m", data(t, "Numbers.java"), port}, "next\n"
	},
	"Go": func(t *testing.T, port, _ string) ([]string, string) {
		return []string{testbed.MustCompile(t, testbed.Build{Name: "numbers", Language: "go", Source: text(t, "numbers.go")}), port}, "next\n"
	},
	prefork: func(t *testing.T, port, folder string) ([]string, string) {
		return []string{testbed.NeedTool(t, "python3"), data(t, "prefork.py"), port, filepath.Join(folder, "lock")}, "next\n"
	},
	"memcached": func(t *testing.T, port, _ string) ([]string, string) {
		return []string{testbed.NeedTool(t, "memcached"), "-p", port, "-l", "127.0.0.1", "-U", "0", "-u", "nobody", "-t", "4"}, "incr n 1\r\n"
	},
}

// prefork is the server of several processes.
const prefork = "python3 of several processes"

func data(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startKept starts a server in a session of its own, which nobody shares anything with.
func startKept(t *testing.T, name string) *kept {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{port: l.Addr().(*net.TCPAddr).Port}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	command, ask := servers[name](t, strconv.Itoa(k.port), t.TempDir())
	k.ask = ask
	if name == prefork {
		k.tree = []string{"--tree"}
	}
	k.start(t, command...)
	if name == "memcached" {
		k.say(t, "set n 0 0 1\r\n0\r\n")
	}
	first, err := strconv.Atoi(k.say(t, k.ask))
	if err != nil {
		t.Fatal(err)
	}
	k.last = first // the connection before may have been counted, too
	k.next(t)
	return k
}

// start starts a program that nobody shares anything with, and waits until it listens.
func (k *kept) start(t *testing.T, command ...string) {
	t.Helper()
	alone := testbed.MustCompile(t, testbed.Build{Name: "alone", Source: text(t, "alone.c")})
	cmd := exec.Command(alone, command...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.pid = cmd.Process.Pid
	t.Cleanup(func() {
		k.look(t)
		if syscall.Kill(k.pid, syscall.SIGKILL) == nil {
			for _, pid := range k.members {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
			k.wait(t)
		}
	})
	await(t, command[0]+" to listen", func() bool {
		c, err := net.Dial("tcp", k.address())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (k *kept) address() string { return fmt.Sprintf("127.0.0.1:%d", k.port) }

// say sends something and returns the first line of the answer.
func (k *kept) say(t *testing.T, what string) string {
	t.Helper()
	c, err := net.Dial("tcp", k.address())
	if err != nil {
		t.Fatal(err)
	}
	return answered(t, c, what)
}

// answered sends something and returns the first line of the answer. The connection is
// closed then.
func answered(t *testing.T, c net.Conn, what string) string {
	t.Helper()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("%q was answered by %q, %v", what, line, err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), ":")
}

// next asks for the next number, which follows the last.
func (k *kept) next(t *testing.T) {
	t.Helper()
	line := k.say(t, k.ask)
	n, err := strconv.Atoi(line)
	if err != nil || n != k.last+1 {
		t.Fatalf("answered %q after %d", line, k.last)
	}
	k.last = n
}

// look looks which processes it has.
func (k *kept) look(t *testing.T) {
	t.Helper()
	if k.tree == nil {
		return
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", k.pid, k.pid))
	if err != nil {
		return // it is not there
	}
	k.members = nil
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		k.members = append(k.members, pid)
	}
}

// wait waits for the end of the server: its parent, or the next subreaper, are the tests.
func (k *kept) wait(t *testing.T) {
	t.Helper()
	for _, pid := range append([]int{k.pid}, k.members...) {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil && !errors.Is(err, syscall.ECHILD) {
			t.Errorf("wait for %d: %v", pid, err)
		}
	}
}

// command is a command of vos for it, and all that belongs to it.
func (k *kept) command(args ...string) []string {
	return append(slices.Clone(args), k.tree...)
}

func (k *kept) target() string { return strconv.Itoa(k.pid) }

// rest waits until the server has closed its connections: one that is about to end is
// not kept.
func (k *kept) rest(t *testing.T) {
	t.Helper()
	await(t, "its connections to be closed", func() bool {
		return !k.connected(t) && vos(t, k.command("check", k.target())...).Code == 0
	})
	k.look(t)
}

// connected reports whether a socket at the server's port has an owner, but the one that
// listens.
func (k *kept) connected(t *testing.T) bool {
	t.Helper()
	return connected(t, "/proc/net/tcp", fmt.Sprintf(":%04X", k.port))
}

// connected is that of a table of sockets, and of those whose address ends so.
func connected(t *testing.T, table, end string) bool {
	t.Helper()
	text, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	const local, state, inode, listens = 1, 3, 9, "0A"
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > inode && f[local] != "local_address" && strings.HasSuffix(f[local], end) && f[state] != listens && f[inode] != "0" {
			return true
		}
	}
	return false
}

// TestSnapshotCycles checkpoints servers, ends them, and builds them again; between
// that they are checkpointed and go on.
func TestSnapshotCycles(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	for name := range servers {
		if name == "Java" && !soak {
			continue // it takes long to begin
		}
		t.Run(name, func(t *testing.T) {
			k := startKept(t, name)
			folder := t.TempDir()
			for n := range cycles {
				k.rest(t)
				now, later := filepath.Join(folder, fmt.Sprint("now", n)), filepath.Join(folder, fmt.Sprint("later", n))
				vos(t, k.command("checkpoint", k.target(), "-D", now, "--leave-running")...).expect(t, 0)
				k.next(t)
				k.next(t)
				k.rest(t)
				vos(t, k.command("checkpoint", k.target(), "-D", later, "--parent", now, "--compress", []string{"none", "zstd"}[n%2])...).expect(t, 0)
				k.wait(t)
				vos(t, "image", later).expect(t, 0)
				vos(t, "restore", "-D", later).expect(t, 0)
				k.next(t)
				vos(t, "verify", "--full", k.target()).expect(t, 0)
				checkFree(t, k.pid)
			}
			// What is restored is a program like others.
			vos(t, "refresh", k.target()).expect(t, 0)
			k.next(t)
			if left, err := os.ReadDir(folder); err != nil || len(left) != 2*cycles {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// TestSnapshotKilled kills vos at random instants of checkpoints and restores: the
// server answers on, or ended behind a whole image; it is built again once, or not
// there at all.
func TestSnapshotKilled(t *testing.T) {
	kills := 40
	if soak {
		kills = 300
	}
	for _, name := range []string{"redis", "Go", prefork} {
		t.Run(name, func(t *testing.T) {
			k := startKept(t, name)
			folder := t.TempDir()
			base := filepath.Join(folder, "base")
			k.rest(t)
			limit := time.Hour
			for range 4 {
				if err := os.RemoveAll(base); err != nil {
					t.Fatal(err)
				}
				limit = min(limit, whole(t, k.command("checkpoint", k.target(), "-D", base, "--leave-running")...))
			}
			killed, ended, built := 0, 0, 0
			for n := range kills {
				image := filepath.Join(folder, "image")
				args := k.command("checkpoint", k.target(), "-D", image)
				if n%3 == 0 {
					args = append(args, "--leave-running")
				}
				k.rest(t)
				if killAfter(t, time.Duration(rand.Int64N(int64(limit*3))), args) {
					killed++
				}
				_, err := os.Stat(image)
				complete := err == nil
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				if dead(t, k.pid) {
					if !complete || n%3 == 0 {
						t.Fatalf("it has ended, image %v", err)
					}
					ended++
					k.wait(t)
					if killAfter(t, time.Duration(rand.Int64N(int64(limit*2))), []string{"restore", "-D", image}) {
						killed++
					}
					if k.built(t) {
						built++
					} else {
						vos(t, "restore", "-D", image).expect(t, 0)
					}
				}
				k.next(t)
				checkFree(t, k.pid)
				if complete {
					vos(t, "image", image).expect(t, 0)
					if err := os.RemoveAll(image); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Logf("%d of %d runs were killed before their end, the program ended %d times, %d times it was there behind a restore that was killed", killed, kills+ended, ended, built)
			if killed < kills/4 || soak && ended == 0 {
				t.Errorf("%d of %d runs were killed, the program ended %d times", killed, kills, ended)
			}
			k.rest(t)
			vos(t, k.command("checkpoint", k.target(), "-D", filepath.Join(folder, "image"), "--leave-running")...).expect(t, 0)
			if left, err := os.ReadDir(folder); err != nil || len(left) != 2 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// built reports whether a restore that was killed has left a program, once that is
// sure: what was half built dies with vos, and becomes a child of the tests.
func (k *kept) built(t *testing.T) (there bool) {
	t.Helper()
	await(t, "what was half built to be gone", func() bool {
		reap(t)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.pid))
		there = err == nil
		for _, pid := range k.members {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !there && err == nil {
				return false
			}
		}
		return !there || strings.Contains(string(text), "TracerPid:\t0") && !dead(t, k.pid)
	})
	return there
}

// reap waits for all that has ended, as a restore that was killed leaves it to the
// tests. No command of theirs may be running.
func reap(t *testing.T) {
	t.Helper()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err != nil && !errors.Is(err, syscall.ECHILD) {
			t.Fatal(err)
		}
		if err != nil || pid == 0 {
			return
		}
	}
}

// dead reports whether a process of the tests' has ended and was not waited for; it
// waits for those that are about to.
func dead(t *testing.T, pid int) bool {
	t.Helper()
	for range 50 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		if fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])); fields[0] == "Z" {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// TestSnapshotRefusals asks for what can't be.
func TestSnapshotRefusals(t *testing.T) {
	k := startKept(t, "redis")
	k.rest(t)
	folder := t.TempDir()
	image := filepath.Join(folder, "image")
	vos(t, "checkpoint", k.target(), "-D", image, "--leave-running").expect(t, 0)
	if got := vos(t, "restore", "-D", image).expect(t, 7); !strings.Contains(got.Stderr, "pid_taken") {
		t.Errorf("beside itself: %s", got.Stderr)
	}
	if got := vos(t, "checkpoint", k.target(), "-D", image).expect(t, 1); !strings.Contains(got.Stderr, "another directory") {
		t.Errorf("to a directory that is there: %s", got.Stderr)
	}
	vos(t, "restore", "-D", folder).expect(t, 1)
	index := filepath.Join(image, "index")
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(index, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := vos(t, "restore", "-D", image).expect(t, 1); !strings.Contains(got.Stderr, "damaged") {
		t.Errorf("damaged: %s", got.Stderr)
	}
	// A connection that waits to be accepted is not kept.
	alone := testbed.MustCompile(t, testbed.Build{Name: "alone", Source: text(t, "alone.c")})
	waiting := exec.Command(alone, testbed.NeedTool(t, "python3"), "-c", "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(1000)")
	port, err := waiting.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = waiting.Process.Kill()
		_ = waiting.Wait()
	}()
	line, err := bufio.NewReader(port).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := vos(t, "checkpoint", strconv.Itoa(waiting.Process.Pid), "-D", filepath.Join(folder, "no"), "--inherit", "0,1,2").expect(t, 7)
	if !strings.Contains(got.Stderr, "refused: ") || !strings.Contains(got.Stderr, "not_received") || !strings.Contains(got.Stderr, "remedy: ") {
		t.Errorf("%s", got.Stderr)
	}
	k.next(t)
	// Several processes are not kept yet.
	nginx := testbed.RunNginx(t, testbed.NginxOptions{})
	if got := vos(t, "check", strconv.Itoa(nginx.Pids()[0])).expect(t, 7); !strings.Contains(got.Stderr, "child_processes") {
		t.Errorf("nginx: %s", got.Stderr)
	}
}
