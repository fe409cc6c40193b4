package live

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A family is a program of several processes that counts, in memory that all share.
type family struct {
	kept
	ask  func(t *testing.T) int // the next number
	size int                    // how many processes it has when it is whole
	pids []int                  // the root first
}

// families are the programs whose trees are checkpointed: how to start one at a port, and
// how to ask it for the next number.
var families = map[string]func(t *testing.T, f *family, folder string) (command []string){
	"nginx": func(t *testing.T, f *family, folder string) []string {
		// The number of a connection counts those of all workers.
		text := fmt.Sprintf("daemon off;\nworker_processes 3;\npid %[1]s/pid;\nerror_log %[1]s/log;\nevents {}\nhttp {\n"+
			"access_log off;\nkeepalive_timeout 0;\nserver { listen 127.0.0.1:%[2]d; location / { return 200 \"$connection\\n\"; } }\n}\n", folder, f.port)
		conf := filepath.Join(folder, "conf")
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f.size = 4
		f.ask = func(t *testing.T) int {
			t.Helper()
			return number(t, f.say(t, "GET /\r\n")) // of HTTP/0.9, whose answer is the content alone
		}
		return []string{testbed.NeedTool(t, "nginx"), "-c", conf}
	},
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// startFamily starts a program in a session of its own, and waits until its tree is whole.
func startFamily(t *testing.T, name string) *family {
	t.Helper()
	f := &family{}
	f.port = number(t, freePort(t))
	command := families[name](t, f, t.TempDir())
	t.Cleanup(func() {
		for _, pid := range f.pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		await(t, "its processes to be gone", func() bool { reap(t); return len(f.there()) == 0 })
	})
	f.start(t, command...)
	f.pids = []int{f.pid}
	await(t, "its processes to be there", func() bool {
		f.pids = append([]int{f.pid}, testbed.Children(f.pid)...)
		return len(f.pids) == f.size
	})
	f.last = f.ask(t)
	f.next(t)
	return f
}

func (f *family) next(t *testing.T) {
	t.Helper()
	if n := f.ask(t); n != f.last+1 {
		t.Fatalf("answered %d after %d", n, f.last)
	}
	f.last++
}

// there returns those of its processes that have not ended.
func (f *family) there() (pids []int) {
	for _, pid := range f.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])); fields[0] != "Z" && fields[0] != "X" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// rest waits until no connection is open any more, and nobody but its processes is there.
func (f *family) rest(t *testing.T) {
	t.Helper()
	await(t, "its connections to be closed", func() bool {
		return vos(t, "check", "--tree", f.target()).Code == 0 && f.whole()
	})
}

// whole reports whether its processes are those that they were, as they were related.
func (f *family) whole() bool {
	return slices.Equal(append([]int{f.pid}, testbed.Children(f.pid)...), f.pids)
}

func (f *family) gone(t *testing.T) {
	t.Helper()
	await(t, "its processes to be gone", func() bool {
		reap(t)
		return !slices.ContainsFunc(f.pids, func(pid int) bool {
			_, err := os.Lstat(fmt.Sprintf("/proc/%d", pid))
			return err == nil
		})
	})
}

// TestSnapshotTreeKilled kills vos at random instants of checkpoints and restores of a
// tree: it goes on whole, or has ended whole behind an image; it is built again whole, or
// nothing of it is there.
func TestSnapshotTreeKilled(t *testing.T) {
	kills := 20
	if soak {
		kills = 300
	}
	for name := range families {
		t.Run(name, func(t *testing.T) {
			f := startFamily(t, name)
			folder := t.TempDir()
			base, image := filepath.Join(folder, "base"), filepath.Join(folder, "image")
			f.rest(t)
			limit := time.Hour
			for range 3 {
				if err := os.RemoveAll(base); err != nil {
					t.Fatal(err)
				}
				limit = min(limit, whole(t, "checkpoint", "--tree", f.target(), "-D", base, "--leave-running"))
			}
			killed, ended, built := 0, 0, 0
			for n := range kills {
				f.rest(t)
				args := []string{"checkpoint", "--tree", f.target(), "-D", image}
				if n%4 == 0 {
					args = append(args, "--leave-running")
				}
				if killAfter(t, time.Duration(rand.Int64N(int64(limit*time.Duration(1+2*(n%5))))), args) {
					killed++
				}
				_, err := os.Stat(image)
				complete := err == nil
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				if f.ended(t) {
					if !complete || n%4 == 0 {
						t.Fatalf("it has ended, image %v", err)
					}
					ended++
					f.gone(t)
					if killAfter(t, time.Duration(rand.Int64N(int64(limit*time.Duration(1+n%3)/2))), []string{"restore", "-D", image}) {
						killed++
					}
					if f.settled(t) {
						built++
					} else {
						vos(t, "restore", "-D", image).expect(t, 0)
					}
				}
				f.next(t)
				f.next(t)
				for _, pid := range f.pids {
					checkFree(t, pid)
				}
				if err := os.RemoveAll(image); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d runs were killed before their end, the program ended %d times, %d times it was there behind a restore that was killed", killed, kills+ended, ended, built)
			if killed == 0 {
				t.Errorf("none of %d runs was killed", kills)
			}
		})
	}
}

// ended reports whether all processes have ended, which are about to or are not: once one
// has, all must.
func (f *family) ended(t *testing.T) bool {
	t.Helper()
	for range 50 {
		if len(f.there()) < len(f.pids) {
			await(t, "all of its processes to end", func() bool { return len(f.there()) == 0 })
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// settled reports whether a restore that was killed has left the program, once that is
// sure: then all of it is there, and nobody traces it.
func (f *family) settled(t *testing.T) (there bool) {
	t.Helper()
	await(t, "what was half built to be gone", func() bool {
		reap(t)
		free := 0
		for _, pid := range f.pids {
			if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil && strings.Contains(string(text), "TracerPid:\t0") {
				free++
			}
		}
		// What is left of one that was let go may still be on its way to its end.
		there = free == len(f.pids) && !f.ended(t)
		return there || len(f.there()) == 0
	})
	if !there {
		f.gone(t)
	}
	return there
}
