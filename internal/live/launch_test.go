package live

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// early is a program whose constructor calls getppid three times, and which takes its
// address there.
const early = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>
static pid_t (*volatile pointer)(void);
__attribute__((constructor)) static void before(void) { pointer = getppid; for (int i = 0; i < 3; i++) getppid(); }
static void told(int n) { (void)n; write(1, "told\n", 5); _exit(9); }
int main(int argc, char **argv) {
	signal(SIGTERM, told);
	for (int i = 0; i < 5; i++) pointer();
	printf("%d\n", getpid());
	fflush(stdout);
	if (argc > 1 && !strcmp(argv[1], "wait")) for (;;) pause();
	return 5;
}
`

// TestRunCountsFromTheFirstInstruction: what a constructor calls is counted, and with
// --pointers what passes by an address that it took.
func TestRunCountsFromTheFirstInstruction(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "early", Source: early, Flags: []string{"-fno-plt", "-O1"}})
	for _, c := range []struct {
		flag string
		want uint64
	}{{"--pointers", 8}, {"--memory", 0}} { // as its address is taken, it is left out without --pointers
		cmd := exec.Command(binary, "run", c.flag, program, "wait")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		if !lines.Scan() {
			t.Fatalf("%s: it says nothing: %v", c.flag, cmd.Wait())
		}
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		if got := calls(t, pid, "getppid"); got != c.want {
			t.Errorf("%s: %d calls of getppid are counted, not %d", c.flag, got, c.want)
		}
		checkFree(t, pid)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != "told" {
			t.Errorf("%s: the signal did not reach it: %q", c.flag, lines.Text())
		}
		if cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
			t.Errorf("%s: vos exits with %d, the program with 9", c.flag, cmd.ProcessState.ExitCode())
		}
	}
}

// calls returns how often a function was called in a process, by all modules.
func calls(t *testing.T, pid int, name string) (n uint64) {
	t.Helper()
	p, err := module.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	memory, err := p.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for _, in := range p.Interceptors() {
		counts, err := in.Counts(memory)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range counts.Functions {
			if function, _, _ := strings.Cut(in.Function(i).Name, "@"); function == name {
				n += f.Calls
			}
		}
	}
	return n
}

// TestRunEnds: the program's end is that of vos; one that can't be counted does not
// begin, and one whose vos is killed goes on.
func TestRunEnds(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "early", Source: early})
	if r := vos(t, "run", program); r.Code != 5 || strings.Count(r.Stdout, "\n") != 1 || r.Stderr != "" {
		t.Errorf("%+v", r)
	}
	if r := vos(t, "run", "sh", "-c", "kill -9 $$"); r.Code != 128+9 {
		t.Errorf("killed: %+v", r)
	}
	if r := vos(t, "run", "/etc/passwd"); r.Code != 126 {
		t.Errorf("not executable: %+v", r)
	}
	static := testbed.MustCompile(t, testbed.Build{Name: "static", Source: early, Flags: []string{"-static"}})
	if r := vos(t, "run", static); r.Code != 7 || r.Stdout != "" || !strings.Contains(r.Stderr, "no_imports") {
		t.Errorf("static: %+v", r)
	}

	out := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(binary, "run", program, "wait")
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []byte
	await(t, "its first line", func() bool {
		said, err = os.ReadFile(out)
		return err == nil && bytes.Contains(said, []byte("\n"))
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	pid, err := strconv.Atoi(strings.TrimSpace(string(said)))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	checkFree(t, pid)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatalf("it did not go on when vos was killed: %v", err)
	}
	await(t, "its last word", func() bool {
		said, err = os.ReadFile(out)
		return err == nil && bytes.HasSuffix(said, []byte("told\n"))
	})
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil { // it is this process's child now
		t.Error(err)
	}
}
