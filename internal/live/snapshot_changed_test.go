package live

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// A zipping is an nginx that compresses its answers and logs them.
type zipping struct {
	root   int
	port   string
	folder string
	log    string
	lines  map[string]int // of logs, as of the last look
}

// startZipping starts it with a libz of its own, and with workers or without.
func startZipping(t *testing.T, workers int) *zipping {
	t.Helper()
	z := &zipping{port: freePort(t), folder: publicFolder(t), lines: make(map[string]int)}
	z.log = filepath.Join(z.folder, "access")
	process := "master_process off;"
	if workers > 0 {
		process = fmt.Sprintf("worker_processes %d;", workers)
	}
	configuration := fmt.Sprintf(`daemon off; %[3]s pid %[1]s/pid; error_log %[1]s/errors;
events { worker_connections 64; }
http { access_log %[1]s/access; gzip on; gzip_types text/plain; gzip_min_length 1; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2;
fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5; server { listen 127.0.0.1:%[2]s; location / { return 200 "it works, as it has worked before\n"; } } }
`, z.folder, z.port, process)
	file := filepath.Join(z.folder, "conf")
	if err := os.WriteFile(file, []byte(configuration), 0o644); err != nil {
		t.Fatal(err)
	}
	libraries := testbed.RunLibraries(t, testbed.Zlib.MustOriginal(t))
	z.root = startAlone(t, append(append([]string{"env"}, libraries.Env()...), testbed.NeedTool(t, "nginx"), "-c", file)...)
	await(t, "nginx to answer", func() bool {
		c, err := http.Get("http://127.0.0.1:" + z.port)
		if err == nil {
			c.Body.Close()
			http.DefaultClient.CloseIdleConnections()
		}
		return err == nil && len(tree(t, z.root)) == 1+workers
	})
	return z
}

// answers asks some times; who compresses writes a mark of its build.
func (z *zipping) answers(t *testing.T, mark byte) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: 30 * time.Second}
	for range 10 {
		request, err := http.NewRequest("GET", "http://127.0.0.1:"+z.port, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept-Encoding", "gzip")
		r, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		const system = 9 // the place of the mark in a header of gzip
		if err != nil || len(body) <= system || body[system] != mark {
			t.Fatalf("%v: answered by %x, not by the build with mark %d", err, body, mark)
		}
	}
}

// grew waits until a log has the lines of so many answers more, and no other log has more.
func (z *zipping) grew(t *testing.T, log string, lines int) {
	t.Helper()
	logs, err := filepath.Glob(z.log + "*")
	if err != nil {
		t.Fatal(err)
	}
	now := make(map[string]int)
	await(t, log+" to grow", func() bool {
		for _, name := range logs {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			now[name] = strings.Count(string(text), "\n")
		}
		return now[log] >= z.lines[log]+lines
	})
	for _, name := range logs {
		if want := z.lines[name]; name != log && now[name] != want || name == log && now[name] != want+lines {
			t.Fatalf("lines were %v and are %v, with %d for %s", z.lines, now, lines, log)
		}
	}
	z.lines = now
}

// each runs vos on each of the processes.
func (z *zipping) each(t *testing.T, args func(target string) []string) {
	t.Helper()
	for _, p := range tree(t, z.root) {
		vos(t, args(strconv.Itoa(p.pid))...).expect(t, 0)
		checkFree(t, p.pid)
	}
}

// heal refreshes every module, of which some were corrupted, and finds them right then.
func (z *zipping) heal(t *testing.T) {
	t.Helper()
	for _, p := range tree(t, z.root) {
		target := strconv.Itoa(p.pid)
		corrupted, err := corruptEvery(p.pid)
		if err != nil || corrupted < 3 {
			t.Fatalf("%d modules were corrupted, %v", corrupted, err)
		}
		vos(t, "verify", target).expect(t, 10)
		healed := slices.DeleteFunc(operations(t, vos(t, "refresh", target, "--json").expect(t, 0)), func(o api.Operation) bool { return o.Outcome != api.Refreshed })
		if len(healed) != corrupted {
			t.Fatalf("%d modules were refreshed, and %d corrupted", len(healed), corrupted)
		}
		vos(t, "verify", "--full", target).expect(t, 0)
	}
}

// TestSnapshotReplaced takes an nginx whose libz was replaced through checkpoints: the
// restored one has both builds, is refreshed, led back, replaced again and restarted, and
// checkpointed each time.
func TestSnapshotReplaced(t *testing.T) {
	rounds := 1
	if soak {
		rounds = 7
	}
	z := startZipping(t, 2)
	rebuilt := testbed.Zlib.MustRebuilt(t, "7")
	libz := func(target string) string { return target + ":" + testbed.Zlib.Soname }
	n := 0
	restored := func(mark byte) {
		t.Helper()
		n++
		endAndRestore(t, z.root, filepath.Join(z.folder, fmt.Sprint("image", n)))
		z.answers(t, mark)
	}
	z.answers(t, 3)
	for range rounds {
		z.each(t, func(target string) []string { return []string{"replace", libz(target), "--with", rebuilt.Path} })
		z.answers(t, 7)
		restored(7)
		z.heal(t)
		z.answers(t, 7)
		restored(7) // twice, and refreshed between
		z.each(t, func(target string) []string { return []string{"restart", target} })
		z.heal(t)
		z.answers(t, 7)
		z.each(t, func(target string) []string { return []string{"rollback", libz(target)} })
		z.answers(t, 3)
		restored(3)
		z.heal(t)
	}
	z.answers(t, 3)
}

// TestSnapshotIntercepted takes an nginx whose calls and memory are counted, and whose log
// is bound to another file, through checkpoints: it is counted on, the file stays bound,
// and both can be taken back.
func TestSnapshotIntercepted(t *testing.T) {
	z := startZipping(t, 0)
	target := strconv.Itoa(z.root)
	other := z.log + ".other"
	n := 0
	restored := func() {
		t.Helper()
		n++
		endAndRestore(t, z.root, filepath.Join(z.folder, fmt.Sprint("image", n)))
	}
	calls := func() uint64 {
		t.Helper()
		return usageOf(t, target)[testbed.Zlib.Soname].Calls
	}
	log := func() string {
		t.Helper()
		return descriptorOf(t, z.root, z.log)
	}
	fd := log()
	vos(t, "attach", target, "--memory").expect(t, 0)
	vos(t, "redirect", target, fd, "--to", "append:"+other).expect(t, 0)
	text, err := os.ReadFile(z.log)
	if err != nil {
		t.Fatal(err)
	}
	z.lines[z.log] = strings.Count(string(text), "\n")
	z.answers(t, 3)
	z.grew(t, other, 10)
	for range 2 {
		before := calls()
		restored()
		if now := calls(); before == 0 || now != before {
			t.Fatalf("%d calls were counted before, and %d are now", before, now)
		}
		z.answers(t, 3)
		z.grew(t, other, 10)
		if now := calls(); now <= before {
			t.Fatalf("%d calls are counted, as before", now)
		}
		if now := descriptorOf(t, z.root, other); now != fd {
			t.Fatalf("descriptor %s is bound, not %s", now, fd)
		}
		if r := vos(t, "ctl", target, "status"); r.Code != 0 {
			t.Fatalf("vos ctl: %d: %s", r.Code, r.Stderr)
		}
		z.heal(t)
	}
	vos(t, "redirect", target, fd, "--back").expect(t, 0)
	z.answers(t, 3)
	z.grew(t, z.log, 10)
	vos(t, "detach", target).expect(t, 0)
	vos(t, "verify", "--full", target).expect(t, 0)
	restored()
	z.answers(t, 3)
	z.grew(t, z.log, 10)
	// It can be all of that again.
	vos(t, "attach", target).expect(t, 0)
	vos(t, "redirect", target, fd, "--to", "append:"+other).expect(t, 0)
	restored()
	z.answers(t, 3)
	z.grew(t, other, 10)
	z.heal(t)
	checkFree(t, z.root)
}

// descriptorOf is the number of the descriptor that leads to a file.
func descriptorOf(t *testing.T, pid int, path string) string {
	t.Helper()
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil && to == path {
			return e.Name()
		}
	}
	t.Fatalf("process %d has no descriptor of %s", pid, path)
	return ""
}
