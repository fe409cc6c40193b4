package live

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// waits are the ways in which a thread of the fixture waits at a connection.
var waits = []string{"recv", "read", "timed", "poll", "select", "edge", "oneshot", "level", "exclusive"}

// messages serves the messages of the fixture redirect: a letter and a number, for
// each connection from 0 on, one every millisecond.
func messages(t *testing.T, letter byte) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go talk(c, letter)
		}
	}()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func talk(c net.Conn, letter byte) {
	defer c.Close()
	for n := 0; ; n++ {
		if _, err := fmt.Fprintf(c, "%c%06d\n", letter, n%1e6); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// A redirected is the fixture redirect under test.
type redirected struct {
	*subject
	fixture *testbed.Fixture
}

func runRedirected(t *testing.T, args ...string) *redirected {
	t.Helper()
	s, f := start(t, testbed.FixtureOptions{}, compiled(t, "redirect"), args...)
	return &redirected{s, f}
}

// counts returns the fixture's counters, and fails the test on any error.
func (r *redirected) counts(t *testing.T) map[string]int64 {
	t.Helper()
	report, err := r.ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Errors > 0 {
		t.Fatalf("%d errors, the first: %s", report.Errors, report.Error)
	}
	return report.Counts
}

func (r *redirected) fd(t *testing.T, kind string) string {
	t.Helper()
	return strconv.FormatInt(r.counts(t)[kind+".fd"], 10)
}

// hears waits until messages of a letter have come by a way of waiting, and then
// that none of the others come.
func (r *redirected) hears(t *testing.T, kind string, letter byte) {
	t.Helper()
	key := fmt.Sprintf("%s.%c", kind, letter)
	before := r.counts(t)
	await(t, "messages of "+key, func() bool { return r.counts(t)[key] > before[key]+5 })
	before = r.counts(t)
	await(t, "messages of "+key, func() bool { return r.counts(t)[key] > before[key]+5 })
	for name, n := range r.counts(t) {
		if k, l, ok := strings.Cut(name, "."); ok && k == kind && len(l) == 1 && l[0] != letter && n != before[name] {
			t.Fatalf("%s: %d messages of %s while %c is heard", kind, n-before[name], l, letter)
		}
	}
}

func redirections(t *testing.T, r result) []api.Redirection {
	t.Helper()
	return lines[api.Redirection](t, r)
}

// inEpolls returns the lines of all registrations of a process, of one number.
func inEpolls(t *testing.T, pid int, fd string) (all []string) {
	t.Helper()
	folder := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, _ := os.ReadFile(filepath.Join(folder, e.Name()))
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 5 && f[0] == "tfd:" && f[1] == fd {
				all = append(all, strings.Join(f[:6], " "))
			}
		}
	}
	return all
}

// TestRedirectConnections moves connections to another server and back, again and
// again, under threads that wait at them in every way. The program sees whole
// messages in order, no EINTR, and its own numbers, flags and registrations.
func TestRedirectConnections(t *testing.T) {
	a, b := messages(t, 'A'), messages(t, 'B')
	var args []string
	for _, kind := range waits {
		args = append(args, kind+"="+a)
	}
	r := runRedirected(t, args...)
	rounds := 4
	if soak {
		rounds = 100
	}
	before := len(inventory(t, r.pid).Descriptors)
	for _, kind := range waits {
		t.Run(kind, func(t *testing.T) {
			fd := r.fd(t, kind)
			flags := flagsOf(t, r.pid, fd)
			registered := inEpolls(t, r.pid, fd)
			for range rounds {
				r.hears(t, kind, 'A')
				done := redirections(t, vos(t, "redirect", r.target(), fd, "--to", "tcp:127.0.0.1:"+b, "--json").expect(t, 0))
				if len(done) != 1 || done[0].Outcome != api.Redirected || done[0].Registrations != len(registered) || done[0].Kept < 0 {
					t.Fatalf("result: %+v", done)
				}
				r.hears(t, kind, 'B')
				if now := flagsOf(t, r.pid, fd); now != flags {
					t.Errorf("flags are %s and were %s", now, flags)
				}
				if now := inEpolls(t, r.pid, fd); !slices.Equal(withoutMask(now), withoutMask(registered)) {
					t.Errorf("registrations are %q and were %q", now, registered)
				}
				vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
				r.unharmed(t)
			}
			r.hears(t, kind, 'A')
			if now := flagsOf(t, r.pid, fd); now != flags {
				t.Errorf("flags are %s and were %s", now, flags)
			}
		})
	}
	if after := len(inventory(t, r.pid).Descriptors); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// withoutMask leaves out what a one-shot registration is waiting for: it comes and
// goes as events are handled.
func withoutMask(lines []string) (all []string) {
	for _, l := range lines {
		f := strings.Fields(l)
		events, err := strconv.ParseUint(f[3], 16, 32)
		if err == nil && events&(1<<30) != 0 {
			f[3] = strconv.FormatUint(events&^0xfffffff, 16)
		}
		all = append(all, strings.Join(f, " "))
	}
	return all
}

func flagsOf(t *testing.T, pid int, fd string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if flags, ok := strings.CutPrefix(line, "flags:"); ok {
			return strings.TrimSpace(flags)
		}
	}
	t.Fatalf("no flags: %s", text)
	return ""
}

// TestRedirectListener binds a listening socket to that of another process while a
// thread waits in accept, and back.
func TestRedirectListener(t *testing.T) {
	r := runRedirected(t, "accept=0", "recv="+messages(t, 'A'))
	fd := r.fd(t, "accept")
	own := r.counts(t)["accept.port"]
	other, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.Bind(other, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = syscall.Listen(other, 16)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(other) })
	name, err := syscall.Getsockname(other)
	if err != nil {
		t.Fatal(err)
	}
	port := int64(name.(*syscall.SockaddrInet4).Port)
	ask := func(port int64, letter byte) {
		t.Helper()
		key := "accept." + string(letter)
		before := r.counts(t)[key]
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_, err = c.Write([]byte{letter})
			defer c.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		await(t, "an accepted connection", func() bool { return r.counts(t)[key] == before+1 })
	}
	ask(own, 'A')
	for range 5 {
		vos(t, "redirect", r.target(), fd, "--to", fmt.Sprintf("fd:%d:%d", os.Getpid(), other)).expect(t, 0)
		ask(port, 'B')
		vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
		ask(own, 'A')
	}
	r.unharmed(t)
}

// TestRedirectUnix moves a connection to a server at a unix socket, by path and by
// abstract name.
func TestRedirectUnix(t *testing.T) {
	r := runRedirected(t, "recv="+messages(t, 'A'))
	fd := r.fd(t, "recv")
	path := filepath.Join(publicFolder(t), "socket")
	for _, name := range []string{path, fmt.Sprintf("@vos-test-%d", os.Getpid())} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go talk(c, 'C')
			}
		}()
		vos(t, "redirect", r.target(), fd, "--to", "unix:"+name).expect(t, 0)
		r.hears(t, "recv", 'C')
		vos(t, "redirect", r.target(), fd, "--back").expect(t, 0)
		r.hears(t, "recv", 'A')
	}
	r.unharmed(t)
}

// logLines reads the lines "PID N" of files and checks that the numbers of each
// process are there once each.
func logLines(t *testing.T, files ...string) (lines int) {
	t.Helper()
	seen := make(map[string][]int)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			pid, n, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			number, err := strconv.Atoi(n)
			if !ok || err != nil {
				t.Fatalf("%s: line %q", file, line)
			}
			seen[pid] = append(seen[pid], number)
		}
	}
	for pid, numbers := range seen {
		slices.Sort(numbers)
		for i, n := range numbers {
			if n != i {
				t.Fatalf("process %s: line %d is there %d as the %dth", pid, n, len(numbers), i)
			}
		}
		lines += len(numbers)
	}
	return lines
}

// TestRedirectAllProcesses switches the log of a program and its children, who have
// it by fork and by dup.
func TestRedirectAllProcesses(t *testing.T) {
	folder := t.TempDir()
	one, two := filepath.Join(folder, "one.log"), filepath.Join(folder, "two.log")
	r := runRedirected(t, "log="+one, "children=3")
	fd := r.fd(t, "log")
	planned := redirections(t, vos(t, "redirect", r.target(), fd, "--all", "--to", "append:"+two, "--dry-run", "--json").expect(t, 10))
	if len(planned) != 4 || planned[0].Outcome != api.Planned || len(planned[0].Steps) == 0 || len(planned[0].Descriptors) != 2 {
		t.Fatalf("plan: %+v", planned)
	}
	if _, err := os.Stat(two); !os.IsNotExist(err) {
		t.Errorf("a dry run has made the file: %v", err)
	}
	alone := redirections(t, vos(t, "redirect", r.target(), fd, "--to", "append:"+two, "--dry-run", "--json").expect(t, 10))
	if len(alone) != 1 || len(alone[0].Residual) == 0 {
		t.Errorf("nothing is said of other holders: %+v", alone)
	}
	rounds := 10
	if soak {
		rounds = 300
	}
	for range rounds {
		done := redirections(t, vos(t, "redirect", r.target(), fd, "--all", "--to", "append:"+two, "--json").expect(t, 0))
		if len(done) != 4 {
			t.Fatalf("%d processes: %+v", len(done), done)
		}
		before := size(t, one)
		grows(t, two)
		if now := size(t, one); now != before {
			t.Fatalf("the file before has grown from %d to %d", before, now)
		}
		vos(t, "redirect", r.target(), fd, "--all", "--back").expect(t, 0)
		grows(t, one)
	}
	r.unharmed(t)
	if err := r.fixture.Quit(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // its children end with it
	if n := logLines(t, one, two); n < 100 {
		t.Errorf("only %d lines", n)
	}
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func grows(t *testing.T, file string) {
	t.Helper()
	before := size(t, file)
	await(t, file+" to grow", func() bool { return size(t, file) > before })
}

// TestRedirectNginxLog switches nginx's access log under load. Each request has its
// line, in one of the files, once.
func TestRedirectNginxLog(t *testing.T) {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{AccessLog: true})
	first := filepath.Join(nginx.Folder(), "access.log")
	second := filepath.Join(publicFolder(t), "second.log")
	fd := ""
	for _, line := range inventory(t, nginx.Master()).Descriptors {
		if number, link, _ := strings.Cut(line, " "); strings.HasSuffix(link, "/access.log") {
			fd = number
		}
	}
	if fd == "" {
		t.Fatal("nginx has no access log open")
	}
	count := func() (n int64) {
		for _, file := range []string{first, second} {
			text, err := os.ReadFile(file)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			n += int64(strings.Count(string(text), "\n"))
		}
		return n
	}
	settled := func(what string, want func() bool) {
		t.Helper()
		await(t, what, want)
	}
	last := int64(-1)
	settled("a quiet log", func() bool { n := count(); same := n == last; last = n; time.Sleep(20 * time.Millisecond); return same })
	before := count()
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	defer load.Stop()
	target := strconv.Itoa(nginx.Master())
	rounds := 15
	if soak {
		rounds = 300
	}
	for range rounds {
		for _, way := range [][]string{{"--to", "append:" + second}, {"--back"}} {
			done := redirections(t, vos(t, append([]string{"redirect", target, fd, "--all", "--json"}, way...)...).expect(t, 0))
			if len(done) != 3 {
				t.Fatalf("processes: %+v", done)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := load.Await(ctx, 20); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
	}
	totals := load.Stop()
	t.Log(totals)
	if totals.Failed > 0 || totals.Served == 0 {
		t.Fatalf("failed requests: %v", totals.Errors)
	}
	settled(fmt.Sprintf("%d lines", totals.Served), func() bool { return count()-before >= totals.Served })
	time.Sleep(50 * time.Millisecond)
	if got := count() - before; got != totals.Served {
		t.Errorf("%d lines of %d requests", got, totals.Served)
	}
	for _, file := range []string{first, second} {
		if size(t, file) == 0 {
			t.Errorf("%s is empty", file)
		}
	}
	for _, pid := range nginx.Pids() {
		checkFree(t, pid)
	}
}
