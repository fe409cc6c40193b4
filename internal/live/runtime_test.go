package live

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

const loader, libc = "ld-linux-x86-64.so.2", "libc.so.6"

// TestEveryRuntimeIsHealed corrupts executable, loader, C library and more of
// programs of every kind while they work: vos finds each, heals each, and the
// program never computes anything wrong.
func TestEveryRuntimeIsHealed(t *testing.T) {
	tests := []struct {
		name    string
		start   func(t *testing.T) *subject
		modules []string // besides the executable
	}{
		{"C, PIE", of("plain"), []string{loader, libc}},
		{"C, not PIE", of("nopie"), []string{loader, libc}},
		{"C, static", of("static"), nil},
		{"C, static PIE", of("static-pie"), nil},
		{"C++, exceptions across a library", of("cxx"), []string{loader, libc, "libthrower.so", "libstdc++.so.6", "libgcc_s.so.1"}},
		{"Go, busy goroutines", of("goprog"), nil},
		{"stackful coroutines", of("coroutine"), []string{loader, libc}},
		{"main thread has ended", of("sleepers"), []string{loader, libc}},
		{"Python with OpenSSL and SQLite", func(t *testing.T) *subject { return script(t, "python3", "work.py") },
			[]string{loader, libc, "libcrypto.so.3", "libssl.so.3", "libsqlite3.so.0"}},
		{"Node", func(t *testing.T) *subject { return script(t, "node", "work.js") }, []string{loader, libc, "libstdc++.so.6"}},
		{"Java", func(t *testing.T) *subject { return script(t, "java", "Work.java") }, []string{loader, libc, "libjvm.so", "libz.so.1"}},
		{"64 busy threads", of("threads", "64", "busy"), []string{loader, libc}},
		{"64 blocked threads", of("threads", "64", "blocked", "1"), []string{loader, libc}},
		{"128 threads, busy and blocked", of("threads", "128", "mixed", "5"), []string{loader, libc}},
		{"nginx worker", nginxWorker, []string{loader, libc, "libz.so.1", "libcrypto.so.3"}},
		{"redis", redisServer, []string{loader, libc}},
		{"memcached", memcachedServer, []string{loader, libc}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := test.start(t)
			have, executable := listed(t, s.pid)
			if executable == "" {
				t.Fatalf("no module is the executable: %v", have)
			}
			names := append([]string{executable}, test.modules...)
			for _, name := range names {
				if !slices.Contains(have, name) {
					t.Fatalf("it has no module %s, but %v", name, have)
				}
			}
			heal(t, s, vos, names...)
			// Once more, one of them by its name.
			name := names[len(names)-1]
			corruptGap(t, s.pid, name)
			refreshed(t, vos(t, "refresh", s.target()+":"+name, "--json"), name)
			vos(t, "verify", s.target()+":"+name).expect(t, 0)
			s.unharmed(t)
		})
	}
}

func of(name string, args ...string) func(*testing.T) *subject {
	return func(t *testing.T) *subject { return fixture(t, name, args...) }
}

// renamed copies a server to a name that no other program here has: who names one
// by its usual name means all that run on this machine.
func renamed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name) // not in every user's path
	}
	short, _, _ := strings.Cut(name, "-") // the kernel keeps 15 bytes of it
	own := filepath.Join(publicFolder(t), fmt.Sprintf("%s-%d", short, os.Getpid()))
	copyFile(t, path, own)
	return own
}

func nginxWorker(t *testing.T) *subject {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Workers: 1, Binary: renamed(t, "nginx")})
	return underLoad(t, "nginx", nginx.Workers()[0], nginx.Load(context.Background(), testbed.LoadOptions{}))
}

func redisServer(t *testing.T) *subject {
	redis := testbed.RunRedis(t, testbed.RedisOptions{Binary: renamed(t, "redis-server")})
	return underLoad(t, "redis", redis.Pid(), redis.Load(context.Background(), testbed.LoadOptions{}))
}

func memcachedServer(t *testing.T) *subject {
	memcached := testbed.RunMemcached(t, testbed.MemcachedOptions{})
	return underLoad(t, "memcached", memcached.Pid(), memcached.Load(context.Background(), testbed.LoadOptions{}))
}

// TestRunningCodeIsRefreshed heals every page of code, those that threads run
// in at that moment included, again and again.
func TestRunningCodeIsRefreshed(t *testing.T) {
	tests := []struct {
		name    string
		start   func(t *testing.T) *subject
		modules []string // besides the executable
		rounds  int
	}{
		{"64 busy threads", of("threads", "64", "busy"), []string{loader, libc}, 4},
		{"64 threads that wake each other", of("threads", "64", "blocked", "1"), []string{loader, libc}, 8},
		{"threads, children and libraries that come and go", of("churn", "threads", "forks", "spawns"), []string{libc}, 8},
		{"C++ exceptions", of("cxx"), []string{loader, libc, "libthrower.so", "libstdc++.so.6"}, 8},
		{"static", of("static"), nil, 8},
		{"Go", of("goprog"), nil, 8},
		{"nginx worker", nginxWorker, []string{libc, "libz.so.1"}, 8},
		{"redis", redisServer, []string{libc}, 8},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := test.start(t)
			_, executable := listed(t, s.pid)
			names := append([]string{executable}, test.modules...)
			healed := 0
			for range test.rounds {
				corrupt := make(map[string]int)
				for _, name := range names {
					corrupt[name] = corruptPages(t, s.pid, name)
				}
				done := refreshed(t, vos(t, "refresh", s.target(), "--json"), names...)
				for name, pages := range corrupt {
					if done[name].Pages != pages {
						t.Errorf("%d pages of %s were healed, %d were corrupt", done[name].Pages, name, pages)
					}
					healed += pages
				}
				s.unharmed(t)
			}
			vos(t, "verify", s.target(), "--full").expect(t, 0)
			t.Logf("%d pages healed", healed)
		})
	}
}

// TestPagesThatAreRightRaiseNoAlarm makes all code private copies that hold what
// the file says: nothing differs, nothing is done.
func TestPagesThatAreRightRaiseNoAlarm(t *testing.T) {
	s := fixture(t, "threads", "64", "mixed", "1")
	own := map[string]int{libc: ownPages(t, s.pid, libc), loader: ownPages(t, s.pid, loader), "threads": ownPages(t, s.pid, "threads")}
	for _, m := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
		if m.DirtyTextPages != own[m.Module] || m.Corrupt || !m.Refreshable {
			t.Errorf("%s: %d pages of its own, want %d; corrupt %v, refreshable %v", m.Module, m.DirtyTextPages, own[m.Module], m.Corrupt, m.Refreshable)
		}
	}
	vos(t, "verify", s.target()).expect(t, 0)
	refreshed(t, vos(t, "refresh", s.target(), "--full", "--json"))
	s.unharmed(t)
}

// TestStoppedProgramStaysStopped heals a program that somebody stopped: it is
// not set going, not even for a moment.
func TestStoppedProgramStaysStopped(t *testing.T) {
	s := fixture(t, "stopped")
	if err := syscall.Kill(s.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := func() bool {
		disturbance, err := testbed.Disturbance(s.pid, true)
		return err == nil && disturbance == ""
	}
	await(t, "the stop", stopped)
	for range 5 {
		for _, name := range []string{"stopped", libc, loader} {
			corruptGap(t, s.pid, name)
		}
		vos(t, "verify", s.target()).expect(t, 10)
		refreshed(t, vos(t, "refresh", s.target(), "--json"), "stopped", libc, loader)
		vos(t, "verify", s.target(), "--full").expect(t, 0)
		if !stopped() {
			t.Fatal("it was set going")
		}
	}
	if err := syscall.Kill(s.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.unharmed(t)
	if n := s.last.Counts["continued"]; n != 1 {
		t.Errorf("it was told %d times to go on, not once", n)
	}
}

// TestSignalStormLosesNone refreshes a program to which signals of every kind
// come a thousand times a second.
func TestSignalStormLosesNone(t *testing.T) {
	s := fixture(t, "signals", "2000")
	for range 20 {
		for _, name := range []string{"signals", libc, loader} {
			corruptGap(t, s.pid, name)
		}
		refreshed(t, vos(t, "refresh", s.target(), "--json"), "signals", libc, loader)
	}
	time.Sleep(100 * time.Millisecond) // what is late still comes
	s.unharmed(t)
	t.Log(s.last.Counts)
}

// TestDryRunPlansAndTouchesNothing compares what is promised with what is done.
func TestDryRunPlansAndTouchesNothing(t *testing.T) {
	s := fixture(t, "plain")
	at := fmt.Sprintf("0x%x", corruptGap(t, s.pid, libc))
	for range 2 {
		planned := operations(t, vos(t, "refresh", s.target()+":"+libc, "--dry-run", "--json").expect(t, 10))
		if len(planned) != 1 || planned[0].Outcome != "planned" || planned[0].Pages != 1 || len(planned[0].Steps) != 1 {
			t.Errorf("planned: %+v", planned)
		}
		if d := differences(t, vos(t, "verify", s.target(), "--json").expect(t, 10)); len(d) != 1 || d[0].Address != at {
			t.Errorf("it differs in %+v, not at %s alone", d, at)
		}
	}
	if done := refreshed(t, vos(t, "refresh", s.target(), "--json"), libc)[libc]; done.Pages != 1 || filepath.Base(done.Path) != libc {
		t.Errorf("done: %+v", done)
	}
	s.unharmed(t)
}
