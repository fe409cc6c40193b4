package live

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

func handles(t *testing.T, r result) []api.Handle { t.Helper(); return lines[api.Handle](t, r) }

// handleOf returns the handle of a descriptor.
func handleOf(t *testing.T, all []api.Handle, pid, fd int) api.Handle {
	t.Helper()
	i := slices.IndexFunc(all, func(h api.Handle) bool { return h.PID == pid && h.FD == fd })
	if i < 0 {
		t.Fatalf("descriptor %d of %d is not listed", fd, pid)
	}
	return all[i]
}

// TestHandlesOfEveryKind compares what is told of a program's descriptors with what
// the program itself knows of them.
func TestHandlesOfEveryKind(t *testing.T) {
	folder := t.TempDir()
	f := testbed.Run(t, testbed.FixtureOptions{Mute: true}, "/usr/bin/python3", "-I", "-c", text(t, "handles.py"), folder)
	content, err := os.ReadFile(filepath.Join(folder, "truth.json"))
	if err != nil {
		t.Fatal(err)
	}
	var truth struct {
		Handles []map[string]any
		Child   int
		Other   int
		Timer   int
		All     []int
	}
	if err := json.Unmarshal(content, &truth); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(f.Pid())
	r := vos(t, "handles", pid, "--json").expect(t, 0)
	found := map[float64]map[string]any{}
	for _, h := range lines[map[string]any](t, r) {
		found[h["fd"].(float64)] = h
	}
	for _, want := range truth.Handles {
		got := found[want["fd"].(float64)]
		if got == nil {
			t.Errorf("%v is not listed", want)
			continue
		}
		for key, value := range want {
			if key == "socket" { // what has no queue to speak of is left open
				for k := range got[key].(map[string]any) {
					if _, told := value.(map[string]any)[k]; !told && strings.HasSuffix(k, "_queue") {
						delete(got[key].(map[string]any), k)
					}
				}
			}
			if diff := cmp.Diff(value, got[key]); diff != "" {
				t.Errorf("descriptor %v, a %v: %s (-want +got):\n%s", want["fd"], want["kind"], key, diff)
			}
		}
	}
	all := handles(t, r)
	for _, h := range all {
		// The descriptor that listed the folder is closed by now.
		if !slices.Contains(truth.All, h.FD) || h.Kind == "anonymous" {
			t.Errorf("descriptor %d, %s, was never there", h.FD, h.Name)
		}
	}
	timer := handleOf(t, all, f.Pid(), truth.Timer).Timerfd
	if timer.Clock != "CLOCK_MONOTONIC" || timer.IntervalNS != int64(5*time.Second+7) ||
		timer.RemainingNS <= 0 || timer.RemainingNS > int64(100000*time.Second) || timer.Ticks != 0 {
		t.Errorf("%+v", timer)
	}

	// Filters choose of the same.
	for _, args := range [][]string{{"--kind", "socket"}, {"--kind", "epoll,timerfd"}, {"--fd", strconv.Itoa(truth.Timer)}, {"--kind", "socket", "--fd", "0"}} {
		for _, h := range handles(t, vos(t, append([]string{"handles", pid, "--json"}, args...)...).expect(t, 0)) {
			if args[0] == "--kind" && !strings.Contains(args[1], h.Kind) || slices.Contains(args, "--fd") && strconv.Itoa(h.FD) != args[len(args)-1] {
				t.Errorf("%v: %+v", args, h)
			}
		}
	}
	ids := lines[api.IDs](t, vos(t, "handles", pid, "--ids", "--json").expect(t, 0))
	if len(ids) != 1 || ids[0].PID != f.Pid() || ids[0].PPID != os.Getpid() || ids[0].PGID != f.Pid() ||
		!slices.Equal(ids[0].NSPIDs, []int{f.Pid()}) || len(ids[0].Threads) != 1 {
		t.Errorf("%+v", ids)
	}
	checkFree(t, f.Pid())
}

// TestHandlesOfServers looks at servers and their real clients.
func TestHandlesOfServers(t *testing.T) {
	t.Run("nginx", func(t *testing.T) {
		nginx := testbed.RunNginx(t, testbed.NginxOptions{AccessLog: true})
		load := nginx.Load(t.Context(), testbed.LoadOptions{})
		defer load.Stop()
		conn, err := net.Dial("tcp", nginx.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The answer to a request: a worker has accepted.
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		accepted := 0
		for _, worker := range nginx.Workers() {
			all := handles(t, vos(t, "handles", strconv.Itoa(worker), "--json").expect(t, 0))
			log := slices.IndexFunc(all, func(h api.Handle) bool { return h.Path == filepath.Join(nginx.Folder(), "access.log") })
			if log < 0 || all[log].Kind != "file" || !slices.Contains(all[log].Flags, "O_APPEND") || all[log].Access != "write" {
				t.Fatalf("no access log in %+v", all)
			}
			for _, pid := range nginx.Pids() {
				if pid != worker && !slices.ContainsFunc(all[log].Shared, func(r api.HandleRef) bool { return r.PID == pid && r.FD == all[log].FD }) {
					t.Errorf("%d shares the log of %d; told is %v", pid, worker, all[log].Shared)
				}
			}
			listening := slices.IndexFunc(all, func(h api.Handle) bool {
				return h.Socket != nil && h.Socket.State == "listen" && h.Socket.Local == nginx.Addr()
			})
			if listening < 0 {
				t.Fatalf("nobody listens on %s in %+v", nginx.Addr(), all)
			}
			epoll := slices.IndexFunc(all, func(h api.Handle) bool { return h.Kind == "epoll" })
			if epoll < 0 {
				t.Fatal("no epoll instance")
			}
			for _, r := range all[epoll].Epoll {
				if r.Open && r.Kind != "socket" && r.Kind != "eventfd" {
					t.Errorf("registered: %+v", r)
				}
			}
			for _, h := range all {
				if h.Socket == nil || h.Socket.Remote != conn.LocalAddr().String() {
					continue
				}
				accepted++
				if len(h.Peers) != 1 || h.Peers[0].PID != os.Getpid() {
					t.Errorf("peers of %+v: %v", h.Socket, h.Peers)
				}
				if !slices.ContainsFunc(all[epoll].Epoll, func(r api.Registration) bool {
					return r.FD == h.FD && r.Open && slices.Contains(r.Events, "EPOLLET")
				}) {
					t.Errorf("%d is not registered in %+v", h.FD, all[epoll].Epoll)
				}
			}
			if !slices.ContainsFunc(all[epoll].Epoll, func(r api.Registration) bool { return r.FD == all[listening].FD && r.Open }) {
				t.Errorf("%d, which listens, is not registered in %+v", all[listening].FD, all[epoll].Epoll)
			}
		}
		if accepted != 1 {
			t.Errorf("the connection was found %d times", accepted)
		}
		for _, pid := range nginx.Pids() {
			checkFree(t, pid)
		}
	})
	t.Run("redis", func(t *testing.T) {
		redis := testbed.RunRedis(t, testbed.RedisOptions{})
		_, port, _ := net.SplitHostPort(redis.Addr())
		client := exec.Command("redis-cli", "-p", port, "subscribe", "x")
		stdout, err := client.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { client.Process.Kill(); client.Wait() }()
		if _, err := stdout.Read(make([]byte, 1)); err != nil { // it has subscribed
			t.Fatal(err)
		}
		pid, cli := redis.Pid(), client.Process.Pid
		ofRedis := handles(t, vos(t, "handles", strconv.Itoa(pid), "--kind", "socket", "--json").expect(t, 0))
		ofClient := handles(t, vos(t, "handles", strconv.Itoa(cli), "--kind", "socket", "--json").expect(t, 0))
		if len(ofClient) != 1 || len(ofClient[0].Peers) != 1 || ofClient[0].Peers[0].PID != pid {
			t.Fatalf("%+v", ofClient)
		}
		end := handleOf(t, ofRedis, pid, ofClient[0].Peers[0].FD)
		if !slices.Equal(end.Peers, []api.HandleRef{{PID: cli, Program: "redis-cli", FD: ofClient[0].FD}}) ||
			end.Socket.Local != redis.Addr() || end.Socket.Remote != ofClient[0].Socket.Local {
			t.Errorf("%+v", end)
		}
		stdin := handleOf(t, handles(t, vos(t, "handles", strconv.Itoa(cli), "--fd", "1", "--json").expect(t, 0)), cli, 1)
		if stdin.Kind != "pipe" || !slices.ContainsFunc(stdin.Peers, func(r api.HandleRef) bool { return r.PID == os.Getpid() }) {
			t.Errorf("%+v", stdin)
		}
		// Nobody who may not trace it learns what it has open.
		r := vosAsUser(t)(t, "handles", strconv.Itoa(pid)).expect(t, 5)
		if r.Stdout != "" || !strings.Contains(r.Stderr, "remedy: run as root") {
			t.Errorf("%s%s", r.Stdout, r.Stderr)
		}
		vosAsUser(t)(t, "handles", strconv.Itoa(pid), "--ids").expect(t, 0)
		checkFree(t, pid)
	})
}

// TestHandlesInNamespaces looks into another network namespace and another root
// directory, whose paths and sockets are the program's own.
func TestHandlesInNamespaces(t *testing.T) {
	const server = `import socket, sys
s = socket.create_server(("0.0.0.0", 4711)); a = socket.create_server(("127.0.0.1", 0)); c = socket.socket(); c.setblocking(False)
u = socket.socket(socket.AF_UNIX); u.bind("\0vos-test"); u.listen()
print("ready", flush=True); sys.stdin.read()`
	for name, wrap := range map[string][]string{
		"network":          {"unshare", "--net"},
		"network and user": {"unshare", "--net", "--user", "--map-root-user"},
	} {
		t.Run(name, func(t *testing.T) {
			f := testbed.Run(t, testbed.FixtureOptions{Mute: true, Wrap: func(own []string) []string { return append(wrap, own...) }},
				"/usr/bin/python3", "-I", "-c", server)
			var got []string
			for _, h := range handles(t, vos(t, "handles", strconv.Itoa(f.Pid()), "--kind", "socket", "--json").expect(t, 0)) {
				got = append(got, strings.Join([]string{h.Socket.Family, h.Socket.State, h.Socket.Local}, " "))
			}
			if len(got) != 4 || got[0] != "inet listen 0.0.0.0:4711" || !strings.HasPrefix(got[1], "inet listen 127.0.0.1:") ||
				!strings.HasPrefix(got[2], "inet ") || got[3] != "unix listen @vos-test" {
				t.Errorf("%q", got)
			}
			checkFree(t, f.Pid())
		})
	}
	t.Run("root directory", func(t *testing.T) {
		root := rootFolder(t, compiled(t, "plain"))
		if err := os.Mkdir(filepath.Join(root, "data"), 0o755); err != nil {
			t.Fatal(err)
		}
		s, _ := start(t, testbed.FixtureOptions{Wrap: func(own []string) []string {
			return append([]string{"sh", "-c", `exec chroot "$0" "$@" 5>>"$0/data/log" 6<"$0"/data`, root}, "/bin/plain")
		}}, filepath.Join(root, "bin/plain"))
		all := handles(t, vos(t, "handles", s.target(), "--json").expect(t, 0))
		if log := handleOf(t, all, s.pid, 5); log.Path != "/data/log" || log.Deleted {
			t.Errorf("%+v", log)
		}
		if folder := handleOf(t, all, s.pid, 6); folder.Path != "/data" || folder.Kind != "directory" {
			t.Errorf("%+v", folder)
		}
	})
}

// TestHandlesOfALeaderThatEnded looks at a process of which only other threads are
// left: the folder of the first one's descriptors is empty.
func TestHandlesOfALeaderThatEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "handles_leader"), path)
	await(t, "the end of the first thread", func() bool {
		stat, err := os.ReadFile("/proc/" + s.target() + "/stat")
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
	h := handleOf(t, handles(t, vos(t, "handles", s.target(), "--json").expect(t, 0)), s.pid, 7)
	if h.Path != path || !slices.Contains(h.Flags, "O_APPEND") ||
		len(h.Shared) != 1 || h.Shared[0].PID != s.pid {
		t.Errorf("%+v", h)
	}
	s.works(t)
}

// TestHandlesOnAnOverlay looks at files of a container's root: their numbers in
// fdinfo need not be those that stat(2) tells.
func TestHandlesOnAnOverlay(t *testing.T) {
	const server = `import os, sys
a = os.open("/etc/passwd", os.O_RDONLY); b = os.open("/etc/passwd", os.O_RDWR | os.O_APPEND); c = os.open("/new", os.O_RDWR | os.O_CREAT)
d = os.open("/etc", os.O_RDONLY); os.unlink("/new"); os.lseek(b, 17, 0)
print("ready", flush=True); sys.stdin.read()`
	f := testbed.Run(t, testbed.FixtureOptions{Mute: true, Wrap: func(own []string) []string {
		return append([]string{"unshare", "--mount", "sh", "-ec",
			`mount -t tmpfs layers "$0"; mkdir "$0"/upper "$0"/work "$0"/root "$0"/lower
			mount -t overlay overlay -o lowerdir=/,upperdir="$0"/upper,workdir="$0"/work "$0"/root
			mount -t proc proc "$0"/root/proc; exec chroot "$0"/root "$@"`, publicFolder(t)}, own...)
	}}, "/usr/bin/python3", "-I", "-c", server)
	var got []string
	for _, h := range handles(t, vos(t, "handles", strconv.Itoa(f.Pid()), "--kind", "file,directory", "--json").expect(t, 0)) {
		if strings.HasPrefix(h.Path, "/etc") || h.Path == "/new" {
			got = append(got, fmt.Sprintf("%s %s %s %d %v", h.Kind, h.Path, h.Access, h.Offset, h.Deleted))
		}
	}
	want := []string{"file /etc/passwd read 0 false", "file /etc/passwd read_write 17 false", "file /new read_write 0 true", "directory /etc read 0 false"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	checkFree(t, f.Pid())
}

// TestHandlesOfARedirection tells what vos redirect has changed, and what it keeps.
func TestHandlesOfARedirection(t *testing.T) {
	folder := t.TempDir()
	before, after := filepath.Join(folder, "before"), filepath.Join(folder, "after")
	f := testbed.Run(t, testbed.FixtureOptions{Mute: true}, "/usr/bin/python3", "-I", "-c",
		`import os, sys; os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 30); print("ready", flush=True); sys.stdin.read()`, before)
	pid := strconv.Itoa(f.Pid())
	look := func() (at30 api.Handle, own map[string]string) {
		t.Helper()
		own = map[string]string{}
		for _, h := range handles(t, vos(t, "handles", pid, "--json").expect(t, 0)) {
			if h.Mine != (h.Own != "") {
				t.Errorf("%+v", h)
			}
			if h.Own != "" {
				own[h.Own] = h.Kind + " " + h.Path
			}
			if h.FD == 30 {
				at30 = h
			}
		}
		return at30, own
	}
	if h, own := look(); h.Path != before || h.RedirectedFrom != "" || len(own) != 0 {
		t.Errorf("before: %+v, %v", h, own)
	}
	vos(t, "redirect", pid, "30", "--to", "append:"+after).expect(t, 0)
	h, own := look()
	if diff := cmp.Diff(map[string]string{"record": "memfd ", "kept": "file " + before}, own); diff != "" || h.Path != after || !strings.Contains(h.RedirectedFrom, before) {
		t.Errorf("redirected: %+v, vOS's own: %s", h, diff)
	}
	vos(t, "redirect", pid, "30", "--back").expect(t, 0)
	if h, own := look(); h.Path != before || h.RedirectedFrom != "" || len(own) != 0 {
		t.Errorf("after: %+v, %v", h, own)
	}
	checkFree(t, f.Pid())
}

// TestHandlesThatChange lists a program that opens and closes thousands of
// descriptors a second: there is never an error, none that was not there, and none
// missing of those that stay.
func TestHandlesThatChange(t *testing.T) {
	folder := t.TempDir()
	s, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "handles_change"), folder)
	rounds := 30
	if soak {
		rounds = 1000
	}
	told, between := 0, s.last
	for range rounds {
		staying := map[string]bool{}
		for _, h := range handles(t, vos(t, "handles", s.target(), "--json").expect(t, 0)) {
			told++
			if h.Kind != "file" || filepath.Dir(h.Path) != folder {
				continue
			}
			n, err := strconv.Atoi(filepath.Base(h.Path))
			// One that is opened this moment is not yet where it will be.
			if err != nil || h.Offset != int64(1000+n) && h.Offset != 0 ||
				(h.Access == "write") != (n%2 == 1) || slices.Contains(h.Flags, "O_APPEND") != (n%2 == 1) {
				t.Fatalf("a descriptor that never was: %+v", h)
			}
			if h.FD >= 900 {
				staying[h.Path] = true
			}
		}
		if len(staying) != 16 {
			t.Fatalf("%d of 16 that stay are told", len(staying))
		}
	}
	s.works(t)
	opened := s.last.Counts["opened"] - between.Counts["opened"]
	t.Logf("%d descriptors told in %d listings, while %d were opened and closed", told, rounds, opened)
	if opened < int64(rounds)*100 {
		t.Errorf("only %d descriptors were opened and closed", opened)
	}
	checkFree(t, s.pid)
}

// TestFunctionHandles counts import slots as readelf does, and those that lead to
// another build after a replacement.
func TestFunctionHandles(t *testing.T) {
	m := runMixed(t, form{name: "pie"})
	out, err := exec.Command("readelf", "-rW", "/proc/"+m.target()+"/exe").Output()
	if err != nil {
		t.Fatal(err)
	}
	ways := 0
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "R_X86_64_JUMP_SLO") {
			ways++
		}
	}
	look := func() (program, library api.FunctionHandles) {
		t.Helper()
		for _, f := range lines[api.FunctionHandles](t, vos(t, "handles", m.target(), "--functions", "--json").expect(t, 0)) {
			if f.Slots != len(f.Imports) {
				t.Errorf("%s: %d of %d slots", f.Module, len(f.Imports), f.Slots)
			}
			switch filepath.Base(f.Path) {
			case "mixed":
				program = f
			case mixedLibrary:
				library = f
			default:
				if f.Led != 0 && f.Module != mixedLibrary { // the new build may call itself by its entries
					t.Errorf("%s: %d lead to a vIN", f.Module, f.Led)
				}
			}
		}
		return program, library
	}
	before, _ := look()
	if before.Slots < ways || ways == 0 || before.Led != 0 {
		t.Errorf("%+v; readelf counts %d", before, ways)
	}
	m.replace(t, mixedBuild(t, 2))
	program, library := look()
	if library.Generation != 1 || program.Led == 0 || program.Slots != before.Slots {
		t.Errorf("after a replacement: generation %d, %d of %d lead to a vIN", library.Generation, program.Led, program.Slots)
	}
	for _, s := range program.Imports {
		if s.Led && (s.Module != mixedLibrary || s.Generation != 1) || !s.Led && s.Generation != 0 {
			t.Errorf("%+v", s)
		}
	}
	m.rollback(t)
	if program, library := look(); library.Generation != 0 || program.Led != 0 {
		t.Errorf("after the rollback: generation %d, %d lead to a vIN", library.Generation, program.Led)
	}
	m.runs(t, 1)
}
