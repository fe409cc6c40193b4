package live

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// machine is set where this test runs as the first process of a pid namespace.
const machine = "VOS_LIVE_MACHINE"

// TestWholeMachine runs programs of every kind, and then the commands that work
// on all programs. It does so in a pid namespace of its own, so that "all" are
// those that it started: what else runs here is not this test's to change.
func TestWholeMachine(t *testing.T) {
	if os.Getenv(machine) == "" {
		cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
			os.Args[0], "-test.run", "^TestWholeMachine$", "-test.v")
		cmd.Env = append(os.Environ(), machine+"=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Error(err)
		}
		return
	}
	m := startMachine(t)
	t.Run("no alarm on anything that runs", m.noAlarm)
	t.Run("a master and its workers are one program", m.grouped)
	t.Run("programs that run replaced and deleted files", m.outdated)
	t.Run("corruption is found and healed everywhere", m.healed)
	t.Run("a 32-bit program is refused, the others are worked on", m.foreign)
	for _, s := range m.subjects {
		s.unharmed(t)
	}
}

// A wholeMachine is all that runs in a pid namespace.
type wholeMachine struct {
	nginx    *testbed.Nginx
	subjects []*subject // that check their own work
	bystand  []int      // programs of the distribution that just wait
	pids     []int      // of all of them
}

func startMachine(t *testing.T) *wholeMachine {
	t.Helper()
	m := &wholeMachine{nginx: testbed.RunNginx(t, testbed.NginxOptions{Binary: renamed(t, "nginx")})}
	worker := m.nginx.Workers()[0]
	m.subjects = append(m.subjects, underLoad(t, "nginx", worker, m.nginx.Load(context.Background(), testbed.LoadOptions{})),
		redisServer(t), memcachedServer(t), script(t, "python3", "work.py"), script(t, "node", "work.js"), script(t, "java", "Work.java"))
	for _, name := range []string{"cxx", "nopie", "static", "goprog", "sleepers"} {
		m.subjects = append(m.subjects, fixture(t, name))
	}
	mappings, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "mappings"))
	m.subjects = append(m.subjects, mappings)
	for _, argv := range [][]string{{"sleep", "infinity"}, {"cat"}, {"sh", "-c", "read x"}, {"bash", "-c", "read x"},
		{"perl", "-e", "<STDIN>"}, {"gdb", "-nx", "-q"}, {"tail", "-f", "/dev/null"}, {"python3", "-c", "import ctypes, decimal, lzma, bz2\ninput()"}} {
		m.standBy(t, argv)
	}
	m.pids = append(m.nginx.Pids(), m.bystand...)
	for _, s := range m.subjects {
		if !slices.Contains(m.pids, s.pid) {
			m.pids = append(m.pids, s.pid)
		}
	}
	return m
}

// standBy starts a program of the distribution that waits for its input. One
// that is not installed, or ends at once, stands by no more.
func (m *wholeMachine) standBy(t *testing.T, argv []string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Logf("%s does not run here: %v", argv[0], err)
		return
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	})
	// Until it waits it loads its libraries.
	quiet := 0
	await(t, argv[0]+" to wait", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if _, rest, _ := strings.Cut(string(stat), ") "); err != nil || strings.HasPrefix(rest, "Z") {
			return true // it has ended, and stands by no more
		} else if strings.HasPrefix(rest, "S") {
			quiet++
		} else {
			quiet = 0
		}
		return quiet == 5
	})
	m.bystand = append(m.bystand, cmd.Process.Pid)
}

func (m *wholeMachine) noAlarm(t *testing.T) {
	for _, args := range [][]string{{"verify", "--all"}, {"verify", "--all", "--full"}} {
		if d := differences(t, vos(t, append(args, "--json")...).expect(t, 0)); len(d) > 0 {
			t.Errorf("vos %v: %+v", args, d)
		}
	}
	for _, o := range operations(t, vos(t, "refresh", "--all", "--json").expect(t, 0)) {
		if o.Outcome != api.Clean || len(o.Residual) > 0 {
			t.Errorf("%s of %d: %s, residual %v", o.Module, o.PID, o.Outcome, o.Residual)
		}
	}
	for _, p := range lines[api.Program](t, vos(t, "ps", "--json").expect(t, 0)) {
		if p.Corrupt > 0 || p.Outdated > 0 || p.Partial {
			t.Errorf("%s: %d corrupt, %d outdated, unread %v", p.Name, p.Corrupt, p.Outdated, p.Unread)
		}
	}
	for _, pid := range m.pids {
		for _, mod := range modules(t, vos(t, "modules", strconv.Itoa(pid), "--json").expect(t, 0)) {
			if mod.Corrupt || mod.Outdated || !mod.Refreshable || mod.DirtyTextPages > 0 {
				t.Errorf("%s of %s: %+v", mod.Module, mod.Program, mod)
			}
		}
	}
}

func (m *wholeMachine) grouped(t *testing.T) {
	found := false
	for _, p := range lines[api.Program](t, vos(t, "ps", "--json").expect(t, 0)) {
		if p.PID != m.nginx.Master() {
			continue
		}
		var pids []int
		for _, q := range p.Processes {
			pids = append(pids, q.PID)
			if q.PSSBytes <= 0 || q.Modules < 5 || q.Threads < 1 || q.Executable == "" {
				t.Errorf("process %+v", q)
			}
		}
		if found || !strings.HasPrefix(p.Name, "nginx") || !slices.Equal(pids, m.nginx.Pids()) {
			t.Errorf("nginx is %d with %v, not %v", p.PID, pids, m.nginx.Pids())
		}
		found = true
	}
	if !found {
		t.Error("nginx is not listed")
	}
}

func (m *wholeMachine) outdated(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(library string) error
		state  string
	}{
		{"deleted", os.Remove, api.FileDeleted},
		{"replaced", func(library string) error {
			content, err := os.ReadFile(library)
			if err != nil {
				return err
			}
			if err := os.WriteFile(library+".new", content, 0o755); err != nil {
				return err
			}
			return os.Rename(library+".new", library)
		}, api.FileReplaced},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := public(t, compiled(t, "cxx"))
			s, _ := start(t, testbed.FixtureOptions{}, path)
			if err := test.change(filepath.Join(filepath.Dir(path), "libthrower.so")); err != nil {
				t.Fatal(err)
			}
			for _, mod := range modules(t, vos(t, "modules", s.target(), "--json").expect(t, 0)) {
				changed := mod.Module == "libthrower.so"
				if mod.Outdated != changed || changed && mod.File != test.state || !mod.Refreshable {
					t.Errorf("%s: file %s, outdated %v, refreshable %v", mod.Module, mod.File, mod.Outdated, mod.Refreshable)
				}
			}
			listed := false
			for _, p := range lines[api.Program](t, vos(t, "ps", "--json", "--quick").expect(t, 0)) {
				if p.PID == s.pid {
					listed = p.Outdated == 1 && slices.Equal(p.Processes[0].OutdatedModules, []string{"libthrower.so"})
				} else if p.Outdated > 0 {
					t.Errorf("%s is said to run %d outdated modules", p.Name, p.Outdated)
				}
			}
			if !listed {
				t.Error("vos ps does not show it as outdated")
			}
			vos(t, "verify", "--all").expect(t, 0)
			heal(t, s, vos, "libthrower.so")
		})
	}
}

func (m *wholeMachine) healed(t *testing.T) {
	corrupt := make(map[string]bool)
	for _, pid := range m.pids {
		names, _ := listed(t, pid)
		for _, name := range names {
			if name == libc || name == "static" || name == "goprog" {
				corrupt[fmt.Sprintf("%d %s 0x%x", pid, name, corruptGap(t, pid, name))] = true
			}
		}
	}
	found := make(map[string]bool)
	for _, d := range differences(t, vos(t, "verify", "--all", "--json").expect(t, 10)) {
		found[fmt.Sprintf("%d %s %s", d.PID, d.Module, d.Address)] = true
	}
	for what := range corrupt {
		if !found[what] {
			t.Errorf("%s was not found", what)
		}
	}
	if len(found) != len(corrupt) {
		t.Errorf("%d places are corrupt, %d were found", len(corrupt), len(found))
	}
	programs := 0
	for _, p := range lines[api.Program](t, vos(t, "ps", "--json").expect(t, 0)) {
		programs += p.Corrupt
	}
	if programs < 10 {
		t.Errorf("vos ps shows %d corrupt modules", programs)
	}
	refreshed := 0
	for _, o := range operations(t, vos(t, "refresh", "--all", "--json").expect(t, 0)) {
		if o.Outcome == api.Refreshed {
			refreshed++
		}
	}
	if refreshed != len(corrupt) {
		t.Errorf("%d modules are corrupt, %d were refreshed", len(corrupt), refreshed)
	}
	if d := differences(t, vos(t, "verify", "--all", "--full", "--json").expect(t, 0)); len(d) > 0 {
		t.Errorf("left: %+v", d)
	}
	t.Logf("%d modules healed in %d processes", refreshed, len(m.pids))
}

func (m *wholeMachine) foreign(t *testing.T) {
	f, _ := start(t, testbed.FixtureOptions{}, compiled(t, "m32"))
	if got := refusals(t, vos(t, "verify", "--all", "--json").expect(t, 3)); len(got) != 1 || got[0].Code != "not_64_bit" {
		t.Errorf("refused: %v", got)
	}
	vos(t, "refresh", "--all").expect(t, 3)
	f.unharmed(t)
}
