package live

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A freshProgram starts a program in namespaces, and returns what makes it work there and
// verifies its state. No connection is left then.
type freshProgram func(t *testing.T, f *fresh) (works func(t *testing.T, f *fresh))

// TestSnapshotFreshNamespaces takes programs through cycles in which a fresh set of
// namespaces is made each time, the one before is gone, and the program is restored there,
// with its ids, or, where they are taken, with others in a namespace below.
func TestSnapshotFreshNamespaces(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	programs := map[string]freshProgram{
		"a loop": freshFixture("plain"), "64 threads": freshFixture("threads", "64", "mixed", "5"),
		"python3": freshLines(func(t *testing.T) []string {
			return []string{testbed.NeedTool(t, "python3"), "-c", pythonReport}
		}),
		"redis with 20 MB": freshRedis(20_000), "nginx": freshNginx, "PostgreSQL": freshPostgres,
		"sqlite3": freshSqlite, "mosquitto": freshBroker,
		"bash": freshShell, "vim.tiny": freshEditor("vim.tiny", "i", "\x1b:w\r"), "nano": freshEditor("nano", "", "\x0f\r"),
		"htop": freshTop,
	}
	const gigabyte = "redis with 1 GB"
	if soak {
		programs["redis with 100 MB"], programs[gigabyte] = freshRedis(100_000), freshRedis(1_000_000)
	}
	for name := range servers {
		if name != "redis" && (name != "Java" || soak) { // it takes long to begin
			programs[name] = freshServer(name)
		}
	}
	for name, start := range programs {
		t.Run(name, func(t *testing.T) {
			f := newFresh(t)
			works := start(t, f)
			folder := t.TempDir()
			cycles := cycles
			if name == gigabyte {
				cycles = 3
			}
			for n := range cycles {
				works(t, f)
				before, image := f.processes(t), filepath.Join(folder, strconv.Itoa(n))
				f.checkpoint(t, image)
				f.over(t)
				f = newFresh(t)
				if n%3 == 1 {
					f.taken(t, image)
				} else {
					f.vos(t, "restore", "-D", image).expect(t, 0)
				}
				if after := f.processes(t); !slices.Equal(after, before) {
					t.Fatalf("processes, parents, groups and sessions were %q and are %q", before, after)
				}
				if err := os.RemoveAll(image); err != nil {
					t.Fatal(err)
				}
			}
			works(t, f)
			f.vos(t, "verify", "--full", strconv.Itoa(firstID)).expect(t, 0)
		})
	}
}

// freshServer is one of the servers that count.
func freshServer(name string) freshProgram {
	return func(t *testing.T, f *fresh) func(*testing.T, *fresh) {
		port := freePort(t)
		command, ask := servers[name](t, port, t.TempDir())
		f.start(t, command...)
		first := f.connect(t, port)
		if name == "memcached" {
			answered(t, first, "set n 0 0 1\r\n0\r\n")
			first = f.connect(t, port)
		}
		last := answered(t, first, ask)
		return func(t *testing.T, f *fresh) {
			t.Helper()
			for range 3 {
				next := answered(t, f.connect(t, port), ask)
				before, err1 := strconv.Atoi(last)
				n, err2 := strconv.Atoi(next)
				if err := errors.Join(err1, err2); err != nil || n != before+1 {
					t.Fatalf("answered %q after %q", next, last)
				}
				last = next
			}
		}
	}
}

// freshRedis is a redis with so many values of a kilobyte.
func freshRedis(keys int) freshProgram {
	return func(t *testing.T, f *fresh) func(*testing.T, *fresh) {
		port := freePort(t)
		f.start(t, testbed.NeedTool(t, "redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(), "--enable-debug-command", "yes")
		if said := answered(t, f.connect(t, port), fmt.Sprintf("DEBUG POPULATE %d key 1000\r\n", keys)); said != "+OK" {
			t.Fatal(said)
		}
		last, digest := 0, answered(t, f.connect(t, port), "DEBUG DIGEST\r\n")
		return func(t *testing.T, f *fresh) {
			t.Helper()
			if now := answered(t, f.connect(t, port), "DEBUG DIGEST\r\n"); len(now) != 41 || now != digest {
				t.Fatalf("its digest is %q and was %q", now, digest)
			}
			last++
			if n := answered(t, f.connect(t, port), "INCR n\r\n"); n != strconv.Itoa(last) {
				t.Fatalf("answered %q, not %d", n, last)
			}
			digest = answered(t, f.connect(t, port), "DEBUG DIGEST\r\n")
		}
	}
}

func freshNginx(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	port := freePort(t)
	f.start(t, nginxCommand(t, port)...)
	f.connect(t, port).Close()
	await(t, "three workers", func() bool { return len(f.processes(t)) == 4 })
	return func(t *testing.T, f *fresh) {
		t.Helper()
		for range 10 {
			c := f.connect(t, port)
			if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			var worker string
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				worker = lines.Text()
			}
			c.Close()
			if !slices.ContainsFunc(f.processes(t), func(p string) bool {
				return strings.HasPrefix(p, worker+" "+strconv.Itoa(firstID)+" ") && strings.HasSuffix(p, " nginx")
			}) {
				t.Fatalf("answered by %q, %v, which is none of %q", worker, lines.Err(), f.processes(t))
			}
		}
	}
}

func freshPostgres(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	port := freePort(t)
	f.start(t, postgresCommand(t, port)...)
	query := func(f *fresh, text string) (string, error) {
		out, err := f.command(psql(t, port, text)...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	await(t, "PostgreSQL to answer", func() bool { _, err := query(f, "select 1"); return err == nil })
	rows := 2000
	if out, err := query(f, fmt.Sprintf("create table t (n int, words text); insert into t select n, repeat('word ', n %% 50) from generate_series(1, %d) n", rows)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return func(t *testing.T, f *fresh) {
		t.Helper()
		rows++
		out, err := query(f, fmt.Sprintf("insert into t values (%d, 'more'); select count(*), sum(n) from t", rows))
		if want := fmt.Sprintf("%d|%d", rows, rows*(rows+1)/2); err != nil || out != want {
			t.Fatalf("%v: %q, want %q", err, out, want)
		}
		await(t, "its backend to end", func() bool {
			out, err := f.command("ps", "-eo", "args=").Output()
			if err != nil {
				t.Fatal(err)
			}
			return !strings.Contains(string(out), "postgres: vos ") && !strings.Contains(string(out), "defunct")
		})
	}
}

// A lined program answers lines, by FIFOs of which it has both ends.
type lined struct{ folder string }

// freshLined starts one.
func freshLined(t *testing.T, f *fresh, command ...string) *lined {
	t.Helper()
	folder := publicFolder(t)
	f.start(t, append([]string{"sh", "-c", `mkfifo "$0"/in "$0"/out; exec "$@" <>"$0"/in 1<>"$0"/out`, folder}, command...)...)
	await(t, "its FIFOs", func() bool { _, err := os.Stat(filepath.Join(folder, "out")); return err == nil })
	return &lined{folder}
}

// say sends lines, if there are any, and returns the first one that is answered, but for
// those that are to be skipped.
func (l *lined) say(t *testing.T, lines string, skip func(string) bool) string {
	t.Helper()
	in, err := os.OpenFile(filepath.Join(l.folder, "in"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(l.folder, "out"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteString(lines); err != nil {
		t.Fatal(err)
	}
	// A byte after the other: what follows is the next one's to read.
	for {
		var line []byte
		for b := make([]byte, 1); b[0] != '\n'; line = append(line, b[0]) {
			if _, err := out.Read(b); err != nil {
				t.Fatalf("%q is answered by %q, %v", lines, line, err)
			}
		}
		if said := strings.TrimSpace(string(line)); !skip(said) {
			return said
		}
	}
}

func nothing(string) bool { return false }

// freshLines is a program that reports as fixtures do.
func freshLines(command func(t *testing.T) []string) freshProgram {
	return func(t *testing.T, f *fresh) func(*testing.T, *fresh) {
		l := freshLined(t, f, command(t)...)
		if said := l.say(t, "", nothing); said != "ready" {
			t.Fatalf("it says %q", said)
		}
		var last testbed.Report
		return func(t *testing.T, f *fresh) {
			t.Helper()
			await(t, "it to work", func() bool {
				var r testbed.Report
				if err := json.Unmarshal([]byte(l.say(t, "report\n", nothing)), &r); err != nil {
					t.Fatal(err)
				}
				if r.Errors > 0 {
					t.Fatal(r.Healthy(last))
				}
				if r.Healthy(last) != nil {
					return false
				}
				last = r
				return true
			})
		}
	}
}

func freshFixture(name string, args ...string) freshProgram {
	return freshLines(func(t *testing.T) []string {
		build, err := testbed.Source(name)
		if err != nil {
			t.Fatal(err)
		}
		return append([]string{testbed.MustCompile(t, build)}, args...)
	})
}

// freshSqlite is a shell of SQL in the middle of a transaction.
func freshSqlite(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	sqlite := testbed.NeedTool(t, "sqlite3")
	file := filepath.Join(t.TempDir(), "numbers")
	l := freshLined(t, f, sqlite, "-interactive", "-cmd", ".print ready", "-cmd", ".prompt '' ''", file)
	rows := 0
	echo := func(line string) bool { return strings.Contains(line, "; select") }
	greeting := func(line string) bool {
		return echo(line) || line == "ready" || strings.HasPrefix(line, "SQLite ") || strings.HasPrefix(line, "Enter ")
	}
	if said := l.say(t, "create table numbers (n integer); begin immediate; select 'begun';\n", greeting); said != "begun" {
		t.Fatalf("it says %q", said)
	}
	return func(t *testing.T, f *fresh) {
		t.Helper()
		rows++
		if said := l.say(t, fmt.Sprintf("insert into numbers values (%d); select count(*), sum(n) from numbers;\n", rows), echo); said != fmt.Sprintf("%d|%d", rows, rows*(rows+1)/2) {
			t.Fatalf("it says %q with %d rows", said, rows)
		}
		var stderr bytes.Buffer
		other := f.command(sqlite, "-batch", file, "select count(*) from numbers; insert into numbers values (-1);")
		other.Stderr = &stderr
		if out, err := other.Output(); err == nil || string(out) != "0\n" || !strings.Contains(stderr.String(), "locked") {
			t.Fatalf("somebody else in its transaction: %q, %v: %s", out, err, &stderr)
		}
	}
}

// freshBroker is a mosquitto with a session whose client is away.
func freshBroker(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	port := freePort(t)
	config := filepath.Join(t.TempDir(), "conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nuser nobody\nlog_dest none\n", port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f.start(t, "/usr/sbin/mosquitto", "-c", config)
	subscriber := mqttOver(t, f.connect(t, port), "subscriber", false)
	subscriber.subscribe(t, "numbers")
	subscriber.leave(t)
	n := 0
	return func(t *testing.T, f *fresh) {
		t.Helper()
		if n > 0 {
			subscriber := mqttOver(t, f.connect(t, port), "subscriber", true)
			if topic, message := subscriber.receive(t); topic != "numbers" || message != strconv.Itoa(n) {
				t.Fatalf("%q waited under %q, not %d", message, topic, n)
			}
			subscriber.leave(t)
		}
		n++
		publisher := mqttOver(t, f.connect(t, port), "publisher", false)
		publisher.publish(t, "numbers", strconv.Itoa(n), false)
		publisher.leave(t)
	}
}

// freshTyped starts a program in a pseudo terminal; attend does something as its client.
func freshTyped(t *testing.T, f *fresh, command ...string) (attend func(f *fresh, do func(y *typist))) {
	t.Helper()
	port := freePort(t)
	f.start(t, append([]string{testbed.NeedTool(t, "python3"), data(t, "holder.py"), port}, command...)...)
	return func(f *fresh, do func(y *typist)) {
		y := &typist{client: f.connect(t, port)}
		y.watch(t)
		do(y)
		y.client.Close()
	}
}

func freshShell(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	attend := freshTyped(t, f, testbed.NeedTool(t, "bash"), "--norc")
	attend(f, func(y *typist) { y.types(t, "PS1='ready> '; n=0; sleep 1000 &\r", "[1] ", "ready> ") })
	n := 0
	return func(t *testing.T, f *fresh) {
		n++
		attend(f, func(y *typist) {
			y.types(t, "n=$((n+1)); echo \"is $n, $(jobs)\"\r", fmt.Sprintf("is %d, [1]", n), "Running", "ready> ")
			y.types(t, "sleep 500\r", "sleep 500\r")
			await(t, "sleep to be in the foreground", func() bool {
				sleeps := slices.DeleteFunc(f.processes(t), func(p string) bool { return !strings.HasSuffix(p, " sleep") })
				return len(sleeps) == 2 // it takes the terminal before it is executed
			})
			y.types(t, "\x03", "^C", "ready> ")
		})
	}
}

func freshEditor(name, begin, write string) freshProgram {
	return func(t *testing.T, f *fresh) func(*testing.T, *fresh) {
		file := filepath.Join(publicFolder(t), "text")
		attend := freshTyped(t, f, testbed.NeedTool(t, name), file)
		attend(f, func(y *typist) { y.types(t, "", "text") })
		want, n := "", 0
		return func(t *testing.T, f *fresh) {
			n++
			want += fmt.Sprintf("line %d\n", n)
			attend(f, func(y *typist) {
				y.types(t, fmt.Sprintf("%sline %d\r", begin, n), strconv.Itoa(n))
				y.types(t, write)
				await(t, "what was typed to be written", func() bool {
					got, err := os.ReadFile(file)
					return err == nil && strings.TrimSpace(string(got)) == strings.TrimSpace(want)
				})
			})
		}
	}
}

func freshTop(t *testing.T, f *fresh) func(*testing.T, *fresh) {
	attend := freshTyped(t, f, testbed.NeedTool(t, "htop"), "-d", "5")
	attend(f, func(y *typist) { y.types(t, "", "Load average") })
	return func(t *testing.T, f *fresh) {
		attend(f, func(y *typist) {
			y.types(t, "h", "htop", "Arrows") // its help
			y.types(t, "q", "Load average")
		})
	}
}
