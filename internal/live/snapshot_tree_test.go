package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// freePort is a port of the loopback address that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startAlone starts a program in a session of its own, with no descriptors of the tests.
func startAlone(t *testing.T, command ...string) (pid int) {
	t.Helper()
	cmd := exec.Command(testbed.MustCompile(t, testbed.Build{Name: "alone", Source: text(t, "alone.c")}), command...)
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pids := tree(t, cmd.Process.Pid)
		for i := range pids {
			_ = syscall.Kill(pids[i].pid, syscall.SIGKILL) // it may have ended
		}
		reapAll(pids)
	})
	return cmd.Process.Pid
}

// A relative is a process with its place among others.
type relative struct{ pid, parent, group, session int }

// tree is a process with all that descends from it; none if it is not there.
func tree(t *testing.T, root int) (all []relative) {
	t.Helper()
	for next := []int{root}; len(next) > 0; next = next[1:] {
		pid := next[0]
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		number := func(i int) int {
			n, err := strconv.Atoi(fields[i])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		r := relative{pid, number(1), number(2), number(3)}
		if pid == root {
			r.parent = 0
		}
		all = append(all, r)
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(children)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			next = append(next, child)
		}
	}
	slices.SortFunc(all, func(a, b relative) int { return a.pid - b.pid })
	return all
}

// below are those that descend from a process.
func below(t *testing.T, root int) []relative {
	t.Helper()
	return slices.DeleteFunc(tree(t, root), func(r relative) bool { return r.pid == root })
}

// reapAll waits for processes that have ended, or are about to. They become the tests'
// children one after the other, each when its parent was waited for.
func reapAll(all []relative) {
	for range all {
		for _, r := range all {
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(r.pid, &status, 0, nil) // it may not be ours, yet or any more
		}
	}
}

// TestSnapshotTrees checkpoints servers of several processes, ends them, and builds them
// again: the same processes with the same relations, that work.
func TestSnapshotTrees(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	for name, start := range map[string]func(*testing.T) (root int, works func(t *testing.T)){"nginx": nginxTree, "PostgreSQL": postgresTree} {
		t.Run(name, func(t *testing.T) {
			root, works := start(t)
			target := strconv.Itoa(root)
			folder := t.TempDir()
			works(t)
			for n := range cycles {
				settled(t, target)
				now, later := filepath.Join(folder, fmt.Sprint("now", n)), filepath.Join(folder, fmt.Sprint("later", n))
				vos(t, "checkpoint", target, "--tree", "-D", now, "--leave-running").expect(t, 0)
				works(t)
				settled(t, target)
				before := tree(t, root)
				vos(t, "checkpoint", target, "--tree", "-D", later).expect(t, 0)
				reapAll(before)
				vos(t, "restore", "-D", later).expect(t, 0)
				if after := tree(t, root); !slices.Equal(after, before) {
					t.Fatalf("processes, parents, groups and sessions were %v and are %v", before, after)
				}
				for _, r := range before {
					checkFree(t, r.pid)
				}
				works(t)
			}
		})
	}
}

// settled waits until a tree can be kept: no connection is open, no child comes or goes.
func settled(t *testing.T, target string) {
	t.Helper()
	root := number(t, target)
	await(t, "its connections to be closed", func() bool {
		before := tree(t, root)
		return vos(t, "check", "--tree", target).Code == 0 && slices.Equal(tree(t, root), before)
	})
}

// endAndRestore ends a tree behind its checkpoint, and builds it again.
func endAndRestore(t *testing.T, root int, image string) {
	t.Helper()
	target := strconv.Itoa(root)
	settled(t, target)
	before := tree(t, root)
	vos(t, "checkpoint", target, "--tree", "-D", image).expect(t, 0)
	reapAll(before)
	vos(t, "restore", "-D", image).expect(t, 0)
	if after := tree(t, root); !slices.Equal(after, before) {
		t.Fatalf("processes, parents, groups and sessions were %v and are %v", before, after)
	}
}

// TestSnapshotTransactions checkpoints PostgreSQL in the middle of transactions, ends it,
// and builds it again: its clients, pgbench, wait, and lose nothing.
func TestSnapshotTransactions(t *testing.T) {
	cycles, transactions := 3, 3000
	if soak {
		cycles, transactions = 20, 20000
	}
	root, port, query := postgres(t)
	pgbench := filepath.Join(postgresBin(t), "pgbench")
	common := []string{"-h", "127.0.0.1", "-p", port, "-U", "vos", "postgres"}
	if out, err := exec.Command(pgbench, append([]string{"-i", "-q", "-s", "1"}, common...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	folder := t.TempDir()
	clients := exec.Command(pgbench, append([]string{"-c", "4", "-t", strconv.Itoa(transactions)}, common...)...)
	var out bytes.Buffer
	clients.Stdout, clients.Stderr = &out, &out
	if err := clients.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- clients.Wait() }()
	held := 0
	for n := range cycles {
		await(t, "its four clients", func() bool { return len(done) > 0 || len(tree(t, root)) >= 8 })
		select {
		case err := <-done:
			done <- err
			continue
		default:
		}
		held++
		endAndRestore(t, root, filepath.Join(folder, strconv.Itoa(n)))
	}
	select {
	case err := <-done:
		if err != nil || !strings.Contains(out.String(), fmt.Sprintf("%d/%[1]d", 4*transactions)) {
			t.Fatalf("pgbench: %v: %s", err, out.String())
		}
	case <-time.After(5 * time.Minute):
		_ = clients.Process.Kill()
		t.Fatalf("pgbench does not end: %s", out.String())
	}
	if held == 0 {
		t.Error("the transactions were over before the first checkpoint")
	}
	sums, err := query(`select count(distinct sum) || '|' || (select count(*) from pgbench_history) from (
select sum(abalance) from pgbench_accounts union all select sum(tbalance) from pgbench_tellers
union all select sum(bbalance) from pgbench_branches union all select sum(delta) from pgbench_history) s`)
	if want := fmt.Sprintf("1|%d", 4*transactions); err != nil || sums != want {
		t.Errorf("%v: sums that differ, and rows: %q, want %q", err, sums, want)
	}
}

// TestSnapshotKeptAlive checkpoints nginx with its workers while clients ask it by
// connections that stay open, ends it, and builds it again: each request is answered, by
// the same connections.
func TestSnapshotKeptAlive(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	root, port := nginxAlone(t)
	const clients = 4
	stop, failures := make(chan struct{}), make(chan error, clients)
	var served, opened atomic.Int64
	for range clients {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			opened.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}}
		go func() {
			for {
				select {
				case <-stop:
					failures <- nil
					return
				default:
				}
				r, err := client.Get("http://127.0.0.1:" + port)
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					err = errors.Join(err, r.Body.Close())
				}
				if err != nil {
					failures <- err
					return
				}
				served.Add(1)
			}
		}()
	}
	folder := t.TempDir()
	for n := range cycles {
		before := served.Load()
		await(t, "requests to be answered", func() bool { return served.Load() > before+100 || len(failures) > 0 })
		endAndRestore(t, root, filepath.Join(folder, strconv.Itoa(n)))
		before = served.Load()
		await(t, "requests to be answered", func() bool { return served.Load() > before+100 || len(failures) > 0 })
	}
	close(stop)
	for range clients {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if opened.Load() != clients {
		t.Errorf("%d connections were opened by %d clients", opened.Load(), clients)
	}
	t.Logf("%d requests over %d connections", served.Load(), opened.Load())
}

func nginxTree(t *testing.T) (int, func(t *testing.T)) {
	root, port := nginxAlone(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	answer := func() (int, error) {
		r, err := client.Get("http://127.0.0.1:" + port)
		if err != nil {
			return 0, err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(body)))
	}
	reloads := 0
	return root, func(t *testing.T) {
		t.Helper()
		workers := below(t, root)
		for range 20 {
			pid, err := answer()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(workers, func(r relative) bool { return r.pid == pid }) {
				t.Fatalf("answered by %d, which is none of %v", pid, workers)
			}
		}
		// The master starts other workers, and ends these.
		if reloads++; reloads%2 == 0 {
			if err := syscall.Kill(root, syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			await(t, "other workers", func() bool {
				now := below(t, root)
				return len(now) == 3 && !slices.ContainsFunc(now, func(r relative) bool { return slices.Contains(workers, r) })
			})
		}
	}
}

// nginxAlone starts nginx with three workers.
func nginxAlone(t *testing.T) (root int, port string) {
	port = freePort(t)
	root = startAlone(t, nginxCommand(t, port)...)
	await(t, "nginx to answer", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil && len(tree(t, root)) == 4
	})
	return root, port
}

// nginxCommand is the command line of an nginx with three workers, which tells whose id
// the worker has that answers.
func nginxCommand(t *testing.T, port string) []string {
	t.Helper()
	folder := publicFolder(t)
	configuration := fmt.Sprintf(`daemon off; worker_processes 3; pid %[1]s/pid; error_log %[1]s/errors;
events { worker_connections 64; }
http { access_log %[1]s/access; keepalive_requests 100000000; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5; server { listen 127.0.0.1:%[2]s; location / { return 200 "$pid\n"; } } }
`, folder, port)
	file := filepath.Join(folder, "conf")
	if err := os.WriteFile(file, []byte(configuration), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{testbed.NeedTool(t, "nginx"), "-c", file}
}

// postgresBin is where PostgreSQL's programs are.
func postgresBin(t *testing.T) string {
	t.Helper()
	programs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(programs) == 0 {
		t.Fatal("postgres is not installed: scripts/deps.sh does it")
	}
	return filepath.Dir(programs[len(programs)-1])
}

func postgresTree(t *testing.T) (int, func(t *testing.T)) {
	root, _, query := postgres(t)
	if out, err := query("create table t (n int, words text); insert into t select n, repeat('word ', n % 50) from generate_series(1, 20000) n"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	rows := 20000
	return root, func(t *testing.T) {
		t.Helper()
		rows++
		out, err := query(fmt.Sprintf("insert into t values (%d, 'more'); select count(*), sum(n) from t", rows))
		if want := fmt.Sprintf("%d|%d", rows, rows*(rows+1)/2); err != nil || out != want {
			t.Fatalf("%v: %q, want %q", err, out, want)
		}
	}
}

// postgres starts PostgreSQL with a fresh database.
func postgres(t *testing.T) (root int, port string, query func(string) (string, error)) {
	t.Helper()
	port = freePort(t)
	root = startAlone(t, postgresCommand(t, port)...)
	query = func(text string) (string, error) {
		client := psql(t, port, text)
		out, err := exec.Command(client[0], client[1:]...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	await(t, "PostgreSQL to answer", func() bool { _, err := query("select 1"); return err == nil })
	return root, port, query
}

// psql is the command line that asks PostgreSQL for something.
func psql(t *testing.T, port, text string) []string {
	t.Helper()
	return []string{filepath.Join(postgresBin(t), "psql"), "-h", "127.0.0.1", "-p", port, "-U", "vos", "-Atqc", text, "postgres"}
}

// postgresCommand is the command line of a PostgreSQL, whose fresh database it makes.
func postgresCommand(t *testing.T, port string) []string {
	t.Helper()
	bin := postgresBin(t)
	account, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	folder := publicFolder(t)
	database := filepath.Join(folder, "data")
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(folder, uid, -1); err != nil {
		t.Fatal(err)
	}
	as := []string{testbed.NeedTool(t, "setpriv"), "--reuid=" + account.Uid, "--regid=" + account.Gid, "--clear-groups"}
	initdb := exec.Command(as[0], append(as[1:], filepath.Join(bin, "initdb"), "-D", database, "-A", "trust", "-U", "vos", "-E", "UTF8",
		"--locale=C", "--no-sync", "--no-instructions")...)
	initdb.Dir = folder
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	return append(as, filepath.Join(bin, "postgres"), "-D", database, "-p", port, "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "autovacuum=off", "-c", "jit=off", "-c", "shared_buffers=16MB")
}
