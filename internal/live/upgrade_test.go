package live

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// A served program answers a verified load, and what it answers may show which
// build of a library does the work.
type served struct {
	pids  func() []int
	build func(t *testing.T) string // that answers requests made from now on; nil: nothing shows it
	load  *testbed.Load             // nil: a client does the work
	end   func(t *testing.T)        // checks all that was answered
}

// An upgrade is a program that gets another build of a library while it runs.
type upgrade struct {
	name     string
	source   testbed.LibrarySource
	change   string
	old, new string // what answers show
	start    func(t *testing.T, env []string) served
}

// loaded is a program under a load, whose answers may show one of the builds.
func loaded(load *testbed.Load, pids func() []int, builds ...string) served {
	s := served{load: load, pids: pids, end: func(t *testing.T) {
		t.Helper()
		totals := load.Stop()
		t.Log(totals)
		if totals.Failed > 0 || totals.Reconnects > 0 || totals.Served == 0 {
			t.Errorf("%d reconnects, failed requests: %v", totals.Reconnects, totals.Errors)
		}
	}}
	if len(builds) > 0 {
		s.build = func(t *testing.T) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			marks, err := load.NextMarks(ctx, 40)
			if err != nil {
				t.Fatal(err)
			}
			shown := ""
			for mark := range marks {
				if slices.Contains(builds, mark) {
					shown += mark
				}
			}
			return shown
		}
	}
	return s
}

func one(pid func() int) func() []int { return func() []int { return []int{pid()} } }

// stream is a python3 in mid-stream, whose short answers show the build.
func stream(task string) func(t *testing.T, env []string) served {
	return func(t *testing.T, env []string) served {
		f := testbed.RunStream(t, task, testbed.FixtureOptions{Env: env})
		report := func(t *testing.T) testbed.Report {
			t.Helper()
			r, err := f.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		return served{
			pids: one(f.Pid),
			build: func(t *testing.T) string {
				t.Helper()
				// The answer that is under way may be of the build before.
				first := report(t)
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					shown := ""
					now := report(t)
					for mark, n := range now.Counts {
						if n > first.Counts[mark]+1 {
							shown += mark
						}
					}
					if shown != "" {
						return shown
					}
				}
				t.Fatal("the stream does not get on")
				return ""
			},
			end: func(t *testing.T) {
				t.Helper()
				if err := report(t).Healthy(testbed.Report{}); err != nil {
					t.Error(err)
				}
			},
		}
	}
}

var upgrades = []upgrade{
	{"nginx_libz", testbed.Zlib, "7", "gzip 3", "gzip 7", func(t *testing.T, env []string) served {
		n := testbed.RunNginx(t, testbed.NginxOptions{Env: env})
		return loaded(n.Load(context.Background(), testbed.LoadOptions{}), n.Pids, "gzip 3", "gzip 7")
	}},
	{"nginx_libpcre2", testbed.Pcre2, "!", "usual", "other", func(t *testing.T, env []string) served {
		n := testbed.RunNginx(t, testbed.NginxOptions{Env: env, Regex: true})
		return loaded(n.Load(context.Background(), testbed.LoadOptions{}), n.Pids, "usual", "other")
	}},
	{"python3_libz", testbed.Zlib, "7", "mark.3", "mark.7", stream("zlib")},
	{"python3_libexpat", testbed.Expat, "nothing there", "mark.no element found", "mark.nothing there", stream("expat")},
	{"memcached_libevent", testbed.Event, "changed", "2.1.12-stable", "changed", func(t *testing.T, env []string) served {
		m := testbed.RunMemcached(t, testbed.MemcachedOptions{Env: env})
		s := loaded(m.Load(context.Background(), testbed.LoadOptions{Conns: 200, Fresh: -1}), one(m.Pid))
		s.build = func(t *testing.T) string {
			t.Helper()
			version, err := m.LibeventVersion()
			if err != nil {
				t.Fatal(err)
			}
			return version
		}
		return s
	}},
	{"haproxy_libpcre2", testbed.Pcre2, "!", "usual", "other", func(t *testing.T, env []string) served {
		h := testbed.RunHAProxy(t, testbed.HAProxyOptions{Env: env})
		return loaded(h.Load(context.Background(), testbed.LoadOptions{}), one(h.Pid), "usual", "other")
	}},
	{"postgresql_liblz4", testbed.Lz4, "64", "first", "another", func(t *testing.T, env []string) served {
		s := runPostgres(t, env, testbed.Lz4.Soname)
		size := func(t *testing.T) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			marks, err := s.load.NextMarks(ctx, 60)
			if err != nil {
				t.Fatal(err)
			}
			delete(marks, "") // of what is not compressed anew
			if len(marks) != 1 {
				t.Fatalf("answers by %v", marks)
			}
			return slices.Collect(maps.Keys(marks))[0]
		}
		first := size(t)
		s.build = func(t *testing.T) string {
			t.Helper()
			if size(t) == first {
				return "first"
			}
			return "another"
		}
		return s
	}},
	{"curl_libnghttp2", testbed.Nghttp2, "1024", "told seldom", "told often", func(t *testing.T, env []string) served {
		s, c := runTransfer(t, env)
		s.build = func(t *testing.T) string {
			t.Helper()
			told, received := c.Told(), c.Received()
			if err := c.Await(t.Context(), 1<<20); err != nil {
				t.Fatal(err)
			}
			// Each time costs some 50 bytes: for every 16 MiB, or for every 32 KiB.
			if told = c.Told() - told; told > (c.Received()-received)/4096 {
				return "told often"
			}
			return "told seldom"
		}
		return s
	}},
}

// runPostgres is a PostgreSQL under a load, and its processes that have a library.
func runPostgres(t *testing.T, env []string, soname string) served {
	t.Helper()
	p := testbed.RunPostgres(t, testbed.PostgresOptions{Env: env})
	load := p.Load(context.Background(), testbed.LoadOptions{Fresh: -1})
	if err := load.Await(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	return loaded(load, func() []int {
		return having(t, soname, append([]int{p.Pid()}, testbed.Children(p.Pid())...))
	})
}

// runTransfer is a curl in mid-transfer.
func runTransfer(t *testing.T, env []string) (served, *testbed.Transfer) {
	t.Helper()
	c := testbed.RunTransfer(t, testbed.TransferOptions{Env: env})
	if err := c.Await(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	return served{pids: one(c.Pid), end: func(t *testing.T) {
		t.Helper()
		if err := c.Await(t.Context(), 1<<20); err != nil {
			t.Error(err)
		}
	}}, c
}

// having returns those of the processes that have a library mapped.
func having(t *testing.T, soname string, pids []int) (all []int) {
	t.Helper()
	for _, pid := range pids {
		files, err := testbed.MappedFiles(pid, soname)
		if err == nil && len(files) > 0 {
			all = append(all, pid)
		}
	}
	return all
}

// TestUpgrades lets real programs run through an upgrade of a library: the new
// build takes over, the old one again, and the new one again, and everything that
// is answered meanwhile is right.
func TestUpgrades(t *testing.T) {
	for _, u := range upgrades {
		t.Run(u.name, func(t *testing.T) {
			var s served
			var pids []int
			for try := 1; ; try++ {
				libraries := testbed.RunLibraries(t, u.source.MustOriginal(t))
				s = u.start(t, libraries.Env())
				expectBuild(t, s, u.old)
				pids = s.pids()
				expectOutdated(t, pids, u.source.Soname, 0)
				if err := libraries.Install(u.source.MustRebuilt(t, u.change)); err != nil {
					t.Fatal(err)
				}
				expectOutdated(t, pids, u.source.Soname, 10)
				pid := forkedInHandler(t, pids, u.source.Soname)
				if pid == 0 {
					break
				}
				t.Logf("process %d was forked in a signal handler", pid)
				if s.end(t); try == 10 {
					t.Fatal("in no server of ten all processes can be replaced")
				}
			}
			takeOver(t, pids, u.source.Soname, "replace", api.Replaced)
			expectBuild(t, s, u.new)
			expectOutdated(t, pids, u.source.Soname, 0)
			takeOver(t, pids, u.source.Soname, "rollback", api.RolledBack)
			expectBuild(t, s, u.old)
			expectOutdated(t, pids, u.source.Soname, 10)
			takeOver(t, pids, u.source.Soname, "replace", api.Replaced)
			expectBuild(t, s, u.new)
			s.end(t)
		})
	}
}

// forkedInHandler returns a process that may not be replaced, as it was forked in a
// signal handler by PostgreSQL's first process: it has the handler's frame on its stack
// as long as it lives, and if that interrupted no wait, no function can be called in it.
// In the others the build takes over, and goes again.
func forkedInHandler(t *testing.T, pids []int, soname string) int {
	t.Helper()
	for _, pid := range pids {
		module := fmt.Sprintf("%d:%s", pid, soname)
		r := vos(t, "replace", module)
		if r.Code == 7 && strings.Contains(r.Stderr, "handles a signal (no_safe_point)") {
			return pid
		}
		r.expect(t, 0)
		vos(t, "rollback", module).expect(t, 0)
	}
	return 0
}

// TestUpgradesInARow replaces a library by builds one after the other, and by the
// distribution's at the end; a dry run before each changes nothing.
func TestUpgradesInARow(t *testing.T) {
	original := testbed.Zlib.MustOriginal(t)
	libraries := testbed.RunLibraries(t, original)
	s := upgrades[0].start(t, libraries.Env())
	pids, shown := s.pids(), "3"
	builds := map[string]testbed.LibraryBuild{"3": original, "7": testbed.Zlib.MustRebuilt(t, "7"), "11": testbed.Zlib.MustRebuilt(t, "11")}
	build := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		marks, err := s.load.NextMarks(ctx, 40)
		if err != nil {
			t.Fatal(err)
		}
		delete(marks, "")
		if len(marks) != 1 || marks["gzip "+want] == 0 {
			t.Fatalf("%v answer, not gzip %s", marks, want)
		}
	}
	for _, next := range []string{"7", "11", "3"} {
		if err := libraries.Install(builds[next]); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			vos(t, "replace", "--dry-run", fmt.Sprintf("%d:%s", pid, testbed.Zlib.Soname)).expect(t, 10)
		}
		build(shown)
		takeOver(t, pids, testbed.Zlib.Soname, "replace", api.Replaced)
		build(next)
		expectOutdated(t, pids, testbed.Zlib.Soname, 0)
		shown = next
	}
	s.end(t)
}

func expectBuild(t *testing.T, s served, want string) {
	t.Helper()
	if s.build == nil || want == "" {
		return
	}
	if got := s.build(t); got != want {
		t.Fatalf("%q answers, not %q", got, want)
	}
}

// expectOutdated checks what vos outdated says of a library, and that all else of
// the processes is what its files say.
func expectOutdated(t *testing.T, pids []int, soname string, code int) {
	t.Helper()
	for _, pid := range pids {
		r := vos(t, "outdated", strconv.Itoa(pid), "--json").expect(t, code)
		for _, m := range lines[api.OutdatedModule](t, r) {
			if m.Module != soname || m.Verdict != api.VerdictReplace {
				t.Errorf("%s of %d: %s helps, %v", m.Module, pid, m.Verdict, m.Obstacles)
			}
		}
		vos(t, "verify", strconv.Itoa(pid)).expect(t, 0)
	}
}

// takeOver runs vos replace or rollback on a library of processes.
func takeOver(t *testing.T, pids []int, soname, command string, want api.Outcome) {
	t.Helper()
	for _, pid := range pids {
		for _, o := range operations(t, vos(t, command, fmt.Sprintf("%d:%s", pid, soname), "--json").expect(t, 0)) {
			t.Logf("%s %s of %d: stopped %d µs, borrowed %d µs, in all %d µs", o.Outcome, o.Module, o.PID, o.PauseUS, o.BorrowUS, o.TotalUS)
			if o.Outcome != want {
				t.Fatalf("%s, not %s: %s %v", o.Outcome, want, o.Error, o.Refusals)
			}
		}
		checkFree(t, pid)
	}
}

// TestUpgradeOfOpenSSL lets two real builds of Debian, as an update brings them,
// take each other's place in an nginx with connections by TLS that are kept. The
// new libssl, if it may take over, has another name for TLS 1.3, which answers show.
func TestUpgradeOfOpenSSL(t *testing.T) {
	old, new := openSSLPair(t)
	libraries := testbed.RunLibraries(t, old...)
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Env: libraries.Env(), TLS: true,
		HTTP: "add_header X-Protocol $ssl_protocol;", Header: "X-Protocol"})
	const name, other = "TLSv1.3", "TLSv1.#"
	s := loaded(nginx.Load(context.Background(), testbed.LoadOptions{Conns: 20, Fresh: -1}), nginx.Pids, name, other)
	shown := name
	for _, b := range new {
		if b.Soname == "libssl.so.3" {
			b.Path, shown = retold(t, b.Path, name+"\x00", other+"\x00"), other
		}
		if err := libraries.Install(b); err != nil {
			t.Fatal(err)
		}
	}
	expectBuild(t, s, name)
	for _, step := range []struct {
		args  []string
		want  api.Outcome
		shown string
	}{
		{[]string{"replace", "--outdated"}, api.Replaced, shown},
		{[]string{"rollback"}, api.RolledBack, name},
		{[]string{"replace", "--outdated"}, api.Replaced, shown},
	} {
		for _, pid := range nginx.Pids() {
			done := 0
			for _, o := range operations(t, vos(t, append(step.args, strconv.Itoa(pid), "--json")...).expect(t, 0)) {
				t.Logf("%s %s of %d: %d functions, stopped %d µs, borrowed %d µs, in all %d µs", o.Outcome, o.Module, o.PID, o.Functions, o.PauseUS, o.BorrowUS, o.TotalUS)
				if o.Outcome != step.want {
					t.Fatalf("%s, not %s: %s %v", o.Outcome, step.want, o.Error, o.Refusals)
				}
				done++
			}
			if done != len(new) {
				t.Fatalf("%v did %d modules, not %d", step.args, done, len(new))
			}
			vos(t, "verify", strconv.Itoa(pid)).expect(t, 0)
		}
		expectBuild(t, s, step.shown)
	}
	s.end(t)
}

// openSSLPair chooses two builds of the mirror of which files speak for a
// replacement: of libcrypto and libssl if there are such, otherwise of libcrypto.
func openSSLPair(t *testing.T) (old, new []testbed.LibraryBuild) {
	t.Helper()
	const crypto, ssl = "libcrypto.so.3", "libssl.so.3"
	cryptos, ssls := testbed.MustLibraryBuilds(t, "libssl3", crypto), testbed.MustLibraryBuilds(t, "libssl3", ssl)
	for i := range cryptos {
		for j := i + 1; j < len(cryptos); j++ {
			if !mayTakeOver(t, cryptos[i], cryptos[j]) {
				continue
			}
			if mayTakeOver(t, ssls[i], ssls[j]) {
				return []testbed.LibraryBuild{cryptos[i], ssls[i]}, []testbed.LibraryBuild{cryptos[j], ssls[j]}
			}
			if old == nil {
				old, new = []testbed.LibraryBuild{cryptos[i], ssls[i]}, []testbed.LibraryBuild{cryptos[j]}
			}
		}
	}
	if old == nil {
		t.Fatalf("no two of the builds that the mirror serves may take each other's place: %v", cryptos)
	}
	return old, new
}

func mayTakeOver(t *testing.T, old, new testbed.LibraryBuild) bool {
	t.Helper()
	var objects [2]*dso.Object
	for i, b := range []testbed.LibraryBuild{old, new} {
		objects[i] = openObject(t, b.Path)
	}
	m, err := match.Compare(objects[0], objects[1], match.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return len(m.Refusals) == 0
}

func openObject(t *testing.T, path string) *dso.Object {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	o, err := dso.ReadFile(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return o
}
