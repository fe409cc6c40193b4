package live

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestRedirectRedisClient moves a client's connection from one redis server to
// another one and back. No reply is lost.
func TestRedirectRedisClient(t *testing.T) {
	ports := map[byte]string{}
	for _, letter := range []byte("AB") {
		server := testbed.RunRedis(t, testbed.RedisOptions{})
		host, port, err := net.SplitHostPort(server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		ports[letter] = port
		if out, err := exec.Command("redis-cli", "-h", host, "-p", port, "SET", "who", string(letter)).CombinedOutput(); err != nil {
			t.Fatalf("redis-cli: %v: %s", err, out)
		}
	}
	s, f := start(t, testbed.FixtureOptions{}, "/usr/bin/python3", "-I", "-c", text(t, "redis_client.py"), ports['A'])
	r := &redirected{s, f}
	fd := r.fd(t, "client")
	rounds := 5
	if soak {
		rounds = 100
	}
	for range rounds {
		r.hears(t, "client", 'A')
		vos(t, "redirect", r.target(), fd, "--at-rest", "--to", "tcp:127.0.0.1:"+ports['B']).expect(t, 0)
		r.hears(t, "client", 'B')
		vos(t, "redirect", r.target(), fd, "--at-rest", "--back").expect(t, 0)
	}
	r.hears(t, "client", 'A')
	r.unharmed(t)
}

// TestRedirectFileOffset binds a file to a copy of it: the offset goes with it, and a
// second redirection leads back to the first file.
func TestRedirectFileOffset(t *testing.T) {
	folder := t.TempDir()
	var files []string
	for _, name := range []string{"one", "two", "three"} {
		files = append(files, filepath.Join(folder, name))
		if err := os.WriteFile(files[len(files)-1], []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "1000")
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Seek(4, 0); err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	pid := strconv.Itoa(cmd.Process.Pid)
	sees := func(path, offset string) {
		t.Helper()
		link, err := os.Readlink("/proc/" + pid + "/fd/3")
		info, infoErr := os.ReadFile("/proc/" + pid + "/fdinfo/3")
		if err != nil || infoErr != nil || link != path || !strings.Contains(string(info), "pos:\t"+offset+"\n") {
			t.Fatalf("%s, %v: %s, %v; want %s at %s", link, err, info, infoErr, path, offset)
		}
	}
	vos(t, "redirect", pid, "3", "--to", "file:"+files[1]).expect(t, 0)
	sees(files[1], "4")
	vos(t, "redirect", pid, "3", "--to", "append:"+files[2]).expect(t, 0)
	sees(files[2], "0")
	before := len(inventory(t, cmd.Process.Pid).Descriptors)
	vos(t, "redirect", pid, "3", "--back").expect(t, 0)
	sees(files[0], "4")
	if after := len(inventory(t, cmd.Process.Pid).Descriptors); after != before-2 {
		t.Errorf("%d descriptors, and %d while it was redirected", after, before)
	}
	vos(t, "redirect", pid, "3", "--to", "file:"+files[1]).expect(t, 0)
	kept := len(inventory(t, cmd.Process.Pid).Descriptors)
	vos(t, "redirect", pid, "3", "--forget").expect(t, 0)
	if left := len(inventory(t, cmd.Process.Pid).Descriptors); left != kept-2 {
		t.Errorf("%d descriptors are left of %d", left, kept)
	}
	sees(files[1], "4")
	r := vos(t, "redirect", pid, "3", "--back", "--json").expect(t, 7)
	if all := redirections(t, r); len(all) != 1 || len(all[0].Refusals) != 1 || all[0].Refusals[0].Code != "not_redirected" {
		t.Errorf("nothing is kept, and: %s", r.Stdout)
	}
	checkFree(t, cmd.Process.Pid)
}

// TestRedirectRefused names what can't be: each is refused by its code, and the
// program is as it was.
func TestRedirectRefused(t *testing.T) {
	r := runRedirected(t, "edge="+messages(t, 'A'), "accept=0", "recv="+messages(t, 'B'))
	edge, accept, recv := r.fd(t, "edge"), r.fd(t, "accept"), r.fd(t, "recv")
	epoll := ""
	for _, line := range inventory(t, r.pid).Descriptors {
		if number, link, _ := strings.Cut(line, " "); strings.Contains(link, "eventpoll") {
			epoll = number
		}
	}
	folder := publicFolder(t)
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, unreachable, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	before := fmt.Sprint(inventory(t, r.pid).Descriptors)
	for name, test := range map[string]struct {
		fd, to string
		code   int
		want   api.Code
	}{
		"closed":                   {"999", "append:" + file, 7, "descriptor_closed"},
		"an epoll":                 {epoll, "append:" + file, 7, "wrong_type"},
		"listener to a file":       {accept, "append:" + file, 7, "wrong_type"},
		"listener to a connection": {accept, "tcp:127.0.0.1:" + unreachable, 7, "unreachable"},
		"connection to a file":     {recv, "file:" + file, 7, "wrong_type"},
		"connection to a listener": {recv, fmt.Sprintf("fd:%d:%s", r.pid, accept), 7, "wrong_type"},
		"unreachable server":       {edge, "tcp:127.0.0.1:" + unreachable, 7, "unreachable"},
		"no unix socket":           {edge, "unix:" + filepath.Join(folder, "none"), 7, "unreachable"},
		"no process":               {edge, "fd:99999999:1", 7, "unreachable"},
		"closed in the other":      {edge, fmt.Sprintf("fd:%d:999", r.pid), 7, "descriptor_closed"},
		"an epoll of another":      {edge, fmt.Sprintf("fd:%d:%s", r.pid, epoll), 7, "wrong_type"},
		"one waits, the other not": {edge, fmt.Sprintf("fd:%d:%s", r.pid, recv), 7, "blocking_differs"},
		"a folder":                 {"0", "file:" + folder, 7, "wrong_type"},
		"no folder":                {"1", "append:" + filepath.Join(folder, "none", "x"), 7, "unreachable"},
		"not understood":           {edge, "pipe:1", 2, ""},
		"a path that is not whole": {edge, "file:x", 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := vos(t, "redirect", r.target(), test.fd, "--to", test.to, "--json").expect(t, test.code)
			if test.want != "" {
				all := redirections(t, got)
				if len(all) != 1 || all[0].Outcome != api.Refused || len(all[0].Refusals) == 0 || all[0].Refusals[0].Code != test.want || all[0].PauseUS != 0 {
					t.Errorf("%s", got.Stdout)
				}
			}
			if now := fmt.Sprint(inventory(t, r.pid).Descriptors); now != before {
				t.Errorf("descriptors are %s and were %s", now, before)
			}
		})
	}
	vos(t, "redirect", "99999999", "5", "--back").expect(t, 6)
	if size(t, file) != 0 {
		t.Error("something was written")
	}
	r.unharmed(t)
}

// TestRedirectLockedFile refuses a file on which the program holds a lock, which
// closing any descriptor of the file would give up.
func TestRedirectLockedFile(t *testing.T) {
	folder := t.TempDir()
	log := filepath.Join(folder, "log")
	const program = `import fcntl, os, sys
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
g = os.open(sys.argv[1], os.O_RDWR)
getattr(fcntl, sys.argv[2])(g, fcntl.LOCK_EX)
print("ready", flush=True)
sys.stdin.readline()`
	for _, lock := range []string{"lockf", "flock"} {
		f := testbed.Run(t, testbed.FixtureOptions{Mute: true}, "/usr/bin/python3", "-I", "-c", program, log, lock)
		fd := "3"
		if lock == "flock" {
			fd = "4" // only the description that has it is concerned
		}
		got := vos(t, "redirect", strconv.Itoa(f.Pid()), fd, "--to", "append:"+filepath.Join(folder, "other"), "--json").expect(t, 7)
		if all := redirections(t, got); len(all) != 1 || all[0].Refusals[0].Code != "locks_held" {
			t.Errorf("%s: %s", lock, got.Stdout)
		}
		if _, err := os.Stat(filepath.Join(folder, "other")); err == nil {
			t.Errorf("%s: a file was made", lock)
		}
	}
}

// TestRedirectByTheProgramsRights redirects a program of another user: it gets no file
// that it may not open, and what is made for it is its own.
func TestRedirectByTheProgramsRights(t *testing.T) {
	const nobody = 65534
	folder := publicFolder(t)
	theirs := filepath.Join(folder, "theirs")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(folder, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	one, two := filepath.Join(theirs, "one"), filepath.Join(theirs, "two")
	program := filepath.Join(folder, "redirect")
	copyFile(t, compiled(t, "redirect"), program)
	s, f := start(t, testbed.FixtureOptions{Attr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}}, program, "log="+one)
	r := &redirected{s, f}
	fd := r.fd(t, "log")
	for _, path := range []string{secret, filepath.Join(folder, "new")} {
		got := vos(t, "redirect", r.target(), fd, "--to", "append:"+path, "--json").expect(t, 7)
		if all := redirections(t, got); len(all) != 1 || all[0].Refusals[0].Code != "no_permission" {
			t.Errorf("%s: %s", path, got.Stdout)
		}
	}
	vos(t, "redirect", r.target(), fd, "--to", "append:"+two).expect(t, 0)
	grows(t, two)
	info, err := os.Stat(two)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != nobody || st.Gid != nobody || info.Mode().Perm() != 0o640 {
		t.Errorf("the file is %d:%d %v", st.Uid, st.Gid, info.Mode())
	}
	vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
	vos(t, "redirect", r.target(), fd, "--to", "append:"+secret, "--as-caller").expect(t, 0)
	grows(t, secret)
	vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
	r.unharmed(t)
	if err := f.Quit(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	logLines(t, one, two, secret)
}

// TestRedirectInNamespaces redirects a program that has a root directory and a network
// of its own: paths and addresses are as it sees them.
func TestRedirectInNamespaces(t *testing.T) {
	inside := publicFolder(t)
	s, f := start(t, testbed.FixtureOptions{Wrap: func(argv []string) []string {
		return append([]string{"unshare", "--mount", "--net", "sh", "-ec",
			`mount -t tmpfs tmpfs "$0"; ip link set lo up 2>/dev/null || true; exec "$@"`, inside}, argv...)
	}}, compiled(t, "redirect"), "log="+filepath.Join(inside, "one"))
	r := &redirected{s, f}
	fd := r.fd(t, "log")
	vos(t, "redirect", r.target(), fd, "--to", "append:"+filepath.Join(inside, "two")).expect(t, 0)
	root := fmt.Sprintf("/proc/%d/root", r.pid)
	grows(t, filepath.Join(root, inside, "two"))
	if entries, err := os.ReadDir(inside); err != nil || len(entries) > 0 {
		t.Errorf("outside there are %v, %v", entries, err)
	}
	// A server of this machine's network is none of its own.
	port := messages(t, 'A')
	got := vos(t, "redirect", r.target(), fd, "--to", "tcp:127.0.0.1:"+port, "--json").expect(t, 7)
	if all := redirections(t, got); len(all) != 1 || all[0].Refusals[0].Code != "unreachable" {
		t.Errorf("%s", got.Stdout)
	}
	vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
	r.unharmed(t)
}

// TestRedirectFullTable refuses a program that has no room for more descriptors.
func TestRedirectFullTable(t *testing.T) {
	r := runRedirected(t, "log="+filepath.Join(t.TempDir(), "log"))
	room := uint64(len(inventory(t, r.pid).Descriptors) + 2)
	if err := unix.Prlimit(r.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: room, Max: room}, nil); err != nil {
		t.Fatal(err)
	}
	got := vos(t, "redirect", r.target(), r.fd(t, "log"), "--to", "append:/dev/null", "--json").expect(t, 7)
	if all := redirections(t, got); len(all) != 1 || all[0].Refusals[0].Code != "descriptors_exhausted" {
		t.Errorf("%s", got.Stdout)
	}
	r.unharmed(t)
}

// TestRedirectByAnOrdinaryUser lets a user redirect a program of his own, and not one
// of another's.
func TestRedirectByAnOrdinaryUser(t *testing.T) {
	const nobody = 65534
	folder := publicFolder(t)
	if err := os.Chown(folder, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	program, own := filepath.Join(folder, "redirect"), filepath.Join(folder, "vos")
	copyFile(t, compiled(t, "redirect"), program)
	copyFile(t, binary, own)
	user := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	run := func(code int, args ...string) {
		t.Helper()
		cmd := exec.Command(own, args...)
		cmd.SysProcAttr = user
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
			t.Fatalf("vos %v: %v, want exit code %d: %s", args, err, code, out)
		}
	}
	one, two := filepath.Join(folder, "one"), filepath.Join(folder, "two")
	s, f := start(t, testbed.FixtureOptions{Attr: user}, program, "log="+one)
	r := &redirected{s, f}
	fd := r.fd(t, "log")
	for range 5 {
		run(0, "redirect", r.target(), fd, "--to", "append:"+two)
		grows(t, two)
		run(0, "redirect", r.target(), fd, "--back")
		grows(t, one)
	}
	r.unharmed(t)
	if err := f.Quit(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	logLines(t, one, two)
	roots := runRedirected(t, "log="+filepath.Join(t.TempDir(), "log"))
	run(5, "redirect", roots.target(), roots.fd(t, "log"), "--to", "append:"+two)
	roots.unharmed(t)
}

// TestRedirectBySignal moves a connection that a program is told of by SIGIO: so it is
// at the new one, and at the old one again.
func TestRedirectBySignal(t *testing.T) {
	const program = `import fcntl, json, os, signal, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.setblocking(False)
counts, rest, errors, told, busy = {"io.fd": s.fileno()}, b"", 0, 0, False
def arrived(*_): # one signal may arrive within the handling of another
    global told, busy
    told += 1
    if not busy:
        busy = True
        while told:
            told = 0
            take()
        busy = False
def take():
    global rest
    try:
        rest += s.recv(1 << 16)
    except BlockingIOError:
        return
    for n in range(0, len(rest) - 7, 8):
        name = "io." + chr(rest[n])
        counts[name] = counts.get(name, 0) + 1
    rest = rest[len(rest) // 8 * 8:]
signal.signal(signal.SIGIO, arrived)
fcntl.fcntl(s, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(s, fcntl.F_SETFL, fcntl.fcntl(s, fcntl.F_GETFL) | os.O_ASYNC)
print("ready", flush=True)
for line in sys.stdin:
    if line == "quit\n":
        os._exit(0)
    print(json.dumps({"fixture": "signal", "errors": errors, "error": "", "progress": sum(counts.values()), "counts": counts}), flush=True)
`
	a, b := messages(t, 'A'), messages(t, 'B')
	s, f := start(t, testbed.FixtureOptions{}, "/usr/bin/python3", "-I", "-c", program, a)
	r := &redirected{s, f}
	fd := r.fd(t, "io")
	flags := flagsOf(t, r.pid, fd)
	for range 3 {
		r.hears(t, "io", 'A')
		vos(t, "redirect", r.target(), fd, "--to", "tcp:127.0.0.1:"+b).expect(t, 0)
		r.hears(t, "io", 'B')
		if now := flagsOf(t, r.pid, fd); now != flags {
			t.Errorf("flags are %s and were %s", now, flags)
		}
		vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
	}
	r.hears(t, "io", 'A')
	r.unharmed(t)
}
