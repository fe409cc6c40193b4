package live

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestUsageAgreesWithBreakpoints lets gdb count, by a breakpoint at each function that
// nginx imports, how often a worker calls it from its own code, and holds what vos
// usage says against that: which are used, and each count.
func TestUsageAgreesWithBreakpoints(t *testing.T) {
	gdb := testbed.NeedTool(t, "gdb")
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Workers: 1, AccessLog: true})
	worker := nginx.Workers()[0]
	target := strconv.Itoa(worker)
	attachAll(t, []int{worker})
	before := usageOf(t, target+":nginx", "--functions")["nginx"]

	// Breakpoints at the targets of the program's own stubs, where the caller is its code.
	var script strings.Builder
	script.WriteString("set pagination off\nset confirm off\nset breakpoint pending off\n")
	var names []string
	var targets []uint64
	for _, in := range inspect(t, worker).Interceptors() {
		records := in.Modules()
		for _, f := range in.Functions() {
			m := records[f.Importer]
			if m.Name != "nginx" {
				continue
			}
			names, targets = append(names, f.Name), append(targets, f.Target)
			fmt.Fprintf(&script, "break *0x%x if *(unsigned long *)$rsp >= 0x%x && *(unsigned long *)$rsp < 0x%x\nignore $bpnum 1000000000\n", f.Target, m.Start, m.End)
		}
	}
	folder := t.TempDir()
	ready, told := filepath.Join(folder, "ready"), filepath.Join(folder, "usage")
	fmt.Fprintf(&script, "shell touch %s\ncontinue\ninfo breakpoints\nshell %s usage %s:nginx --json --functions >%s\ndetach\n", ready, binary, target, told)
	commands := filepath.Join(folder, "commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command(gdb, "-nx", "-batch", "-p", target, "-x", commands)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	await := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				t.Fatalf("%s: %s", what, out.String())
			}
		}
	}
	await("gdb did not begin", func() bool { _, err := os.Stat(ready); return err == nil })
	load := nginx.Load(context.Background(), testbed.LoadOptions{Conns: 2, Rate: 50})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := load.Await(ctx, 100); err != nil {
		t.Fatal(err)
	}
	load.Stop()
	calls := uint64(0)
	await("nginx goes on", func() bool { // until it has closed what the clients have
		last := calls
		calls = usageOf(t, target+":nginx")["nginx"].Calls
		return calls == last
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatalf("gdb: %v: %s", err, out.String())
	}
	text, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	usage := lines[api.Usage](t, result{Stdout: string(text)})[0]

	hits := make(map[string]uint64)
	number := 0
	for line := range strings.Lines(out.String()) {
		if m := regexp.MustCompile(`^(\d+)\s+breakpoint\s`).FindStringSubmatch(line); m != nil {
			number, _ = strconv.Atoi(m[1])
		}
		if m := regexp.MustCompile(`breakpoint already hit (\d+) time`).FindStringSubmatch(line); m != nil {
			n, _ := strconv.ParseUint(m[1], 10, 64)
			hits[names[number-1]] += n
		}
	}
	counted := make(map[string]uint64)
	for _, f := range usage.Functions {
		counted[f.Function] += f.Calls
	}
	for _, f := range before.Functions {
		counted[f.Function] -= f.Calls
	}
	// gdb sees who comes to an address: by any of its names, or by a jump at the end of
	// another function, which leaves the return address of the first call.
	reach := make(map[uint64]uint64)
	for i, name := range names {
		reach[targets[i]] += counted[name]
	}
	for i, name := range names {
		if plain, _, _ := strings.Cut(name, "@"); plain == "fstatat64" {
			reach[targets[i]] += counted["stat64@GLIBC_2.33"] + counted["fstat64@GLIBC_2.33"] + counted["lstat64@GLIBC_2.33"]
		}
	}
	used := 0
	for i, name := range names {
		if reach[targets[i]] != hits[name] {
			t.Errorf("%s: %d calls by vos, %d by gdb", name, reach[targets[i]], hits[name])
		}
		if counted[name] > 0 {
			used++
		}
	}
	if used < 20 {
		t.Errorf("%d functions were called: %s", used, out.String())
	}
	if usage.Used < used {
		t.Errorf("%d functions used, %d of them while gdb looked", usage.Used, used)
	}
	checkFree(t, worker)
	vos(t, "usage", target, "--stop").expect(t, 0)
}
